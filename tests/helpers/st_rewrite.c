/* Write the tensors of a model's file again, awkwardly, for shell tests.
 *
 *   st_rewrite IN.safetensors OUT_DIR DTYPE SHARDS PAD
 *
 * DTYPE is F32, F16, BF16 or mixed (in turns). The tensors come in a shuffled order, in SHARDS
 * files (1: model.safetensors, else part-N.safetensors and an index), PAD spaces after each header,
 * so that an odd PAD puts all data at odd offsets. The same bytes everywhere. Exit 2 on trouble. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/dtype.h"
#include "runtime/base/rng.h"
#include "runtime/model/safetensors.h"

#define HEADER_MAX ((size_t)1 << 20)

struct job {
    const struct ps_st_file *in;
    const char *dir, *dtype;
    size_t shards, pad;
    size_t *order; /* of the tensors */
};

static enum ps_dtype dtype_of(const struct job *j, size_t tensor)
{
    static const enum ps_dtype turn[] = {PS_DTYPE_F16, PS_DTYPE_F32, PS_DTYPE_BF16};
    for (int i = 0; i < 3; i++)
        if (strcmp(j->dtype, ps_dtype_name(turn[i])) == 0)
            return turn[i];
    return turn[tensor % 3];
}

static FILE *create(const struct job *j, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", j->dir, name);
    FILE *f = fopen(path, "wb");
    if (!f)
        perror(path);
    return f;
}

static void shard_name(const struct job *j, size_t shard, char *name, size_t size)
{
    if (j->shards > 1)
        snprintf(name, size, "part-%zu.safetensors", shard);
    else
        snprintf(name, size, "model.safetensors");
}

static void print(char *text, size_t *at, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text + *at, HEADER_MAX - *at, fmt, args);
    va_end(args);
    *at = n < 0 || *at + (size_t)n >= HEADER_MAX ? HEADER_MAX - 1 : *at + (size_t)n;
}

static size_t make_header(const struct job *j, size_t shard, char *text)
{
    size_t at = 0;
    size_t offset = 0;
    print(text, &at, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t k = shard; k < ps_st_count(j->in); k += j->shards) {
        const struct ps_st_tensor *t = ps_st_at(j->in, j->order[k]);
        enum ps_dtype d = dtype_of(j, j->order[k]);
        size_t bytes = (size_t)t->elements * ps_dtype_size(d);
        print(text, &at, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, ps_dtype_name(d));
        for (int i = 0; i < t->rank; i++)
            print(text, &at, "%s%" PRId64, i ? "," : "", t->shape[i]);
        print(text, &at, "],\"data_offsets\":[%zu,%zu]}", offset, offset + bytes);
        offset += bytes;
    }
    print(text, &at, "}%*s", (int)j->pad, "");
    return at;
}

static int write_tensor(const struct job *j, size_t tensor, FILE *f)
{
    const struct ps_st_tensor *t = ps_st_at(j->in, tensor);
    enum ps_dtype d = dtype_of(j, tensor);
    struct ps_error err = {0};
    void *data = malloc((size_t)t->elements * ps_dtype_size(d) + 1);
    int ret = data ? ps_st_read_as(j->in, t, d, data, &err) : -1;
    if (ret < 0)
        fprintf(stderr, "st_rewrite: %s\n", err.message);
    else if (fwrite(data, ps_dtype_size(d), (size_t)t->elements, f) != (size_t)t->elements)
        ret = -1;
    free(data);
    return ret;
}

static int write_shard(const struct job *j, size_t shard, char *text)
{
    char name[64];
    shard_name(j, shard, name, sizeof name);
    FILE *f = create(j, name);
    if (!f)
        return -1;
    uint64_t header = make_header(j, shard, text);
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)(header >> (8 * i));
    int ret = fwrite(prefix, 1, 8, f) == 8 && fwrite(text, 1, header, f) == header ? 0 : -1;
    for (size_t k = shard; ret == 0 && k < ps_st_count(j->in); k += j->shards)
        ret = write_tensor(j, j->order[k], f);
    return fclose(f) == 0 ? ret : -1;
}

static int write_index(const struct job *j)
{
    FILE *f = create(j, "model.safetensors.index.json");
    if (!f)
        return -1;
    fprintf(f, "{\"weight_map\":{");
    for (size_t k = 0; k < ps_st_count(j->in); k++) {
        char name[64];
        shard_name(j, k % j->shards, name, sizeof name);
        fprintf(f, "%s\"%s\":\"%s\"", k ? "," : "", ps_st_at(j->in, j->order[k])->name, name);
    }
    fprintf(f, "}}");
    return fclose(f) == 0 ? 0 : -1;
}

static int rewrite(struct job *j)
{
    size_t n = ps_st_count(j->in);
    struct ps_rng_key key = {.seed = 5};
    char *text = malloc(HEADER_MAX);
    j->order = calloc(n + 1, sizeof *j->order);
    int ret = text && j->order ? 0 : -1;
    for (size_t i = 0; ret == 0 && i < n; i++)
        j->order[i] = i;
    for (size_t i = 0; ret == 0 && i + 1 < n; i++) {
        size_t k = i + ps_rng_u32(&key, i) % (n - i);
        size_t swap = j->order[i];
        j->order[i] = j->order[k];
        j->order[k] = swap;
    }
    for (size_t s = 0; ret == 0 && s < j->shards; s++)
        ret = write_shard(j, s, text);
    if (ret == 0 && j->shards > 1)
        ret = write_index(j);
    free(text);
    free(j->order);
    return ret;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: st_rewrite IN.safetensors OUT_DIR DTYPE SHARDS PAD\n");
        return 2;
    }
    struct ps_st_file *in;
    struct ps_error err = {0};
    if (ps_st_open(&in, argv[1], &err) < 0) {
        fprintf(stderr, "st_rewrite: %s\n", err.message);
        return 2;
    }
    struct job j = {.in = in,
                    .dir = argv[2],
                    .dtype = argv[3],
                    .shards = (size_t)strtoul(argv[4], NULL, 10),
                    .pad = (size_t)strtoul(argv[5], NULL, 10)};
    int ret = j.shards > 0 ? rewrite(&j) : -1;
    ps_st_close(in);
    return ret < 0 ? 2 : 0;
}
