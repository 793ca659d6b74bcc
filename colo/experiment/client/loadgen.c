/* loadgen: a closed-loop client that judges every answer.
 *
 *     loadgen HOST PORT MODE CONNECTIONS SECONDS [ARGUMENT [RAWFILE]]
 *
 * Each connection has one request in flight and sends the next as soon as the answer is complete.
 *
 *     echo   ARGUMENT bytes (64), numbered, that must come back            port 7
 *     inc    "INC slot", one slot a connection; each answer must be one more than the last   port 7000
 *     time   "TIME": an answer that differs between replicas, and only grows                 port 7000
 *     bulk   "BULK ARGUMENT": that many letters and a newline              port 7000
 *     take   "TAKE ARGUMENT" and that many letters, which the guest judges                   port 7000
 *     http   GET /1k.txt on a new connection each time                     port 80
 *     incr   INCR of a key of its own, as Redis speaks; judged as inc      port 6379
 *
 * Prints one line: what was asked, answers, rate, latency (us) as minimum, median, 90th and 99th
 * percentile, maximum; the longest time without any answer; and what went wrong:
 *     errs    connections that could not be made, requests that could not be sent
 *     resets  connections that ended while an answer was due, or never came about
 *     bad     answers that are not what they must be: wrong, lost or repeated (judge.c)
 *     stuck   connections that at the end have waited for more than a second
 * RAWFILE gets a struct record for each answer, and then "begun" is printed as soon as every connection
 * has had one.  SIGTERM ends the load early, and in order.
 * Exit status: 0 if there was an answer and nothing was bad, 1 otherwise, 2 for a usage error.
 */
#define _GNU_SOURCE
#include "loadgen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTION_LIMIT = 1024,
    SLOTS = 4096,                /* as in kvd.c */
    POLL_MS = 100,
    RETRY_US = 1000,             /* a refused connection is tried again, but not as fast as can be */
};
#define STUCK_NS 1000000000ull

static const char *const mode_names[MODES] = {"echo", "inc", "time", "bulk", "take", "http", "incr"};

/* A line of RAWFILE, in the order of bytes of this host. */
struct record {
    uint64_t at_ns, latency_ns;  /* CLOCK_MONOTONIC when the answer was complete; how long it took */
    uint32_t connection, verdict;
};

static struct sockaddr_in server;
enum mode mode;
unsigned long argument = 64;
static struct connection *connections;
static int connection_count, live, unanswered;
char pattern[PATTERN_BYTES];
static long errs, resets, verdicts[VERDICTS];
static uint64_t started_ns, last_ns, longest_gap_ns, bulk_bytes;
static uint64_t *latencies;
static size_t answer_count, latency_room = 1 << 16;
static FILE *raw;
static volatile sig_atomic_t told_to_end;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static double since_start_s(void)
{
    return (double)(now_ns() - started_ns) / 1e9;
}

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

static void end_in_order(int signal_number)
{
    (void)signal_number;
    told_to_end = 1;
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

/* Send what is left of the request, as far as the socket takes it. */
static void push(struct connection *c)
{
    while (c->written < c->head_length + c->body_length) {
        uint64_t body_at = c->written > c->head_length ? c->written - c->head_length : 0;
        uint64_t offset = mode == ECHO ? c->head_length + body_at : body_at % PATTERN_BYTES;
        struct iovec parts[2] = {
            {c->head + least(c->written, c->head_length), c->head_length - least(c->written, c->head_length)},
            {pattern + offset, least(c->body_length - body_at, PATTERN_BYTES - offset)},
        };
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            errs += errno != EAGAIN && errno != EINTR;      /* then recv says more */
            return;
        }
        c->written += (uint64_t)sent;
    }
}

static void send_request(struct connection *c)
{
    size_t length;
    char text[NUMBER_BYTES + 1];
    c->got = c->need = c->body_length = c->written = 0;
    c->differs = 0;
    c->number++;
    switch (mode) {
    case ECHO:
        length = least(NUMBER_BYTES, argument);
        sprintf(text, "%016llx", (unsigned long long)c->number);
        memcpy(c->head, text + NUMBER_BYTES - length, length);
        c->body_length = argument - length;
        c->need = argument;
        break;
    case INC:
        length = (size_t)sprintf(c->head, "INC %u\n", c->slot);
        break;
    case TIME:
        length = (size_t)sprintf(c->head, "TIME\n");
        break;
    case BULK:
        length = (size_t)sprintf(c->head, "BULK %lu\n", argument);
        c->need = argument + 1;
        break;
    case TAKE:
        length = (size_t)sprintf(c->head, "TAKE %lu\n", argument);
        c->body_length = argument;
        break;
    case INCR:
        sprintf(text, "load:%u", c->slot);
        length = (size_t)sprintf(c->head, "*2\r\n$4\r\nINCR\r\n$%zu\r\n%s\r\n", strlen(text), text);
        break;
    default:
        length = (size_t)sprintf(c->head, "GET /1k.txt HTTP/1.0\r\n\r\n");
    }
    c->head_length = length;
    if (mode != HTTP)            /* an HTTP request is measured from the start of its connection */
        c->sent_ns = now_ns();
    push(c);
}

static void begin(struct connection *c)
{
    c->sent_ns = now_ns();
    open_connection(c);
}

/* ---- answers ---- */

