/* What the C guests know of a PC: ports, the two 8259s, COM1, the 8254. */
#ifndef PC_H
#define PC_H

#include <stdint.h>

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Sleep until an interrupt.  STI takes effect after the next instruction, so none slips in between. */
static inline void wait_for_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

static inline void interrupts_off(void)
{
    __asm__ volatile("cli" : : : "memory");
}

void pics_start(uint16_t unmasked_lines);       /* vectors 32-47 */
void pics_acknowledge(unsigned line);
void timer_start(unsigned hz);                  /* 8254 channel 0, line 0 */
void print(const char *text);                   /* on COM1 */
void print_number(uint64_t value);
void fail(const char *why) __attribute__((noreturn));
unsigned parameter(const char *cmdline, const char *name, unsigned standard);
const char *multiboot_cmdline(const uint32_t *info);

/* Supplied by each guest. */
void main(const uint32_t *info);
void interrupt(unsigned line);

#endif
