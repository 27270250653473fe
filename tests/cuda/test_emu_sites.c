/* Every barrier, every wait for copies, every fragment of the kernels that ship is needed, and the
 * emulation sees where one is missing: each site is broken in turn, and the results change or the
 * emulation stops. No ldmatrix has bank conflicts. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <sys/mman.h>

#include "runtime/kernels/kernels_cuda.h"
#include "tests/cuda/emu_child.h"

enum { SITES_MAX = 64, RESULT_BYTES = 4 << 20, SEEDS = 12 };

/* Results of a workload, one after the other. */
struct results {
    unsigned char *data;
    size_t bytes;
};

static void keep(struct results *r, const void *device, size_t bytes)
{
    MUST(r->bytes + bytes > RESULT_BYTES);
    download(r->data + r->bytes, device, bytes);
    r->bytes += bytes;
}

/* n numbers of a few bits around 0, of type BF16 or F32. */
static void *input(enum ps_dtype type, size_t n, size_t seed)
{
    float *x = malloc(n * sizeof *x);
    uint16_t *b = malloc(n * sizeof *b);
    MUST(!x || !b);
    for (size_t i = 0; i < n; i++) {
        x[i] = value(i * 7 + seed * 1013) / 16;
        b[i] = ps_f32_to_bf16(x[i]);
    }
    void *d = type == PS_DTYPE_BF16 ? upload(b, n * sizeof *b) : upload(x, n * sizeof *x);
    MUST(cudaStreamSynchronize(stream));
    free(x);
    free(b);
    return d;
}

/* ---- workloads: enough rows that every loop runs again ---- */

struct attention {
    int32_t dim, n_tok, window;
    enum ps_dtype type;
};

/* Two documents, two heads of one group. */
static void run_attention(struct results *r, const struct attention *w)
{
    enum { HEADS = 2, FIRST = 20 };
    const size_t n = (size_t)w->n_tok, q = HEADS * (size_t)w->dim, k = (size_t)w->dim;
    const size_t es = ps_dtype_size(w->type), doc_bytes = n * 2 * sizeof(int32_t);
    int32_t *doc = malloc(doc_bytes);
    MUST(!doc);
    for (int32_t i = 0; i < w->n_tok; i++) {
        doc[2 * i] = i < FIRST ? 0 : FIRST;
        doc[2 * i + 1] = i < FIRST ? FIRST : w->n_tok;
    }
    const int32_t start[] = {0, FIRST, w->n_tok}, *docs = upload(doc, doc_bytes);
    MUST(cudaStreamSynchronize(stream));
    struct ps_attention_args a = {.doc_start = start,
                                  .doc_count = 2,
                                  .n_head = HEADS,
                                  .n_kv_head = 1,
                                  .head_dim = w->dim,
                                  .sliding_window = w->window,
                                  .scale = 0.1f,
                                  .dtype = w->type};
    a.q = input(w->type, n * q, 1), a.k = input(w->type, n * k, 2);
    a.v = input(w->type, n * k, 3), a.dout = input(w->type, n * q, 4);
    a.out = device_alloc(n * q * es), a.lse = device_alloc(n * HEADS * sizeof(float));
    a.dq = device_alloc(n * q * es), a.dk = device_alloc(n * k * es);
    a.dv = device_alloc(n * k * es);
    a.q_ld = a.out_ld = a.dout_ld = a.dq_ld = q;
    a.k_ld = a.v_ld = a.dk_ld = a.dv_ld = k;
    void *work = device_alloc(ps_attention_workspace_bytes_cuda(w->n_tok, HEADS));
    MUST(ps_attention_forward_cuda(stream, &a, docs, w->n_tok));
    MUST(ps_attention_backward_cuda(stream, &a, docs, w->n_tok, work));
    keep(r, a.out, n * q * es);
    keep(r, a.lse, n * HEADS * sizeof(float));
    keep(r, a.dq, n * q * es);
    keep(r, a.dk, n * k * es);
    keep(r, a.dv, n * k * es);
    free(doc);
}

