/* Streaming layers of every size, from less than 1 KiB to more than 64 MiB, six of them and an
 * embedding through one, two and three slots, against the resident trainer, bit for bit.
 *
 * The large model needs 0.4 GiB of disk and 0.9 GiB of memory; the test is skipped where they are
 * not free. PENSTOCK_LARGE=0 skips it too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "optim/optimizers.h"
#include "peft/lora.h"
#include "tests/helpers/stream_io.h"
#include "tests/helpers/tiny_model.h"

enum { LAYERS = 6, VOCAB = 32 };
#define PIECE_ELEMENTS ((size_t)1 << 18)

struct size {
    const char *dir;
    int hidden, inter, heads;
    enum ps_dtype stored, run;
};

static void write_config(const struct size *m, struct ps_model_config *cfg)
{
    char text[1024];
    char path[256];
    struct ps_error err = {0};
    int len =
        snprintf(text, sizeof text,
                 "{\"model_type\":\"llama\",\"hidden_size\":%d,\"intermediate_size\":%d,"
                 "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
                 "\"vocab_size\":%d,\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":false,"
                 "\"hidden_act\":\"silu\",\"bos_token_id\":1,\"eos_token_id\":2,"
                 "\"max_position_embeddings\":64,\"rope_theta\":100.0}",
                 m->hidden, m->inter, LAYERS, m->heads, m->heads, VOCAB);
    assert_true(len > 0 && (size_t)len < sizeof text);
    assert_int_equal(ps_file_make_dirs(m->dir, &err), 0);
    snprintf(path, sizeof path, "%s/config.json", m->dir);
    assert_int_equal(ps_file_write(path, text, (size_t)len, &err), 0);
    if (ps_model_config_parse(cfg, text, (size_t)len, path, &err) < 0)
        fail_msg("%s", err.message);
}

/* Each tensor repeats one piece of random values, beginning at a place of its own: layers differ,
 * and writing costs little more than the bytes. */
static void write_tensor(struct ps_st_writer *w, const struct ps_param_info *p, const float *piece,
                         void *raw, enum ps_dtype stored, size_t number)
{
    struct ps_error err = {0};
    float scale = p->rank == 1 ? 0.2f : 1.0f / sqrtf((float)p->shape[p->rank - 1]);
    float *x = malloc(PIECE_ELEMENTS * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < PIECE_ELEMENTS; i++)
        x[i] = scale * piece[(i + 7919 * number) % PIECE_ELEMENTS] + (p->rank == 1 ? 1.0f : 0.0f);
    ps_dtype_convert(raw, stored, x, PS_DTYPE_F32, PIECE_ELEMENTS);
    for (size_t at = 0; at < p->elements; at += PIECE_ELEMENTS) {
        size_t n = p->elements - at < PIECE_ELEMENTS ? p->elements - at : PIECE_ELEMENTS;
        assert_int_equal(ps_st_writer_append(w, raw, n * ps_dtype_size(stored), &err), 0);
    }
    free(x);
}

/* Returns the bytes of a layer. */
static size_t write_model(const struct size *m)
{
    struct ps_model_config cfg;
    struct ps_param_table table;
    struct ps_st_writer *w;
    struct ps_error err = {0};
    char path[256];
    size_t bytes = 0;
    write_config(m, &cfg);
    assert_int_equal(ps_param_table_create(&table, &cfg), 0);
    struct ps_st_spec *spec = calloc(table.count, sizeof *spec);
    float *piece = malloc(PIECE_ELEMENTS * sizeof *piece);
    void *raw = malloc(PIECE_ELEMENTS * sizeof *piece);
    assert_non_null(spec);
    assert_non_null(piece);
    assert_non_null(raw);
    for (size_t i = 0; i < table.count; i++) {
        const struct ps_param_info *p = &table.param[i];
        spec[i] = (struct ps_st_spec){.name = p->name,
                                      .dtype = m->stored,
                                      .rank = p->rank,
                                      .shape = {p->shape[0], p->shape[1]}};
        bytes += p->layer == 0 ? p->elements * ps_dtype_size(m->stored) : 0;
    }
    tiny_fill(piece, PIECE_ELEMENTS, 11, 0.0f, 1.0f);
    snprintf(path, sizeof path, "%s/model.safetensors", m->dir);
    assert_int_equal(ps_st_writer_create(&w, path, spec, table.count, &err), 0);
    for (size_t i = 0; i < table.count; i++)
        write_tensor(w, &table.param[i], piece, raw, m->stored, i);
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    free(raw);
    free(piece);
    free(spec);
    ps_param_table_fini(&table);
    return bytes;
}

