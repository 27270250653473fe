/* What the safetensors files share: the open file and its header parser. */
#ifndef PS_MODEL_SAFETENSORS_INTERNAL_H
#define PS_MODEL_SAFETENSORS_INTERNAL_H

#include <stdint.h>
#include <time.h>

#include "runtime/model/safetensors.h"

#define PS_ST_HEADER_MAX 100000000u
#define PS_ST_TENSOR_MAX 1000000u
#define PS_ST_INT_MAX ((uint64_t)1 << 53)

struct ps_st_pair {
    const char *key;
    const char *value;
};

/* Constant after ps_st_open. */
struct ps_st_file {
    int fd;
    char *path;
    uint64_t size;
    struct timespec mtime;
    char *header; /* the header's text; strings are unescaped and NUL-terminated in place */
    struct ps_st_tensor *tensor;         /* (count,) in ascending order of offset */
    const struct ps_st_tensor **by_name; /* (count,) in ascending order of name */
    size_t count;
    struct ps_st_pair *metadata; /* (metadata_count,) in ascending order of key */
    size_t metadata_count;
};

/* Parse f->header, `len` bytes and a NUL, into f->tensor, f->by_name and f->metadata, whose offsets
 * are made absolute with data_begin; check them against data_len, the bytes that follow the header.
 * On failure the arrays made so far stay in f for ps_st_close. */
int ps__st_parse_header(struct ps_st_file *f, size_t len, uint64_t data_begin, uint64_t data_len,
                        struct ps_error *err) PS_WARN_UNUSED;

#endif
