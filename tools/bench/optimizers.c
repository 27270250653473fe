/* Bandwidth of the optimizers' updates beside that of a loop that moves the same bytes.
 *
 *   optimizers [--only NAME] [--isa NAME] [--form NAME] [--grad fp32|bf16] [--state fp32|bf16]
 *              [--threads N] [--elems N] [--reps N]
 *
 * Envelope: an element-wise update reads weight, remainder, gradient and states once and writes all
 * but the gradient. Adafactor's rule needs the gradient three times (row and column sums; the RMS
 * of the update, which needs all of them; the step): the bytes counted for it are those of three
 * passes. The bound is a loop over the very same buffers, on the same threads, with the same
 * passes, that reads what the update reads and writes back what it writes, with one exclusive-or a
 * word and nothing else. It runs before and after each update; share = its time over the update's,
 * the better of the two neighbours; the median of the repetitions, and in brackets the smallest and
 * the largest. A matrix is rows of 4096.
 *
 * Forms: bf16 weights with remainder, bf16 rounded at random ("sr"), fp32. microadam (sorts, not
 * element-wise) only where --only asks for it. */
#include <emmintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "optim/optimizers.h"

#define REPS_MAX 64
#define TASK 16384
#define PIECE 1024
#define COLS 4096
#define STREAMS_MAX (3 + PS_OPTIMIZER_STATE_MAX)

static double read_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Of the wall, and of all threads' processor time. */
struct moment {
    double wall, cpu;
};

static struct moment now(void)
{
    return (struct moment){read_clock(CLOCK_MONOTONIC), read_clock(CLOCK_PROCESS_CPUTIME_ID)};
}

static struct moment since(struct moment begin)
{
    struct moment end = now();
    return (struct moment){end.wall - begin.wall, end.cpu - begin.cpu};
}

static int less(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts v. */
static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, less);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* One array of a pass: `bytes` of it belong to a task. */
struct stream {
    unsigned char *data;
    size_t size, bytes;
    bool write;
};

struct pass {
    struct stream stream[STREAMS_MAX];
    int count;
    __m128i zero; /* not known to the compiler */
};

static void stream_piece(const struct stream *s, size_t begin, size_t end, __m128i zero)
{
    __m128i sum = _mm_setzero_si128();
    for (size_t i = begin; i + 16 <= end; i += 16) {
        __m128i *at = (__m128i *)(void *)(s->data + i);
        __m128i x = _mm_xor_si128(_mm_loadu_si128(at), zero);
        if (s->write)
            _mm_storeu_si128(at, x);
        else
            sum = _mm_or_si128(sum, x);
    }
    __asm__ volatile("" ::"x"(sum));
}

static void run_pass(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct pass *p = arg;
    for (size_t piece = 0; piece < TASK / PIECE; piece++)
        for (int k = 0; k < p->count; k++) {
            const struct stream *s = &p->stream[k];
            size_t bytes = s->bytes / (TASK / PIECE), begin = task * s->bytes + piece * bytes;
            size_t end = begin + bytes < s->size ? begin + bytes : s->size;
            stream_piece(s, begin, end, p->zero);
        }
}

static void add_stream(struct pass *p, void *data, size_t size, size_t n, bool write)
{
    struct stream *s = &p->stream[p->count++];
    *s = (struct stream){.data = data, .size = size, .write = write};
    s->bytes = (size_t)((double)size / (double)n * TASK) / 16 * 16;
}

