/* The benchmark service of the kv guest: one static program, one thread, poll(2).
 *
 * Port 7, echo (RFC 862): bytes come back as they were read.
 * Port 7000, one request a line, answered in order:
 *
 *     SET <slot> <u64>    OK <slot> <u64>
 *     GET <slot>          VAL <slot> <u64>
 *     INC <slot>          VAL <slot> <new value>
 *     DIRTY <MiB> <ms>    OK dirty      from now on a second process rewrites one word in every page
 *                                       of that much memory, sleeps that long, and again; 0 0 stops it
 *     BULK <bytes>        that many letters, then a newline
 *     TAKE <bytes>        TOOK <bytes> <wrong>   after so many bytes, which follow the line at once and
 *                                       are the letters of BULK; <wrong>: reads that had others
 *     TIME                T <ns>        CLOCK_MONOTONIC: an answer that differs between replicas
 *     PING                PONG
 *     anything else       ERR
 *
 * A connection is read only when all it was sent before has been written, so a client that does not
 * read stops itself and nobody else.  What is unread stays in `in`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    ECHO_PORT = 7,
    LINE_PORT = 7000,
    BACKLOG = 128,
    CONNECTIONS = 256,
    SLOTS = 4096,
    IN_BYTES = 4096,             /* also the longest line: a longer one closes the connection */
    OUT_BYTES = IN_BYTES,        /* echo answers as much as was read, a line at most 64 */
    ANSWER_BYTES = 64,
    PATTERN_BYTES = 65536,
    PAGE_BYTES = 4096,
    DIRTY_LIMIT_MIB = 96,
    DIRTY_LIMIT_MS = 60000,
    IDLE_US = 50000,             /* how often the stopped dirtier looks for orders */
};
#define BULK_LIMIT (1ull << 32)

enum service { ECHO, LINES };

struct connection {
    int fd;                      /* -1: free */
    enum service service;
    size_t in_length;
    char in[IN_BYTES];
    size_t out_length, out_sent;
    char out[OUT_BYTES];
    uint64_t bulk_left;          /* letters still to send before the next line is looked at */
    size_t bulk_at;              /* where in the pattern */
    int newline_due;             /* the one that ends a BULK answer */
    uint64_t take_bytes, take_left, take_wrong;     /* of TAKE: announced, still to come, not as expected */
    size_t take_at;              /* where in the pattern */
};

/* Shared with the process that dirties memory. */
struct orders {
    volatile int mib, ms;
};

static uint64_t slots[SLOTS];
static struct connection connections[CONNECTIONS];
static struct orders *orders;
static char pattern[PATTERN_BYTES];
static char taken[PATTERN_BYTES];               /* what TAKE reads, looked at and forgotten */

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *shared_memory(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

/* ---- the second process: a known number of dirty pages a second ---- */

static void dirty_forever(void)
{
    char *area = shared_memory((size_t)DIRTY_LIMIT_MIB << 20);
    for (uint64_t round = 1;; round++) {
        size_t bytes = (size_t)orders->mib << 20;
        for (size_t offset = 0; offset < bytes; offset += PAGE_BYTES)
            *(uint64_t *)(area + offset) = round ^ offset;
        usleep(bytes ? (useconds_t)orders->ms * 1000 : IDLE_US);
    }
}

/* ---- the line protocol ---- */

static int within(int value, int limit)
{
    return value < 0 ? 0 : value > limit ? limit : value;
}

static void set_output(struct connection *c)
{
    c->out_length = strlen(c->out);
    c->out_sent = 0;
}

/* These bytes belong to TAKE: compare them, and answer when they were the last. */
static void take(struct connection *c, const char *data, size_t length)
{
    int wrong = 0;
    c->take_left -= length;
    while (length > 0) {
        size_t part = PATTERN_BYTES - c->take_at;
        if (part > length)
            part = length;
        wrong |= memcmp(data, pattern + c->take_at, part) != 0;
        c->take_at = (c->take_at + part) % PATTERN_BYTES;
        data += part;
        length -= part;
    }
    c->take_wrong += (uint64_t)wrong;
    if (c->take_left > 0)
        return;
    snprintf(c->out, ANSWER_BYTES, "TOOK %llu %llu\n", (unsigned long long)c->take_bytes,
             (unsigned long long)c->take_wrong);
    set_output(c);
}

/* Answer one line into c->out; BULK leaves most of its answer in bulk_left, TAKE answers later. */
static void answer(struct connection *c, const char *line)
{
    unsigned slot;
    unsigned long long value;
    int mib, ms;
    char *out = c->out;

    if (sscanf(line, "SET %u %llu", &slot, &value) == 2) {
        slots[slot % SLOTS] = value;
        snprintf(out, ANSWER_BYTES, "OK %u %llu\n", slot, value);
    } else if (sscanf(line, "GET %u", &slot) == 1) {
        value = slots[slot % SLOTS];
        snprintf(out, ANSWER_BYTES, "VAL %u %llu\n", slot, value);
    } else if (sscanf(line, "INC %u", &slot) == 1) {
        value = ++slots[slot % SLOTS];
        snprintf(out, ANSWER_BYTES, "VAL %u %llu\n", slot, value);
    } else if (sscanf(line, "DIRTY %d %d", &mib, &ms) == 2) {
        orders->ms = within(ms, DIRTY_LIMIT_MS);
        orders->mib = within(mib, DIRTY_LIMIT_MIB);
        strcpy(out, "OK dirty\n");
    } else if (sscanf(line, "BULK %llu", &value) == 1) {
        c->bulk_left = value < BULK_LIMIT ? value : BULK_LIMIT;
        c->bulk_at = 0;
        c->newline_due = 1;
        out[0] = '\0';
    } else if (sscanf(line, "TAKE %llu", &value) == 1 && value > 0) {
        c->take_bytes = c->take_left = value < BULK_LIMIT ? value : BULK_LIMIT;
        c->take_at = 0;
        c->take_wrong = 0;
        out[0] = '\0';
    } else if (strncmp(line, "TIME", 4) == 0) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        value = (unsigned long long)now.tv_sec * 1000000000ull + (unsigned long long)now.tv_nsec;
        snprintf(out, ANSWER_BYTES, "T %llu\n", value);
    } else {
        strcpy(out, strncmp(line, "PING", 4) == 0 ? "PONG\n" : "ERR\n");
    }
    set_output(c);
}