static void attention_64(struct results *r)
{
    run_attention(r, &(struct attention){64, 110, 0, PS_DTYPE_BF16});
}
static void attention_80(struct results *r)
{
    run_attention(r, &(struct attention){80, 100, 0, PS_DTYPE_BF16});
}
static void attention_96(struct results *r)
{
    run_attention(r, &(struct attention){96, 100, 40, PS_DTYPE_BF16});
}
static void attention_128(struct results *r)
{
    run_attention(r, &(struct attention){128, 100, 0, PS_DTYPE_BF16});
}
static void attention_256(struct results *r)
{
    run_attention(r, &(struct attention){256, 70, 0, PS_DTYPE_BF16});
}
static void attention_plain(struct results *r)
{
    run_attention(r, &(struct attention){24, 90, 0, PS_DTYPE_F32});
}

static void decode(struct results *r)
{
    enum { HEADS = 2, DIM = 40, KEYS = 600 };
    struct ps_attention_args a = {.n_head = HEADS,
                                  .n_kv_head = 1,
                                  .head_dim = DIM,
                                  .scale = 0.1f,
                                  .dtype = PS_DTYPE_F32,
                                  .k_ld = DIM,
                                  .v_ld = DIM};
    a.q = input(PS_DTYPE_F32, HEADS * DIM, 1);
    a.k = input(PS_DTYPE_F32, KEYS * DIM, 2);
    a.v = input(PS_DTYPE_F32, KEYS * DIM, 3);
    a.out = device_alloc(HEADS * DIM * sizeof(float));
    MUST(ps_attention_decode_cuda(stream, &a, KEYS - 1));
    keep(r, a.out, HEADS * DIM * sizeof(float));
}

static void rmsnorm(struct results *r)
{
    enum { TOK = 130, N = 2050 };
    struct ps_rmsnorm_args a = {.n_tok = TOK,
                                .rows_per_tok = 1,
                                .n = N,
                                .eps = 1e-5f,
                                .x_ld = N,
                                .y_ld = N,
                                .dy_ld = N,
                                .dx_ld = N};
    a.x = input(PS_DTYPE_F32, TOK * N, 1), a.dy = input(PS_DTYPE_F32, TOK * N, 2);
    a.weight = input(PS_DTYPE_F32, N, 3);
    a.y = device_alloc(TOK * N * sizeof(float)), a.dx = device_alloc(TOK * N * sizeof(float));
    a.rstd = device_alloc(TOK * sizeof(float)), a.dweight = device_alloc(N * sizeof(float));
    void *work = device_alloc(ps_rmsnorm_workspace_bytes(TOK, N));
    MUST(ps_rmsnorm_forward_cuda(stream, &a));
    MUST(ps_rmsnorm_backward_cuda(stream, &a, work));
    keep(r, a.y, TOK * N * sizeof(float));
    keep(r, a.dx, TOK * N * sizeof(float));
    keep(r, a.dweight, N * sizeof(float));
}

static void cross_entropy(struct results *r)
{
    enum { ROWS = 3, VOCAB = 9001 };
    static const int32_t target[ROWS] = {0, 9000, 77};
    float *z = input(PS_DTYPE_F32, ROWS * VOCAB, 1);
    double *loss = device_alloc(ROWS * sizeof *loss);
    MUST(ps_cross_entropy_cuda(stream, z, VOCAB, ROWS, VOCAB, upload(target, sizeof target), loss,
                               0.5f, 1));
    keep(r, loss, ROWS * sizeof *loss);
    keep(r, z, ROWS * VOCAB * sizeof *z);
}

