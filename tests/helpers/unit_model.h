/* Models whose tensors lie awkwardly in their files: any order, several shards, odd offsets,
 * fillers between them, a dtype for each. Include after cmocka.h. Fixed seeds. */
#ifndef PS_TESTS_HELPERS_UNIT_MODEL_H
#define PS_TESTS_HELPERS_UNIT_MODEL_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/dtype.h"
#include "runtime/base/file.h"
#include "runtime/base/rng.h"
#include "runtime/model/config.h"
#include "runtime/model/params.h"
#include "runtime/model/safetensors.h"
#include "runtime/model/unit_source.h"

struct unit_model {
    const char *dir;
    bool tied, bias;
    int n_layer, hidden, vocab;
    enum ps_dtype dtype[3]; /* parameter i has dtype[i % 3] */
    int shards;             /* 1 or more: parameter i lies in shard i % shards */
    bool shuffle;           /* tensors of a file in another order than the table's */
    size_t header_pad;      /* spaces after the header: every offset moves by as much */
    size_t filler;          /* bytes of an unused U8 tensor before every fourth tensor; 0: none */
    const char *link_dir;   /* not NULL: the files lie here and dir has symbolic links */
};

static inline void unit_model_table(const struct unit_model *m, struct ps_param_table *table)
{
    char text[1024];
    struct ps_error err = {0};
    struct ps_model_config cfg;
    snprintf(text, sizeof text,
             "{\"model_type\":\"llama\",\"hidden_size\":%d,\"intermediate_size\":%d,"
             "\"num_hidden_layers\":%d,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
             "\"head_dim\":4,\"vocab_size\":%d,\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":%s,"
             "\"attention_bias\":%s,\"mlp_bias\":%s,\"hidden_act\":\"silu\",\"bos_token_id\":1,"
             "\"eos_token_id\":2,\"max_position_embeddings\":64,\"rope_theta\":100.0}",
             m->hidden, 2 * m->hidden + 1, m->n_layer, m->vocab, m->tied ? "true" : "false",
             m->bias ? "true" : "false", m->bias ? "true" : "false");
    if (ps_model_config_parse(&cfg, text, strlen(text), "config.json", &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(ps_param_table_create(table, &cfg), 0);
}

static inline void unit_model_data(void *dst, enum ps_dtype dtype, size_t n, uint64_t seed)
{
    struct ps_rng_key key = {.seed = seed};
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = 2.0f * ps_rng_uniform(&key, i) - 1.0f;
    ps_dtype_convert(dst, dtype, x, PS_DTYPE_F32, n);
    free(x);
}

/* One file with the parameters of a shard. */
static inline void unit_model_shard(const struct unit_model *m, const struct ps_param_table *table,
                                    const char *path, int shard)
{
    size_t *order = calloc(table->count, sizeof *order);
    size_t count = 0, text_max = 1024 + table->count * 512 + m->header_pad;
    char *text = malloc(text_max);
    assert_non_null(order);
    assert_non_null(text);
    for (size_t i = 0; i < table->count; i++)
        if ((int)i % m->shards == shard)
            order[count++] = i;
    for (size_t i = 0; m->shuffle && i + 1 < count; i++) {
        struct ps_rng_key key = {.seed = 77};
        size_t j = i + ps_rng_u32(&key, i) % (count - i);
        size_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    int len = snprintf(text, text_max, "{\"__metadata__\":{\"format\":\"pt\"}");
    size_t at = 0;
    for (size_t k = 0; k < count; k++) {
        const struct ps_param_info *p = &table->param[order[k]];
        enum ps_dtype dtype = m->dtype[order[k] % 3];
        if (m->filler && k % 4 == 0) {
            len += snprintf(text + len, text_max - (size_t)len,
                            ",\"filler.%zu\":{\"dtype\":\"U8\",\"shape\":[%zu],"
                            "\"data_offsets\":[%zu,%zu]}",
                            k, m->filler, at, at + m->filler);
            at += m->filler;
        }
        char shape[64];
        if (p->rank == 2)
            snprintf(shape, sizeof shape, "%" PRId64 ",%" PRId64, p->shape[0], p->shape[1]);
        else
            snprintf(shape, sizeof shape, "%" PRId64, p->shape[0]);
        size_t bytes = p->elements * ps_dtype_size(dtype);
        len += snprintf(text + len, text_max - (size_t)len,
                        ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                        p->name, ps_dtype_name(dtype), shape, at, at + bytes);
        at += bytes;
    }
    text[len++] = '}';
    memset(text + len, ' ', m->header_pad);
    uint64_t header = (uint64_t)len + m->header_pad;
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)(header >> (8 * i));
    assert_int_equal(fwrite(prefix, 1, 8, f), 8);
    assert_int_equal(fwrite(text, 1, header, f), header);
    for (size_t k = 0; k < count; k++) {
        const struct ps_param_info *p = &table->param[order[k]];
        enum ps_dtype dtype = m->dtype[order[k] % 3];
        size_t bytes = p->elements * ps_dtype_size(dtype);
        size_t room = bytes > m->filler ? bytes : m->filler;
        void *data = malloc(room + 1);
        assert_non_null(data);
        memset(data, 0xff, room);
        if (m->filler && k % 4 == 0)
            assert_int_equal(fwrite(data, 1, m->filler, f), m->filler);
        unit_model_data(data, dtype, p->elements, 100 + order[k]);
        assert_int_equal(fwrite(data, 1, bytes, f), bytes);
        free(data);
    }
    assert_int_equal(fclose(f), 0);
    free(text);
    free(order);
}

static inline void unit_model_index(const struct unit_model *m, const struct ps_param_table *table)
{
    char path[256];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", m->dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fprintf(f, "{\"weight_map\":{");
    for (size_t i = 0; i < table->count; i++)
        fprintf(f, "%s\"%s\":\"part-%d.safetensors\"", i ? "," : "", table->param[i].name,
                (int)i % m->shards);
    fprintf(f, "}}");
    assert_int_equal(fclose(f), 0);
}

/* Write the model's files (no config.json) and make its parameter table. */
static inline void unit_model_write(const struct unit_model *m, struct ps_param_table *table)
{
    char path[256], link[256];
    struct ps_error err = {0};
    unit_model_table(m, table);
    assert_int_equal(ps_file_remove_tree(m->dir, &err), 0);
    assert_int_equal(ps_file_make_dirs(m->dir, &err), 0);
    if (m->link_dir)
        assert_int_equal(ps_file_make_dirs(m->link_dir, &err), 0);
    for (int s = 0; s < m->shards; s++) {
        char name[32] = "model.safetensors";
        if (m->shards > 1)
            snprintf(name, sizeof name, "part-%d.safetensors", s);
        snprintf(path, sizeof path, "%s/%s", m->dir, name);
        if (!m->link_dir) {
            unit_model_shard(m, table, path, s);
            continue;
        }
        /* a link beside the directory, as in a hub's snapshots */
        snprintf(link, sizeof link, "../%s/blob-%d", m->link_dir, s);
        assert_int_equal(symlink(link, path), 0);
        snprintf(link, sizeof link, "%s/blob-%d", m->link_dir, s);
        unit_model_shard(m, table, link, s);
    }
    if (m->shards > 1)
        unit_model_index(m, table);
}

/* What the disk lane does: read every extent of a unit into a new raw slot (free it), whose other
 * bytes are 0xee. */
static inline unsigned char *unit_model_read(const struct ps_unit_source *u,
                                             const struct ps_st_set *files)
{
    unsigned char *raw = aligned_alloc(4096, (size_t)u->raw_bytes);
    assert_non_null(raw);
    memset(raw, 0xee, (size_t)u->raw_bytes);
    for (uint32_t i = 0; i < u->extent_count; i++) {
        const struct ps_extent *e = &u->extent[i];
        int fd = ps_st_fd(ps_st_set_file(files, e->file));
        ssize_t n = pread(fd, raw + e->raw_offset, (size_t)e->bytes, (off_t)e->offset);
        assert_int_equal(n, e->expect); /* a short read at the end of the file only */
    }
    return raw;
}

#endif
