/* Judging answers.  Three kinds are wrong in three ways:
 *
 *     lost      the guest forgot what it had acknowledged: a counter, or its clock, did not go on
 *     repeated  more came than was asked for: a counter went on by two, bytes behind an answer
 *     wrong     anything else
 */
#include "loadgen.h"

#include <stdio.h>
#include <string.h>

/* Are these the letters that stand at `at` of the endless pattern? */
static int matches(const char *data, uint64_t at, uint64_t length)
{
    while (length > 0) {
        uint64_t offset = at % PATTERN_BYTES, part = least(length, PATTERN_BYTES - offset);
        if (memcmp(data, pattern + offset, part))
            return 0;
        data += part;
        at += part;
        length -= part;
    }
    return 1;
}

static enum verdict judge_counter(struct connection *c, unsigned long long value)
{
    enum verdict verdict = RIGHT;
    if (c->has_value && value <= c->last_value)
        verdict = LOST;
    else if (c->has_value && mode != TIME && value != c->last_value + 1)
        verdict = REPEATED;
    if (verdict != RIGHT)
        fprintf(stderr, "slot %u, request %llu: answer %llu after %llu\n", c->slot,
                (unsigned long long)c->number, value, (unsigned long long)c->last_value);
    c->last_value = value;
    c->has_value = 1;
    return verdict;
}

/* A line, its end cut off. */
static enum verdict judge_line(struct connection *c)
{
    unsigned slot;
    unsigned long long value, wrong;
    switch (mode) {
    case INC:
        if (sscanf(c->buffer, "VAL %u %llu", &slot, &value) != 2 || slot != c->slot)
            return WRONG;
        return judge_counter(c, value);
    case INCR:
        return sscanf(c->buffer, ":%llu", &value) == 1 ? judge_counter(c, value) : WRONG;
    case TIME:
        return sscanf(c->buffer, "T %llu", &value) == 1 ? judge_counter(c, value) : WRONG;
    default:
        if (sscanf(c->buffer, "TOOK %llu %llu", &value, &wrong) != 2 || value != argument || wrong)
            return WRONG;
        return RIGHT;
    }
}

static enum verdict judge_http(struct connection *c)
{
    c->buffer[c->got] = '\0';
    char *body = strstr(c->buffer, "\r\n\r\n");
    if (strncmp(c->buffer, "HTTP/1.", 7) || strncmp(c->buffer + 8, " 200 ", 5) || body == NULL)
        return WRONG;
    body += 4;
    if (c->buffer + c->got - body != HTTP_BODY_BYTES || body[HTTP_BODY_BYTES - 1] != '\n')
        return WRONG;
    return matches(body, 0, HTTP_BODY_BYTES - 1) ? RIGHT : WRONG;
}

enum verdict judge(struct connection *c)
{
    uint64_t head = c->head_length;
    if (mode == HTTP)
        return judge_http(c);
    if (c->need > 0 && c->got > c->need)
        return REPEATED;
    if (mode == ECHO)
        return memcmp(c->buffer, c->head, head) || !matches(c->buffer + head, head, c->need - head) ? WRONG : RIGHT;
    if (mode == BULK)
        return c->differs ? WRONG : RIGHT;
    char *end = memchr(c->buffer, '\n', c->got);
    int more = end != c->buffer + c->got - 1;
    *end = '\0';
    enum verdict verdict = judge_line(c);
    return verdict == RIGHT && more ? REPEATED : verdict;
}

/* The letters of BULK are compared as they come, and not kept. */
void look_at_letters(struct connection *c, uint64_t got)
{
    uint64_t letters = c->got < argument ? least(got, argument - c->got) : 0;
    c->differs |= !matches(c->buffer, c->got, letters);
    c->differs |= got > letters && c->buffer[letters] != '\n';
}
