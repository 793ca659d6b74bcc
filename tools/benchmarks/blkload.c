/* blkload: one request after the other on a block device, past the guest's page cache.
 *
 *     blkload DEVICE read|write seq|rand BLOCK COUNT
 *
 * Offsets are multiples of BLOCK within the device; random ones come from a fixed generator, so that
 * every run touches the same blocks.  Prints "done COUNT".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: blkload DEVICE read|write seq|rand BLOCK COUNT\n");
        return 2;
    }
    int write = !strcmp(argv[2], "write"), random = !strcmp(argv[3], "rand");
    size_t block = strtoul(argv[4], NULL, 10);
    unsigned long count = strtoul(argv[5], NULL, 10);
    int fd = open(argv[1], (write ? O_WRONLY : O_RDONLY) | O_DIRECT);
    if (fd < 0)
        die(argv[1]);
    off_t size = lseek(fd, 0, SEEK_END);
    uint64_t blocks = (uint64_t)size / block, state = 1;
    void *buffer;
    if (blocks == 0 || posix_memalign(&buffer, 4096, block))
        die("a buffer of one block");
    memset(buffer, 'x', block);
    for (unsigned long i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;    /* Knuth's MMIX */
        off_t at = (off_t)((random ? (state >> 33) % blocks : i % blocks) * block);
        ssize_t done = write ? pwrite(fd, buffer, block, at) : pread(fd, buffer, block, at);
        if (done != (ssize_t)block)
            die(argv[2]);
    }
    printf("done %lu\n", count);
    return 0;
}
