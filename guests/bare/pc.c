/* The parts of a PC that the C guests use.  Data sheets: Intel 8259A, 8254; National PC16550D. */
#include "pc.h"

enum {
    PIC1 = 0x20, PIC2 = 0xA0,
    ICW1_INIT = 0x11,                   /* edge triggered, cascaded, ICW4 follows */
    ICW4_8086 = 0x01,
    OCW2_EOI = 0x20,                    /* non-specific */
    CASCADE_LINE = 2,

    PIT_CHANNEL0 = 0x40, PIT_CONTROL = 0x43,
    PIT_RATE_GENERATOR = 0x34,          /* channel 0, both bytes, mode 2 */
    PIT_HZ = 1193182,

    COM1 = 0x3F8, LINE_STATUS = COM1 + 5, HOLDING_EMPTY = 0x20,
};

void pics_start(uint16_t unmasked_lines)
{
    uint16_t mask = (uint16_t)~(unmasked_lines | 1 << CASCADE_LINE);
    out8(PIC1, ICW1_INIT);
    out8(PIC2, ICW1_INIT);
    out8(PIC1 + 1, 32);                 /* ICW2: first vector */
    out8(PIC2 + 1, 40);
    out8(PIC1 + 1, 1 << CASCADE_LINE);  /* ICW3: where the second one hangs */
    out8(PIC2 + 1, CASCADE_LINE);
    out8(PIC1 + 1, ICW4_8086);
    out8(PIC2 + 1, ICW4_8086);
    out8(PIC1 + 1, (uint8_t)mask);
    out8(PIC2 + 1, (uint8_t)(mask >> 8));
}

void pics_acknowledge(unsigned line)
{
    if (line >= 8)
        out8(PIC2, OCW2_EOI);
    out8(PIC1, OCW2_EOI);
}

void timer_start(unsigned hz)
{
    unsigned count = PIT_HZ / hz;
    out8(PIT_CONTROL, PIT_RATE_GENERATOR);
    out8(PIT_CHANNEL0, (uint8_t)count);
    out8(PIT_CHANNEL0, (uint8_t)(count >> 8));
}

void print(const char *text)
{
    for (; *text; text++) {
        while (!(in8(LINE_STATUS) & HOLDING_EMPTY))
            ;
        out8(COM1, (uint8_t)*text);
    }
}

/* Divide by ten in two halves: the compiler's 64-bit division is in a library that is not here. */
static unsigned take_digit(uint64_t *value)
{
    uint32_t high = (uint32_t)(*value >> 32), quotient, rest;
    __asm__("divl %4" : "=a"(quotient), "=d"(rest) : "0"((uint32_t)*value), "1"(high % 10), "r"(10));
    *value = (uint64_t)(high / 10) << 32 | quotient;
    return rest;
}

void print_number(uint64_t value)
{
    char text[21], *at = text + sizeof text - 1;
    *at = '\0';
    do
        *--at = (char)('0' + take_digit(&value));
    while (value);
    print(at);
}

void fail(const char *why)
{
    print("GUEST-FAILED ");
    print(why);
    print("\r\n");
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* Multiboot 3.3: bit 2 of flags says that the command line is there, at offset 16. */
const char *multiboot_cmdline(const uint32_t *info)
{
    return info[0] & 1 << 2 ? (const char *)info[4] : "";
}

/* The number after NAME= in the command line; of several the last, as in Linux, so that words can be added. */
unsigned parameter(const char *cmdline, const char *name, unsigned standard)
{
    unsigned value = standard;
    for (const char *at = cmdline; *at; at++) {
        const char *word = at, *expected = name;
        if (at != cmdline && at[-1] != ' ')
            continue;
        while (*expected && *word == *expected)
            word++, expected++;
        if (*expected || *word++ != '=' || *word < '0' || *word > '9')
            continue;
        value = 0;
        for (; *word >= '0' && *word <= '9' && value < 100000000; word++)
            value = value * 10 + (unsigned)(*word - '0');
    }
    return value;
}

/* The compiler may call these two for structure copies and clearing. */
void *memcpy(void *to, const void *from, unsigned bytes)
{
    void *result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    return result;
}

void *memset(void *to, int value, unsigned bytes)
{
    void *result = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
    return result;
}