static void count_answer(struct connection *c, enum verdict verdict)
{
    uint64_t now = now_ns();
    struct record record = {now, now - c->sent_ns, (uint32_t)(c - connections), verdict};
    if (now - last_ns > longest_gap_ns)
        longest_gap_ns = now - last_ns;
    last_ns = now;
    if (answer_count == latency_room || latencies == NULL) {
        latency_room *= 2;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (latencies == NULL)
            die("realloc");
    }
    latencies[answer_count++] = record.latency_ns;
    verdicts[verdict]++;
    if (raw && fwrite(&record, sizeof record, 1, raw) != 1)
        die("RAWFILE");
    if (!c->answered && --unanswered == 0 && raw) {
        puts("begun");
        fflush(stdout);
    }
    c->answered = 1;
}

/* A whole answer is here: judge it, and ask again. */
static void finish(struct connection *c)
{
    enum verdict verdict = judge(c);
    if (mode == TAKE && verdict == RIGHT)
        bulk_bytes += argument;
    count_answer(c, verdict);
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
    fprintf(stderr, "connection %d: %s at %.3f s\n", (int)(c - connections), why, since_start_s());
    close(c->fd);
    c->fd = -1;
}

static void receive(struct connection *c)
{
    uint64_t at = mode == BULK ? 0 : c->got;
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
    if (mode == BULK) {
        look_at_letters(c, (uint64_t)got);
        bulk_bytes += (uint64_t)got;
    }
    c->got += (uint64_t)got;
    if (c->need ? c->got >= c->need : mode != HTTP && memchr(c->buffer + at, '\n', (size_t)got))
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

static short wanted_events(const struct connection *c)
{
    if (c->connecting)
        return POLLOUT;
    return c->written < c->head_length + c->body_length ? POLLIN | POLLOUT : POLLIN;
}

static void run(double seconds)
{
    struct pollfd *polled = calloc((size_t)connection_count, sizeof *polled);
    if (polled == NULL)
        die("calloc");
    started_ns = last_ns = now_ns();
    uint64_t end_ns = started_ns + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < connection_count; i++)
        begin(&connections[i]);
    while (now_ns() < end_ns && live && !told_to_end) {
        for (int i = 0; i < connection_count; i++)
            polled[i] = (struct pollfd){connections[i].fd, wanted_events(&connections[i]), 0};
        if (poll(polled, (nfds_t)connection_count, POLL_MS) <= 0)
            continue;
        for (int i = 0; i < connection_count; i++) {
            struct connection *c = &connections[i];
            if (!polled[i].revents)
                continue;
            if (c->connecting) {
                connected(c);
                continue;
            }
            if (polled[i].revents & POLLOUT)
                push(c);
            if (polled[i].revents & ~POLLOUT)
                receive(c);
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

static unsigned long long percentile_us(unsigned percent)
{
    return answer_count ? latencies[(answer_count - 1) * percent / 100] / 1000 : 0;
}

static long bad(void)
{
    return verdicts[WRONG] + verdicts[LOST] + verdicts[REPEATED];
}

static void report(double seconds)
{
    int stuck = 0;
    for (int i = 0; i < connection_count; i++)
        stuck += connections[i].fd >= 0 && now_ns() - connections[i].sent_ns > STUCK_NS;
    if (answer_count)
        qsort(latencies, answer_count, sizeof *latencies, ascending);
    printf("mode=%s conns=%d secs=%.1f n=%zu rate=%.1f/s lat_us min=%llu p50=%llu p90=%llu p99=%llu "
           "max=%llu maxgap_us=%llu MBps=%.2f errs=%ld resets=%ld bad=%ld wrong=%ld lost=%ld repeated=%ld "
           "stuck=%d\n",
           mode_names[mode], connection_count, seconds, answer_count, (double)answer_count / seconds,
           percentile_us(0), percentile_us(50), percentile_us(90), percentile_us(99), percentile_us(100),
           (unsigned long long)longest_gap_ns / 1000, (double)bulk_bytes / seconds / 1e6, errs, resets, bad(),
           verdicts[WRONG], verdicts[LOST], verdicts[REPEATED], stuck);
}

static int usage(void)
{
    fprintf(stderr, "usage: loadgen HOST PORT echo|inc|time|bulk|take|http|incr CONNECTIONS SECONDS "
                    "[ARGUMENT [RAWFILE]]\n");
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 6 || argc > 8)
        return usage();
    while (mode < MODES && strcmp(argv[3], mode_names[mode]))
        mode++;
    connection_count = live = unanswered = atoi(argv[4]);
    double seconds = atof(argv[5]);
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    if (argc > 6)
        argument = strtoul(argv[6], NULL, 10);
    if (mode == MODES || !inet_aton(argv[1], &server.sin_addr) || seconds <= 0 || argument == 0 ||
        connection_count < 1 || connection_count > CONNECTION_LIMIT || (mode == ECHO && argument > BUFFER_BYTES))
        return usage();
    if (argc > 7 && (raw = fopen(argv[7], "wb")) == NULL)
        die(argv[7]);
    for (int i = 0; i < PATTERN_BYTES; i++)
        pattern[i] = (char)('a' + i % 26);
    connections = calloc((size_t)connection_count, sizeof *connections);
    if (connections == NULL)
        die("calloc");
    for (int i = 0; i < connection_count; i++)      /* slots of our own, so that two clients may run */
        connections[i].slot = ((unsigned)getpid() * 7 + (unsigned)i) % SLOTS;
    signal(SIGTERM, end_in_order);
    run(seconds);
    report((double)(now_ns() - started_ns) / 1e9);
    if (raw && fclose(raw))
        die(argv[7]);
    return answer_count == 0 || bad() > 0;
}
