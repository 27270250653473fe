/* List the device code inside an object or shared object, for shell tests, where cuobjdump is
 * absent.
 *
 *   fatbin_list FILE    one line an entry: "elf-ARCH" (machine code) or "ptx-ARCH"
 *
 * A fat binary is a 16-byte header (magic, version, header bytes, content bytes) and entries, each
 * a header (kind, version, header bytes, content bytes, ..., architecture at byte 28) and its
 * content, as `cuobjdump --list-elf --list-ptx` reads them (12 of each in a build of ours, counts
 * compared). Exit 1 if there is none, 2 for a bad file. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0xBA55ED50u
#define HEADER_BYTES 16
#define ENTRY_BYTES_MIN 32
#define KIND_PTX 1
#define KIND_ELF 2

static uint64_t number(const unsigned char *at, int bytes)
{
    uint64_t x = 0;
    for (int i = bytes - 1; i >= 0; i--)
        x = x << 8 | at[i];
    return x;
}

/* The whole file, size bytes; NULL when it cannot be read. */
static unsigned char *read_whole(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    unsigned char *data = NULL;
    long end = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
    if (end > 0 && fseek(f, 0, SEEK_SET) == 0 && (data = malloc((size_t)end)) &&
        fread(data, 1, (size_t)end, f) != (size_t)end) {
        free(data);
        data = NULL;
    }
    fclose(f);
    *size = data ? (size_t)end : 0;
    return data;
}

/* Entries of one fat binary's content; how many, or -1 when they do not fit in it. */
static int list_entries(const unsigned char *at, uint64_t bytes)
{
    int count = 0;
    for (uint64_t o = 0; o < bytes; count++) {
        if (bytes - o < ENTRY_BYTES_MIN)
            return -1;
        const unsigned char *e = at + o;
        uint64_t kind = number(e, 2), head = number(e + 4, 4), size = number(e + 8, 8);
        if (head < ENTRY_BYTES_MIN || head > bytes - o || size > bytes - o - head)
            return -1;
        if (kind == KIND_PTX || kind == KIND_ELF)
            printf("%s-%u\n", kind == KIND_PTX ? "ptx" : "elf", (unsigned)number(e + 28, 4));
        else
            printf("kind%u-%u\n", (unsigned)kind, (unsigned)number(e + 28, 4));
        o += head + size;
    }
    return count;
}

int main(int argc, char **argv)
{
    size_t size = 0, at = 0;
    int count = 0;
    unsigned char *data = argc == 2 ? read_whole(argv[1], &size) : NULL;
    if (!data) {
        fprintf(stderr, "fatbin_list: cannot read %s\n", argc == 2 ? argv[1] : "FILE");
        return 2;
    }
    while (size - at >= HEADER_BYTES) {
        const unsigned char *h = data + at;
        uint64_t head = number(h + 6, 2), bytes = number(h + 8, 8);
        bool fat = number(h, 4) == MAGIC && number(h + 4, 2) == 1 && head >= HEADER_BYTES &&
                   head <= size - at && bytes <= size - at - head;
        int n = fat ? list_entries(h + head, bytes) : 0;
        if (n < 0) {
            fprintf(stderr, "fatbin_list: %s: a broken fat binary at byte %zu\n", argv[1], at);
            free(data);
            return 2;
        }
        count += n;
        at += fat ? (size_t)(head + bytes) : 8; /* they are 8-byte aligned */
    }
    free(data);
    return count > 0 ? 0 : 1;
}
