/* loadgen: a closed-loop client for the benchmark guests.
 *
 *     loadgen HOST PORT MODE CONNECTIONS SECONDS [ARGUMENT [RAWFILE]]
 *
 * Each connection has one request in flight and sends the next as soon as the answer is complete.
 *
 *     echo   ARGUMENT bytes (64) that must come back                       port 7
 *     inc    "INC slot", one slot a connection; each answer must be one more than the last   port 7000
 *     time   "TIME": an answer that differs between replicas               port 7000
 *     bulk   "BULK ARGUMENT": that many letters and a newline              port 7000
 *     http   GET /1k.txt on a new connection each time                     port 80
 *
 * Prints one line: what was asked, answers, rate, latency (us) as minimum, median, 90th and 99th
 * percentile, maximum; the longest time without any answer; and what went wrong:
 *     errs    connections that could not be made, requests that could not be sent whole
 *     resets  connections that ended while an answer was due, or never came about
 *     bad     answers that are not what they must be
 *     stuck   connections that at the end have waited for more than a second
 * RAWFILE gets a line "<CLOCK_MONOTONIC us> <latency us>" for each answer.
 * Exit status: 0 if there was an answer and nothing was bad, 1 otherwise, 2 for a usage error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 65536,        /* the longest echo or HTTP answer */
    CONNECTION_LIMIT = 1024,
    SLOTS = 4096,                /* as in kvd.c */
    HTTP_BODY_BYTES = 1024,
    POLL_MS = 100,
    STUCK_US = 1000000,
    RETRY_US = 1000,             /* a refused connection is tried again, but not as fast as can be */
};

enum mode { ECHO, INC, TIME, BULK, HTTP, MODES };
static const char *const mode_names[MODES] = {"echo", "inc", "time", "bulk", "http"};

struct connection {
    int fd;                      /* -1: gone */
    int connecting;
    unsigned slot;
    uint64_t sent_us;
    uint64_t got, need;          /* bytes of the answer; need: 0 when a newline or the end decides */
    uint64_t last_value;         /* of INC */
    int has_value;
    char buffer[BUFFER_BYTES + 1];
};

static struct sockaddr_in server;
static enum mode mode;
static unsigned long argument = 64;
static struct connection *connections;
static int connection_count, live;
static char pattern[BUFFER_BYTES];
static long errs, resets, bad;
static uint64_t started_us, last_us, longest_gap_us, bulk_bytes;
static uint64_t *latencies;
static size_t answer_count, latency_room = 1 << 16;
static FILE *raw;

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- connections and requests ---- */

static void open_connection(struct connection *c)
{
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->connecting = 1;
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS)
        errs++;                  /* poll says the rest */
}

static void send_request(struct connection *c)
{
    char line[64];
    const char *request = line;
    size_t length = 0;
    c->got = c->need = 0;
    switch (mode) {
    case ECHO:
        request = pattern;
        length = c->need = argument;
        break;
    case INC:
        length = (size_t)sprintf(line, "INC %u\n", c->slot);
        break;
    case TIME:
        length = (size_t)sprintf(line, "TIME\n");
        break;
    case BULK:
        length = (size_t)sprintf(line, "BULK %lu\n", argument);
        c->need = argument + 1;
        break;
    default:
        length = (size_t)sprintf(line, "GET /1k.txt HTTP/1.0\r\n\r\n");
    }
    if (mode != HTTP)            /* an HTTP request is measured from the start of its connection */
        c->sent_us = now_us();
    if (send(c->fd, request, length, MSG_NOSIGNAL) != (ssize_t)length)
        errs++;
}

static void begin(struct connection *c)
{
    c->sent_us = now_us();
    open_connection(c);
}

/* ---- answers ---- */

static void check_inc(struct connection *c)
{
    unsigned slot;
    unsigned long long value;
    c->buffer[c->got] = '\0';
    if (sscanf(c->buffer, "VAL %u %llu", &slot, &value) != 2 || slot != c->slot) {
        bad++;
        return;
    }
    if (c->has_value && value != c->last_value + 1) {
        bad++;
        fprintf(stderr, "INC answer %llu after %llu at %.3f s\n", value,
                (unsigned long long)c->last_value, (double)(now_us() - started_us) / 1e6);
    }
    c->last_value = value;
    c->has_value = 1;
}

static void check_http(struct connection *c)
{
    c->buffer[c->got] = '\0';
    if (strncmp(c->buffer, "HTTP/1.", 7) || !strstr(c->buffer, " 200 ") || c->got < HTTP_BODY_BYTES)
        bad++;
}

static void count_answer(struct connection *c)
{
    uint64_t now = now_us(), latency = now - c->sent_us;
    if (now - last_us > longest_gap_us)
        longest_gap_us = now - last_us;
    last_us = now;
    if (answer_count == latency_room || latencies == NULL) {
        latency_room *= 2;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (latencies == NULL)
            die("realloc");
    }
    latencies[answer_count++] = latency;
    if (raw)
        fprintf(raw, "%llu %llu\n", (unsigned long long)now, (unsigned long long)latency);
}