/* Two steps and an evaluation. */
struct outcome {
    double loss[2], norm[2], eval;
    uint64_t read_bytes; /* of both steps */
    float *weight;
    size_t n;
};

static void steps(struct ps_trainer *t, struct outcome *out)
{
    struct tiny_rows rows;
    struct ps_batcher *b = NULL;
    struct ps_error err = {0};
    struct ps_batch_options o = {.batch_size = 1, .grad_accum = 2, .max_seq_len = 16, .epochs = 1};
    int64_t labels;
    int64_t tokens;
    tiny_rows_make(&rows, 4);
    assert_int_equal(ps_batcher_create(&b, &rows.ds, &o, &err), 0);
    for (uint64_t i = 0; i < 2; i++) {
        struct ps_trainer_stats s;
        if (ps_trainer_step(t, b, i, &s, &err) < 0)
            fail_msg("%s", err.message);
        out->loss[i] = s.loss;
        out->norm[i] = s.grad_norm;
        out->read_bytes += s.read_bytes;
    }
    assert_int_equal(ps_trainer_eval(t, b, &out->eval, &labels, &tokens, &err), 0);
    assert_int_equal(ps_trainer_pull(t, &err), 0);
    out->n = ps_trainer_trainable_elements(t);
    out->weight = malloc(out->n * sizeof(float));
    assert_non_null(out->weight);
    size_t at = 0;
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        memcpy(out->weight + at, x->weight, x->n * sizeof(float));
        at += x->n;
    }
    ps_batcher_destroy(b);
}