static void *touch(size_t bytes)
{
    unsigned char *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096 + 4096);
    if (!p) {
        fprintf(stderr, "optimizers: cannot allocate %zu bytes\n", bytes);
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

struct form {
    const char *name;
    enum ps_dtype dtype;
    bool stochastic;
};

struct config {
    const char *only, *form;
    enum ps_isa isa;
    enum ps_dtype grad, state;
    int threads, reps;
    size_t n;
};

static struct ps_optimizer_hyper hyper_of(const struct ps_optimizer_ops *ops, const struct form *f,
                                          enum ps_dtype state)
{
    bool adafactor = !strcmp(ops->name, "adafactor");
    return (struct ps_optimizer_hyper){
        .beta1 = adafactor && state == PS_DTYPE_F32 ? 0 : 0.9, /* momentum where it is asked for */
        .beta2 = 0.99,
        .eps = adafactor ? 1e-30 : 1e-8,
        .weight_decay = 0.01,
        .momentum = strcmp(ops->name, "sgd") ? 0 : 0.9,
        .seed = 1,
        .n_layer = 1,
        .active_layers = 1,
        .interval = 1000000,
        .eps2 = 1e-3,
        .clip_threshold = 1,
        .decay_rate = 0.8,
        .window = 10,
        .density = 0.01,
        .quant_block = 64,
        .stochastic_rounding = f->stochastic,
        .state_dtype = state};
}

/* The update's passes over its buffers; returns their number and the bytes that they move. */
static int passes_of(const struct ps_optimizer_ops *ops, const struct ps_update *u,
                     struct pass pass[3], size_t *bytes)
{
    size_t n = u->n, g = n * ps_dtype_size(u->grad_dtype), w = n * ps_dtype_size(u->tensor->dtype);
    int count = !strcmp(ops->name, "adafactor") ? 3 : 1;
    struct pass *last = &pass[count - 1];
    *bytes = 0;
    for (int i = 0; i < count; i++) {
        pass[i] = (struct pass){.zero = _mm_set1_epi8((char)(now().wall < 0))};
        add_stream(&pass[i], (void *)(size_t)u->grad, g, n, false);
        *bytes += g;
    }
    add_stream(last, u->weight, w, n, true);
    *bytes += 2 * w;
    if (u->remainder) {
        add_stream(last, u->remainder, 2 * n, n, true);
        *bytes += 4 * n;
    }
    for (int k = 0; k < u->layout->state_count; k++) {
        size_t size = (size_t)ps_opt_state_bytes(&u->layout->state[k], n);
        if (u->layout->state[k].per > 0)
            add_stream(last, u->state[k], size, n, true);
        *bytes += 2 * size;
    }
    return count;
}

static struct moment stream(struct ps_pool *pool, const struct pass *pass, int count, size_t n)
{
    struct moment begin = now();
    for (int i = 0; i < count; i++)
        ps_pool_run(pool, run_pass, (void *)(size_t)&pass[i], (n + TASK - 1) / TASK);
    return since(begin);
}

static void measure(const struct config *c, const struct ps_optimizer_ops *ops,
                    const struct form *f, struct ps_update *u)
{
    struct ps_error err = {0};
    struct pass pass[3];
    size_t bytes;
    int count = passes_of(ops, u, pass, &bytes);
    double update_s[REPS_MAX], bound_s[REPS_MAX], share[REPS_MAX], cpu_share[REPS_MAX];
    for (int r = -1; r < c->reps; r++) {
        struct moment before = stream(u->pool, pass, count, u->n), begin = now();
        u->t++;
        if (ops->update(u, &err) < 0) {
            printf("%-10s %-10s %s\n", ops->name, f->name, err.message);
            return;
        }
        struct moment update = since(begin), after = stream(u->pool, pass, count, u->n);
        u->step++;
        if (r < 0) /* the first is for warming up */
            continue;
        update_s[r] = update.wall;
        bound_s[r] = before.wall < after.wall ? before.wall : after.wall;
        share[r] = bound_s[r] / update.wall;
        cpu_share[r] = (before.cpu < after.cpu ? before.cpu : after.cpu) / update.cpu;
    }
    double t = median(update_s, c->reps), median_share = median(share, c->reps);
    double scale = 1e-9 * (double)bytes;
    printf(
        "%-8s %-10s %-9s grad %-4s %5.2f B/param  %6.2f GB/s  bound %6.2f  share %.2f (%.2f-%.2f)"
        "  cpu share %.2f  %6.3f ns/param, best %6.3f\n",
        ps_isa_name(c->isa), ops->name, f->name, ps_dtype_name(c->grad),
        (double)bytes / (double)u->n, scale / t, scale / median(bound_s, c->reps), median_share,
        share[0], share[c->reps - 1], median(cpu_share, c->reps), 1e9 * t / (double)u->n,
        1e9 * update_s[0] / (double)u->n);
    fflush(stdout);
}

static void fill_grad(void *grad, enum ps_dtype dtype, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float g = (float)((i * 2654435761u) >> 16 & 1023) * 1e-5f - 5e-3f;
        if (dtype == PS_DTYPE_F32)
            ((float *)grad)[i] = g;
        else
            ((uint16_t *)grad)[i] = ps_f32_to_bf16(g);
    }
}

