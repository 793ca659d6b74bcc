/* counter: a load of known size.
 *
 * Every `ms` milliseconds of timer ticks it rewrites one word in each page of `mib` MiB, and every
 * second it prints how often it has done so.  Between ticks it sleeps.  What it prints depends on
 * virtual time only, so two runs give the same bytes.
 *
 * Command line: mib=8 ms=10 fill=0.  mib=0 counts without dirtying anything; fill=N writes to every
 * page of N MiB once, after it has said that it is ready, so that the host has to provide them.
 */
#include "pc.h"

enum {
    TICK_HZ = 1000,
    TIMER_LINE = 0,
    PAGE_WORDS = 4096 / 4,
    AREA = 0x400000,                    /* 4 MiB: above the program and the loader's structures */
    LOW_LIMIT_KIB = 1024,
};

static volatile uint32_t ticks;

void interrupt(unsigned line)
{
    ticks += line == TIMER_LINE;
    pics_acknowledge(line);
}

/* Multiboot 3.3: bit 0 of flags says that mem_upper is there: KiB above the first MiB. */
static unsigned limit_mib(const uint32_t *info)
{
    unsigned top_kib = info[0] & 1 ? info[2] + LOW_LIMIT_KIB : 0;
    return top_kib > AREA / 1024 ? (top_kib - AREA / 1024) / 1024 : 0;
}

static void dirty(unsigned mib, uint32_t round)
{
    volatile uint32_t *word = (volatile uint32_t *)AREA;
    for (unsigned page = 0; page < mib * 256; page++, word += PAGE_WORDS)
        *word = round ^ page;
}

static void report(uint32_t second, uint32_t rounds)
{
    print("second ");
    print_number(second);
    print(" rounds ");
    print_number(rounds);
    print("\r\n");
}

void main(const uint32_t *info)
{
    const char *cmdline = multiboot_cmdline(info);
    unsigned mib = parameter(cmdline, "mib", 8), ms = parameter(cmdline, "ms", 10);
    unsigned fill = parameter(cmdline, "fill", 0);
    if (mib > limit_mib(info) || fill > limit_mib(info))
        fail("mib= or fill= is more than the memory there is");
    if (ms == 0)
        fail("ms= must be at least 1");

    pics_start(1 << TIMER_LINE);
    timer_start(TICK_HZ);
    print("GUEST-READY counter mib=");
    print_number(mib);
    print(" ms=");
    print_number(ms);
    print("\r\n");
    dirty(fill, ~0u);                    /* no word that a round will write */

    uint32_t rounds = 0, seconds = 0, next_round = ms, next_second = TICK_HZ;
    for (;;) {
        wait_for_interrupt();
        if ((int32_t)(ticks - next_round) >= 0) {       /* differences: the tick counter wraps */
            dirty(mib, ++rounds);
            next_round = ticks + ms;
        }
        if ((int32_t)(ticks - next_second) >= 0) {
            report(++seconds, rounds);
            next_second += TICK_HZ;
        }
    }
}
