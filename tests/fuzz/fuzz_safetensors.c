/* Fuzz target: a whole safetensors file. The first byte says how many zero bytes of data follow the
 * header when the input is taken as a header alone (even), or that the input is the file (odd). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <stdio.h>

#include "runtime/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put_all(int fd, const void *data, size_t len)
{
    if (len > 0 && write(fd, data, len) != (ssize_t)len)
        abort();
}

static void use(const struct ps_st_file *f)
{
    for (size_t i = 0; i < ps_st_count(f); i++) {
        const struct ps_st_tensor *t = ps_st_at(f, i);
        if (ps_st_find(f, t->name) != t || t->bytes > 1 << 20)
            abort();
        unsigned char *buf = malloc(2 * t->bytes + 1);
        if (!buf)
            abort();
        if (ps_st_read(f, t, 0, t->bytes, buf, NULL) != 0)
            abort();
        if (t->dtype >= 0 && t->dtype <= PS_DTYPE_F16 &&
            ps_st_read_as(f, t, PS_DTYPE_F32, buf, NULL) != 0)
            abort();
        free(buf);
    }
    PS_IGNORE(ps_st_metadata(f, "format") != NULL, "only that it does not crash");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const unsigned char zero[128];
    if (size < 1)
        return 0;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0)
        abort();
    uint64_t header_len = size - 1;
    if (data[0] % 2 == 0) {
        unsigned char prefix[8];
        for (int i = 0; i < 8; i++)
            prefix[i] = (unsigned char)(header_len >> (8 * i));
        put_all(fd, prefix, 8);
    }
    put_all(fd, data + 1, size - 1);
    if (data[0] % 2 == 0)
        put_all(fd, zero, data[0] / 2);
    char path[64];
    if (snprintf(path, sizeof path, "/proc/self/fd/%d", fd) < 0)
        abort();
    struct ps_st_file *f = NULL;
    struct ps_error err = {0};
    int ret = ps_st_open(&f, path, &err);
    if (ret == 0)
        use(f);
    else if (!err.message[0] || strcmp(err.file, path) != 0)
        abort();
    ps_st_close(f);
    close(fd);
    return 0;
}