static struct outcome run(const struct size *m, const struct stream_plan *p, const char *backend)
{
    struct outcome out = {0};
    struct stream_io io = {.backend = backend, .dir = "spill"};
    struct ps_trainer *t = NULL;
    struct ps_error err = {0};
    struct ps_trainer_options o = tiny_options(m->dir, PS_MODE_ADAPTER);
    o.dtype = m->run;
    o.adapter = &ps_lora_ops;
    o.adapter_config = (struct ps_adapter_config){.method = "lora", .r = 2, .alpha = 4};
    o.optimizer = &ps_adamw_ops;
    o.n_tok_max = 16;
    o.micro_max = 2;
    o.device = ps_device_find(p->emu ? "emu" : "cpu");
    o.io = stream_io_ops(&io);
    if (ps_trainer_create(&t, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    stream_plan_commit(t, p);
    steps(t, &out);
    ps_trainer_destroy(t);
    stream_io_close(&io);
    return out;
}

static void same(const struct outcome *want, const struct size *m, const struct stream_plan *p,
                 const char *backend, size_t layer_bytes)
{
    struct outcome got = run(m, p, backend);
    for (int i = 0; i < 2; i++)
        if (got.loss[i] != want->loss[i] || got.norm[i] != want->norm[i])
            fail_msg("%s, %s: step %d: loss %.17g, norm %.17g; resident %.17g, %.17g", m->dir,
                     p->name, i, got.loss[i], got.norm[i], want->loss[i], want->norm[i]);
    assert_true(got.eval == want->eval);
    assert_int_equal(got.n, want->n);
    assert_memory_equal(got.weight, want->weight, got.n * sizeof(float));
    /* there and back, twice, but for what was still in the slots */
    uint64_t least = (uint64_t)(2 * 2 * (LAYERS - p->near_slots)) * layer_bytes;
    if (got.read_bytes < least)
        fail_msg("%s, %s: %llu bytes read where %llu were due", m->dir, p->name,
                 (unsigned long long)got.read_bytes, (unsigned long long)least);
    free(got.weight);
}

static const struct stream_plan resident = {.name = "resident",
                                            .weights = "nnnnnnnn",
                                            .boundary = "nnnnnn",
                                            .keep = "kkkkkk",
                                            .group = 1,
                                            .eval_group = 2,
                                            .x_ring = 1};

static const struct stream_plan streamed[] = {{.name = "two slots",
                                               .weights = "dddddddn",
                                               .boundary = "dddddd",
                                               .keep = "rrrrrr",
                                               .group = 2,
                                               .eval_group = 2,
                                               .near_slots = 2,
                                               .raw_slots = 1,
                                               .x_ring = 3},
                                              {.name = "one slot",
                                               .weights = "dddddddn",
                                               .boundary = "nnnnnn",
                                               .keep = "rrkkkk",
                                               .group = 1,
                                               .eval_group = 1,
                                               .near_slots = 1,
                                               .raw_slots = 1,
                                               .x_ring = 1},
                                              {.name = "three slots, emu",
                                               .weights = "dddddddn",
                                               .boundary = "hdhdhd",
                                               .keep = "r1r02r",
                                               .saved = "nhndhn",
                                               .saved_ring = 2,
                                               .group = 2,
                                               .eval_group = 2,
                                               .near_slots = 3,
                                               .raw_slots = 2,
                                               .x_ring = 3,
                                               .host_ring = 2,
                                               .emu = true}};

static void check_size(const struct size *m, size_t least, size_t most)
{
    static const char *const backend[] = {"auto", "threads", "ram"};
    size_t bytes = write_model(m);
    if (bytes < least || bytes > most)
        fail_msg("%s: a layer has %zu bytes", m->dir, bytes);
    struct outcome want = run(m, &resident, "threads");
    assert_true(want.loss[0] > 0 && want.norm[0] > 0 && want.read_bytes == 0);
    for (size_t i = 0; i < sizeof streamed / sizeof *streamed; i++)
        same(&want, m, &streamed[i], backend[i], bytes);
    free(want.weight);
}

static void layers_of_a_kib_stream_to_the_same_bits(void **state)
{
    static const struct size m = {.dir = "kib",
                                  .hidden = 8,
                                  .inter = 10,
                                  .heads = 2,
                                  .stored = PS_DTYPE_BF16,
                                  .run = PS_DTYPE_BF16};
    (void)state;
    check_size(&m, 512, 1024);
}

static void layers_of_a_mib_stream_and_are_converted_to_the_same_bits(void **state)
{
    static const struct size m = {.dir = "mib",
                                  .hidden = 200,
                                  .inter = 520,
                                  .heads = 5,
                                  .stored = PS_DTYPE_F16,
                                  .run = PS_DTYPE_BF16};
    (void)state;
    check_size(&m, 900000, 1100000);
}

static void layers_of_more_than_64_mib_stream_to_the_same_bits(void **state)
{
    static const struct size m = {.dir = "large",
                                  .hidden = 1024,
                                  .inter = 4224,
                                  .heads = 8,
                                  .stored = PS_DTYPE_F32,
                                  .run = PS_DTYPE_F32};
    struct statvfs fs;
    const char *wish = getenv("PENSTOCK_LARGE");
    uint64_t pages = (uint64_t)sysconf(_SC_AVPHYS_PAGES);
    (void)state;
    assert_int_equal(statvfs(".", &fs), 0);
    if (wish && wish[0] == '0') {
        print_message("skipped: PENSTOCK_LARGE=0\n");
        skip();
    }
    if ((uint64_t)fs.f_bavail * fs.f_frsize < (uint64_t)1 << 30 ||
        pages * (uint64_t)sysconf(_SC_PAGESIZE) < (uint64_t)1500 << 20) {
        print_message("skipped: less than 1 GiB of disk or 1.5 GiB of memory is free\n");
        skip();
    }
    check_size(&m, ((size_t)64 << 20) + 1, (size_t)80 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_of_a_kib_stream_to_the_same_bits),
        cmocka_unit_test(layers_of_a_mib_stream_and_are_converted_to_the_same_bits),
        cmocka_unit_test(layers_of_more_than_64_mib_stream_to_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