/* A whole answer is here: judge it, and ask again. */
static void finish(struct connection *c)
{
    count_answer(c);
    if (mode == ECHO && memcmp(c->buffer, pattern, argument))
        bad++;
    else if (mode == INC)
        check_inc(c);
    else if (mode == HTTP)
        check_http(c);
    if (mode == HTTP) {
        close(c->fd);
        begin(c);
    } else {
        send_request(c);
    }
}

static void lose(struct connection *c, const char *why)
{
    resets++;
    live--;
    fprintf(stderr, "connection %d: %s at %.3f s\n", (int)(c - connections), why,
            (double)(now_us() - started_us) / 1e6);
    close(c->fd);
    c->fd = -1;
}

static void receive(struct connection *c)
{
    uint64_t at = mode == BULK ? 0 : c->got;            /* the letters of BULK are counted only */
    if (at == BUFFER_BYTES) {
        lose(c, "an endless answer");
        return;
    }
    ssize_t got = recv(c->fd, c->buffer + at, BUFFER_BYTES - at, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got == 0 && mode == HTTP) {
        finish(c);
        return;
    }
    if (got <= 0) {
        lose(c, got ? strerror(errno) : "end of file");
        return;
    }
    c->got += (uint64_t)got;
    if (mode == BULK)
        bulk_bytes += (uint64_t)got;
    if (c->need ? c->got >= c->need : mode != HTTP && c->buffer[c->got - 1] == '\n')
        finish(c);
}

static void connected(struct connection *c)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) {
        errs++;
        if (mode != HTTP) {
            lose(c, strerror(error));
            return;
        }
        close(c->fd);
        usleep(RETRY_US);
        open_connection(c);
        return;
    }
    c->connecting = 0;
    send_request(c);
}

static void run(double seconds)
{
    struct pollfd *polled = calloc((size_t)connection_count, sizeof *polled);
    if (polled == NULL)
        die("calloc");
    started_us = last_us = now_us();
    uint64_t end_us = started_us + (uint64_t)(seconds * 1e6);
    for (int i = 0; i < connection_count; i++)
        begin(&connections[i]);
    while (now_us() < end_us && live) {
        for (int i = 0; i < connection_count; i++)
            polled[i] = (struct pollfd){connections[i].fd, connections[i].connecting ? POLLOUT : POLLIN, 0};
        if (poll(polled, (nfds_t)connection_count, POLL_MS) <= 0)
            continue;
        for (int i = 0; i < connection_count; i++) {
            if (!polled[i].revents)
                continue;
            if (connections[i].connecting)
                connected(&connections[i]);
            else
                receive(&connections[i]);
        }
    }
    free(polled);
}

/* ---- the report ---- */

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static unsigned long long percentile(unsigned percent)
{
    return answer_count ? latencies[(answer_count - 1) * percent / 100] : 0;
}

static void report(double seconds)
{
    int stuck = 0;
    for (int i = 0; i < connection_count; i++)
        stuck += connections[i].fd >= 0 && now_us() - connections[i].sent_us > STUCK_US;
    if (answer_count)
        qsort(latencies, answer_count, sizeof *latencies, ascending);
    printf("mode=%s conns=%d secs=%.1f n=%zu rate=%.1f/s lat_us min=%llu p50=%llu p90=%llu p99=%llu "
           "max=%llu maxgap_us=%llu MBps=%.2f errs=%ld resets=%ld bad=%ld stuck=%d\n",
           mode_names[mode], connection_count, seconds, answer_count, (double)answer_count / seconds,
           percentile(0), percentile(50), percentile(90), percentile(99), percentile(100),
           (unsigned long long)longest_gap_us, (double)bulk_bytes / seconds / 1e6, errs, resets, bad, stuck);
}

static int usage(void)
{
    fprintf(stderr, "usage: loadgen HOST PORT echo|inc|time|bulk|http CONNECTIONS SECONDS [ARGUMENT [RAWFILE]]\n");
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 6 || argc > 8)
        return usage();
    while (mode < MODES && strcmp(argv[3], mode_names[mode]))
        mode++;
    connection_count = live = atoi(argv[4]);
    double seconds = atof(argv[5]);
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    if (argc > 6)
        argument = strtoul(argv[6], NULL, 10);
    if (mode == MODES || !inet_aton(argv[1], &server.sin_addr) || seconds <= 0 || argument == 0 ||
        connection_count < 1 || connection_count > CONNECTION_LIMIT || (mode == ECHO && argument > BUFFER_BYTES))
        return usage();
    if (argc > 7 && (raw = fopen(argv[7], "w")) == NULL)
        die(argv[7]);
    for (int i = 0; i < BUFFER_BYTES; i++)
        pattern[i] = (char)('A' + i % 53);
    connections = calloc((size_t)connection_count, sizeof *connections);
    if (connections == NULL)
        die("calloc");
    for (int i = 0; i < connection_count; i++)      /* slots of our own, so that two clients may run */
        connections[i].slot = ((unsigned)getpid() * 7 + (unsigned)i) % SLOTS;
    run(seconds);
    report((double)(now_us() - started_us) / 1e6);
    if (raw && fclose(raw))
        die(argv[7]);
    return answer_count == 0 || bad > 0;
}