static void bench(struct ps_pool *pool, const struct config *c, const struct ps_optimizer_ops *ops,
                  const struct form *f)
{
    struct ps_optimizer_hyper h = hyper_of(ops, f, c->state);
    struct ps_opt_tensor x = {.name = "x",
                              .rank = 2,
                              .rows = (int64_t)(c->n / COLS),
                              .cols = COLS,
                              .n = c->n,
                              .hidden = true,
                              .dtype = f->dtype};
    struct ps_opt_layout l;
    struct ps_error err = {0};
    if (ops->layout(&h, &x, &l, &err) != 0) {
        printf("%-10s %-10s %s\n", ops->name, f->name, err.message);
        return;
    }
    struct ps_update u = {.pool = pool,
                          .isa = c->isa,
                          .hyper = &h,
                          .tensor = &x,
                          .layout = &l,
                          .n = c->n,
                          .grad_dtype = c->grad,
                          .lr = 1e-4,
                          .decay = true,
                          .grad_scale = 1};
    void *grad = touch(c->n * ps_dtype_size(c->grad));
    fill_grad(grad, c->grad, c->n);
    u.grad = grad;
    u.weight = touch(c->n * ps_dtype_size(f->dtype));
    if (l.remainder && f->dtype == PS_DTYPE_BF16)
        u.remainder = touch(c->n * 2);
    for (int k = 0; k < l.state_count; k++)
        u.state[k] = touch((size_t)ps_opt_state_bytes(&l.state[k], c->n));
    u.workspace = touch((size_t)l.workspace_bytes);
    measure(c, ops, f, &u);
    free(u.weight);
    free(u.remainder);
    free(grad);
    for (int k = 0; k < l.state_count; k++)
        free(u.state[k]);
    free(u.workspace);
}

static bool parse(struct config *c, int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *v = argv[i + 1];
        if (!strcmp(argv[i], "--threads"))
            c->threads = atoi(v);
        else if (!strcmp(argv[i], "--elems"))
            c->n = strtoull(v, NULL, 10) / COLS * COLS;
        else if (!strcmp(argv[i], "--reps"))
            c->reps = atoi(v);
        else if (!strcmp(argv[i], "--only"))
            c->only = v;
        else if (!strcmp(argv[i], "--form"))
            c->form = v;
        else if (!strcmp(argv[i], "--grad"))
            c->grad = strcmp(v, "bf16") ? PS_DTYPE_F32 : PS_DTYPE_BF16;
        else if (!strcmp(argv[i], "--state"))
            c->state = strcmp(v, "bf16") ? PS_DTYPE_F32 : PS_DTYPE_BF16;
        else if (!strcmp(argv[i], "--isa")) {
            enum ps_isa isa = PS_ISA_PORTABLE;
            while (isa < c->isa && strcmp(ps_isa_name(isa), v) != 0)
                isa++;
            c->isa = isa;
        } else
            return false;
    }
    return argc % 2 == 1 && c->threads >= 1 && c->reps >= 1 && c->reps <= REPS_MAX &&
           c->n >= COLS && (!c->only || ps_optimizer_find(c->only));
}

int main(int argc, char **argv)
{
    static const struct form form[] = {{"bf16+rest", PS_DTYPE_BF16, false},
                                       {"bf16-sr", PS_DTYPE_BF16, true},
                                       {"fp32", PS_DTYPE_F32, false}};
    struct config c = {.isa = ps_isa_detect(), .threads = 2, .reps = 7, .n = 16u << 20};
    if (!parse(&c, argc, argv)) {
        fprintf(stderr,
                "usage: optimizers [--only NAME] [--isa NAME] [--form bf16+rest|bf16-sr|fp32] "
                "[--grad fp32|bf16] [--state fp32|bf16] [--threads N] [--elems N] [--reps 1..%d]\n",
                REPS_MAX);
        return 2;
    }
    struct ps_pool *pool;
    if (ps_pool_create(&pool, c.threads))
        return 1;
    static const char *const usual[] = {"sgd", "adamw", "adamw8bit", "lion", "adafactor"};
    printf("optimizers: %zu parameters, %d threads, %d repetitions, medians\n", c.n, c.threads,
           c.reps);
    for (size_t i = 0; i < (c.only ? 1 : sizeof usual / sizeof usual[0]); i++)
        for (size_t k = 0; k < sizeof form / sizeof form[0]; k++)
            if (!c.form || !strcmp(c.form, form[k].name))
                bench(pool, &c, ps_optimizer_find(c.only ? c.only : usual[i]), &form[k]);
    ps_pool_destroy(pool);
    return 0;
}
