/* Memory bandwidth: see bench.h. Bytes read and bytes written both count; what a cache fetches only
 * to overwrite it does not. Arrays are larger than the caches. */
#include "session/bench_internal.h"

#include <errno.h>
#include <string.h>

#include "runtime/kernels/elementwise.h"

#define PIECE ((size_t)1 << 20)
#define LINE 64

struct arrays {
    struct ps_pool *pool;
    enum ps_isa isa;
    float *a, *b, *c; /* (n,) each */
    size_t n;
    _Atomic uint64_t sum; /* keeps the reads */
};

static void copy_piece(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct ps__bench_copy *c = arg;
    size_t at = task * PIECE;
    memcpy(c->to + at, c->from + at, c->n - at < PIECE ? c->n - at : PIECE);
}

void ps__bench_copy_run(void *copy)
{
    const struct ps__bench_copy *c = copy;
    ps_pool_run(c->pool, copy_piece, copy, (c->n + PIECE - 1) / PIECE);
}

/* One number of each cache line: the whole line crosses the bus. */
static void read_piece(void *arg, size_t task, int thread)
{
    (void)thread;
    struct arrays *s = arg;
    const unsigned char *p = (const unsigned char *)s->b + task * PIECE;
    size_t bytes = s->n * sizeof(float) - task * PIECE;
    bytes = bytes < PIECE ? bytes : PIECE;
    uint64_t sum[4] = {0};
    for (size_t i = 0; i + 4 * LINE <= bytes; i += 4 * LINE)
        for (size_t j = 0; j < 4; j++) {
            uint64_t v;
            memcpy(&v, p + i + j * LINE, sizeof v);
            sum[j] += v;
        }
    atomic_fetch_add_explicit(&s->sum, sum[0] + sum[1] + sum[2] + sum[3], memory_order_relaxed);
}

static void read_run(void *arg)
{
    struct arrays *s = arg;
    ps_pool_run(s->pool, read_piece, s, (s->n * sizeof(float) + PIECE - 1) / PIECE);
}

static void add_run(void *arg)
{
    struct arrays *s = arg;
    ps_add(s->pool, s->isa, s->a, s->b, s->c, PS_DTYPE_F32, s->n);
}

static void convert_run(void *arg)
{
    struct arrays *s = arg;
    ps_convert(s->pool, s->isa, s->a, PS_DTYPE_F32, s->b, PS_DTYPE_BF16, s->n);
}

int ps__bench_copying(struct ps__bench *b, struct ps_error *err)
{
    size_t bytes = b->quick ? (size_t)4 << 20 : (size_t)256 << 20;
    while (3 * bytes > b->memory_bytes && bytes > (size_t)4 << 20)
        bytes /= 2;
    ps_log(b->opt->log, PS_LOG_INFO, "copy: arrays of %zu MiB", bytes >> 20);
    unsigned char *memory = ps__bench_alloc(3 * bytes);
    if (!memory)
        return ps_error_set(err, -ENOMEM, "out of memory for arrays of %zu bytes", 3 * bytes);
    struct arrays s = {.pool = b->pool, .isa = b->isa, .n = bytes / sizeof(float)};
    s.a = (float *)(void *)memory;
    s.b = (float *)(void *)(memory + bytes);
    s.c = (float *)(void *)(memory + 2 * bytes);
    struct ps__bench_copy c = {b->pool, memory, memory + bytes, bytes};
    double seconds = b->quick ? 0.01 : 0.4, one = (double)bytes;
    struct ps_bench_report *out = b->out;
    out->copy = ps__bench_rate(ps__bench_copy_run, &c, 2 * one, seconds);
    out->read = ps__bench_rate(read_run, &s, one, seconds);
    out->add = ps__bench_rate(add_run, &s, 3 * one, seconds);
    out->convert = ps__bench_rate(convert_run, &s, 1.5 * one, seconds);
    ps__bench_free(memory, 3 * bytes);
    double best = out->read > out->copy ? out->read : out->copy;
    out->profile.memory = out->add > best ? out->add : best;
    out->profile.copy_host = out->copy / 2;
    return 0;
}
