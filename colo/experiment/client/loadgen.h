/* What the parts of loadgen share: a connection, what was asked on it, and what came. */
#ifndef LOADGEN_H
#define LOADGEN_H

#include <stdint.h>

enum {
    BUFFER_BYTES = 65536,        /* the longest echo or HTTP answer */
    PATTERN_BYTES = 65536,       /* as in kvd.c */
    NUMBER_BYTES = 16,           /* of an echo request */
    HEAD_BYTES = 64,             /* the longest request without its letters */
    HTTP_BODY_BYTES = 1024,      /* letters, the last byte a newline */
};

enum mode { ECHO, INC, TIME, BULK, TAKE, HTTP, INCR, MODES };

enum verdict { RIGHT, WRONG, LOST, REPEATED, VERDICTS };

struct connection {
    int fd;                      /* -1: gone */
    int connecting, answered;
    unsigned slot;
    uint64_t sent_ns, number;    /* of requests so far */
    uint64_t got, need;          /* bytes of the answer; need: 0 when a newline or the end decides */
    uint64_t last_value;         /* of INC, INCR and TIME */
    int has_value, differs;      /* differs: some letters of BULK did */
    char head[HEAD_BYTES];
    uint64_t head_length, body_length, written;     /* the request: head, then so many letters of the pattern */
    char buffer[BUFFER_BYTES + 1];
};

extern enum mode mode;
extern unsigned long argument;
extern char pattern[PATTERN_BYTES];              /* 'a' to 'z', again and again: BULK, TAKE, echo, HTTP */

/* Is the whole answer in c->buffer what it must be?  Remembers counters, and says on stderr what is not. */
enum verdict judge(struct connection *c);

/* So many letters of a BULK answer have come, behind the c->got before them: they are not kept. */
void look_at_letters(struct connection *c, uint64_t got);

static inline uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

#endif