/* Take the next request out of c->in.  True if there was one: c->out then has (more of) an answer. */
static int next_request(struct connection *c)
{
    size_t used;
    if (c->service == ECHO) {
        used = c->in_length;
        memcpy(c->out, c->in, used);
        c->out_length = used;
        c->out_sent = 0;
    } else if (c->take_left > 0) {
        used = c->in_length < c->take_left ? c->in_length : c->take_left;
        take(c, c->in, used);
    } else {
        char *end = memchr(c->in, '\n', c->in_length);
        if (end == NULL)
            return 0;
        *end = '\0';
        used = (size_t)(end - c->in) + 1;
        answer(c, c->in);
    }
    c->in_length -= used;
    memmove(c->in, c->in + used, c->in_length);
    return used > 0;
}

/* ---- connections ---- */

static int output_waits(const struct connection *c)
{
    return c->out_sent < c->out_length || c->bulk_left > 0 || c->newline_due;
}

/* Write what waits.  1: all of it; 0: the socket is full; -1: the client is gone. */
static int flush_output(struct connection *c)
{
    while (output_waits(c)) {
        const char *from = c->out + c->out_sent;
        size_t length = c->out_length - c->out_sent;
        int bulk = length == 0 && c->bulk_left > 0;
        if (bulk) {
            from = pattern + c->bulk_at;
            length = PATTERN_BYTES - c->bulk_at;
            if (length > c->bulk_left)
                length = c->bulk_left;
        } else if (length == 0) {
            from = "\n";
            length = 1;
        }
        ssize_t written = send(c->fd, from, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (written < 0)
            return errno == EAGAIN || errno == EINTR ? 0 : -1;
        if (bulk) {
            c->bulk_left -= (uint64_t)written;
            c->bulk_at = (c->bulk_at + (size_t)written) % PATTERN_BYTES;
        } else if (c->out_sent < c->out_length) {
            c->out_sent += (size_t)written;
        } else {
            c->newline_due = 0;
        }
    }
    return 1;
}

static void drop(struct connection *c)
{
    close(c->fd);
    c->fd = -1;
}

/* Read what is there: what TAKE waits for, or more of a request.  0 when the client is gone. */
static int read_input(struct connection *c)
{
    int takes = c->take_left > 0;               /* nothing of it is in c->in any more */
    char *into = takes ? taken : c->in + c->in_length;
    size_t room = takes ? sizeof taken : sizeof c->in - c->in_length;
    if (takes && room > c->take_left)
        room = c->take_left;
    ssize_t got = recv(c->fd, into, room, MSG_DONTWAIT);
    if (got <= 0)
        return got < 0 && (errno == EAGAIN || errno == EINTR);
    if (takes)
        take(c, taken, (size_t)got);
    else
        c->in_length += (size_t)got;
    return 1;
}

/* The socket is ready: write, and when nothing waits any more, read and answer. */
static void serve(struct connection *c, short events)
{
    int written = flush_output(c);
    if (written == 1 && (events & (POLLIN | POLLHUP | POLLERR)))
        written = read_input(c) ? flush_output(c) : -1;
    while (written == 1 && next_request(c))
        written = flush_output(c);
    if (written < 0 || (written == 1 && c->in_length == sizeof c->in))
        drop(c);
}

static int listen_on(uint16_t port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, BACKLOG))
        die("listen");
    return fd;
}

static void take_connection(int listener, enum service service)
{
    int one = 1, fd = accept(listener, NULL, NULL);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int i = 0; i < CONNECTIONS; i++)
        if (connections[i].fd < 0) {
            connections[i] = (struct connection){.fd = fd, .service = service};
            return;
        }
    close(fd);                   /* full: better refused than kept waiting */
}

static void serve_forever(const int listeners[2])
{
    struct pollfd polled[CONNECTIONS + 2];
    struct connection *who[CONNECTIONS + 2];
    for (;;) {
        nfds_t count = 0;
        for (int service = ECHO; service <= LINES; service++)
            polled[count++] = (struct pollfd){listeners[service], POLLIN, 0};
        for (int i = 0; i < CONNECTIONS; i++)
            if (connections[i].fd >= 0) {
                short events = output_waits(&connections[i]) ? POLLOUT : POLLIN;
                who[count] = &connections[i];
                polled[count++] = (struct pollfd){connections[i].fd, events, 0};
            }
        if (poll(polled, count, -1) < 0)
            continue;
        for (nfds_t i = 2; i < count; i++)
            if (polled[i].revents)
                serve(who[i], polled[i].revents);
        for (int service = ECHO; service <= LINES; service++)
            if (polled[service].revents)
                take_connection(listeners[service], service);
    }
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < PATTERN_BYTES; i++)
        pattern[i] = (char)('a' + i % 26);
    for (int i = 0; i < CONNECTIONS; i++)
        connections[i].fd = -1;
    orders = shared_memory(sizeof *orders);
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0)
        dirty_forever();
    const int listeners[2] = {listen_on(ECHO_PORT), listen_on(LINE_PORT)};
    serve_forever(listeners);
}