static void sums(struct results *r)
{
    enum { TOK = 2100, N = 40, BIG = 20000, COUNT = 3000 };
    float *x = input(PS_DTYPE_F32, TOK * N, 1), *column = device_alloc(N * sizeof(float));
    double *out = device_alloc(sizeof *out), *one = device_alloc(sizeof *one), part[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        part[i] = (double)value(i);
    MUST(ps_column_sum_cuda(stream, column, x, N, PS_DTYPE_F32, TOK, N, 0));
    MUST(ps_square_sum_cuda(stream, out, x, PS_DTYPE_F32, BIG));
    MUST(ps_sum_f64_cuda(stream, one, upload(part, sizeof part), COUNT));
    keep(r, column, N * sizeof(float));
    MUST(ps_column_dot_cuda(stream, column, x, x, PS_DTYPE_F32, NULL, TOK, N, 0));
    keep(r, column, N * sizeof(float));
    keep(r, out, sizeof *out);
    keep(r, one, sizeof *one);
}

/* ---- one site at a time ---- */

typedef void (*workload_fn)(struct results *r);

static struct shared { /* with the children */
    struct ps_emu_site site[SITES_MAX];
    size_t count;
    uint64_t phases, conflicts;
} * shared;

static workload_fn workload;
static enum ps_emu_break how;

static struct results results(void)
{
    struct results r = {malloc(RESULT_BYTES), 0};
    MUST(!r.data);
    return r;
}

static int meet_sites(int arg)
{
    (void)arg;
    struct ps_emu_counts c;
    struct results r = results();
    workload(&r);
    shared->count = ps_emu_take_sites(shared->site, SITES_MAX);
    ps_emu_get_counts(&c);
    shared->phases = c.ldmatrix_phases;
    shared->conflicts = c.bank_conflicts;
    return RIGHT;
}

static int run_broken(int index)
{
    struct results want = results(), got = results();
    workload(&want);
    ps_emu_break_site(&shared->site[index], how);
    workload(&got);
    return want.bytes != got.bytes || memcmp(want.data, got.data, got.bytes) ? WRONG : RIGHT;
}

/* Whether one seed of SEEDS shows that the site is broken. */
static int caught(size_t index)
{
    for (uint32_t seed = 1; seed <= SEEDS; seed++)
        if (run_child(run_broken, (int)index, seed) != RIGHT)
            return 1;
    return 0;
}

/* Sites that no seed shows to be broken. */
static size_t unseen_sites(workload_fn fn)
{
    static const char *const name[] = {"barrier", "syncwarp", "wait", "ldmatrix", "mma"};
    size_t unseen = 0;
    workload = fn;
    assert_int_equal(run_child(meet_sites, 0, 1), RIGHT);
    assert_in_range(shared->count, 1, SITES_MAX - 1);
    for (size_t i = 0; i < shared->count; i++) {
        const struct ps_emu_site *s = &shared->site[i];
        const int both = s->kind == PS_EMU_COPY_WAIT;
        for (int h = PS_EMU_BROKEN; h <= (both ? PS_EMU_ONE_GROUP_FEWER : PS_EMU_BROKEN); h++) {
            how = (enum ps_emu_break)h;
            if (!caught(i)) {
                print_message("not seen: %s %s:%d (%d)\n", name[s->kind], s->file, s->line, h);
                unseen++;
            }
        }
    }
    return unseen;
}

static void every_site_of_attention_is_needed(void **state)
{
    (void)state;
    assert_int_equal(unseen_sites(attention_64), 0);
    assert_int_equal(unseen_sites(attention_256), 0);
}

/* In ps__row_attend the __syncwarp before the probabilities are written again stands behind
 * shuffles, which order no memory, but which no lane of the emulation passes early: ThreadSanitizer
 * sees it. */
#ifdef __SANITIZE_THREAD__
#define RACES_ALONE 0
#else
#define RACES_ALONE 1
#endif

static void every_site_without_tensor_cores_is_needed(void **state)
{
    (void)state;
    assert_int_equal(unseen_sites(attention_plain), RACES_ALONE);
    assert_int_equal(unseen_sites(decode), RACES_ALONE);
}

static void every_site_of_the_reductions_is_needed(void **state)
{
    (void)state;
    assert_int_equal(unseen_sites(rmsnorm), 0);
    assert_int_equal(unseen_sites(cross_entropy), 0);
    assert_int_equal(unseen_sites(sums), 0);
}

static void fragments_are_read_without_bank_conflicts(void **state)
{
    (void)state;
    static const workload_fn tiles[] = {attention_64, attention_80, attention_96, attention_128,
                                        attention_256};
    for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++) {
        workload = tiles[i];
        assert_int_equal(run_child(meet_sites, 0, 1), RIGHT);
        assert_true(shared->phases > 0);
        assert_int_equal(shared->conflicts, 0);
    }
}

static int setup(void **state)
{
    (void)state;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared == MAP_FAILED ? -1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_site_of_attention_is_needed),
        cmocka_unit_test(every_site_without_tensor_cores_is_needed),
        cmocka_unit_test(every_site_of_the_reductions_is_needed),
        cmocka_unit_test(fragments_are_read_without_bank_conflicts),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
