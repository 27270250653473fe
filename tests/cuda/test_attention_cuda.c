/* Attention on the device against the references in double. Every run comes with new random orders
 * of threads and blocks on the emulation, so that equal bits of two runs mean something. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "runtime/kernels/attention.h"
#include "tests/cuda/cuda_check.h"

enum { DOC_MAX = 12, GAP_BYTE = 0xA5 };

struct shape {
    int32_t len[DOC_MAX]; /* documents, 0 ends the list */
    int32_t n_head, n_kv_head, head_dim, window;
};

/* Index of a tensor. */
enum { Q, K, V, DOUT, OUT, DQ, DK, DV, TENSORS };
static const char *const tensor_name[TENSORS] = {"q", "k", "v", "dout", "out", "dq", "dk", "dv"};

struct problem {
    cudaStream_t stream;
    struct ps_attention_args args; /* device pointers */
    int32_t doc_start[DOC_MAX + 1];
    int32_t n_tok;
    size_t cols[TENSORS], ld[TENSORS];
    struct device_buffer tensor[TENSORS], lse, doc, work; /* n_tok rows of ld elements */
    unsigned char *image[TENSORS];                        /* the host's copy; gaps hold GAP_BYTE */
    double *exact[TENSORS];       /* (n_tok, cols): inputs, or expected outputs */
    float *lse_image, *lse_exact; /* (n_tok, n_head) */
};

static uint64_t state_of_rng = 1;

static double normal(void)
{
    double sum = 0;
    for (int i = 0; i < 12; i++) {
        state_of_rng = state_of_rng * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(state_of_rng >> 11) * 0x1p-53;
    }
    return sum - 6;
}

static void *allocate(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    assert_non_null(p);
    memset(p, GAP_BYTE, bytes);
    return p;
}

static size_t tensor_bytes(const struct problem *p, int t)
{
    return (size_t)p->n_tok * p->ld[t] * ps_dtype_size(p->args.dtype);
}

static double value(const struct problem *p, int t, size_t row, size_t col)
{
    size_t at = row * p->ld[t] + col;
    if (p->args.dtype == PS_DTYPE_BF16)
        return (double)ps_bf16_to_f32(((const uint16_t *)(const void *)p->image[t])[at]);
    return (double)((const float *)(const void *)p->image[t])[at];
}

static void set(struct problem *p, int t, size_t row, size_t col, double x)
{
    size_t at = row * p->ld[t] + col;
    if (p->args.dtype == PS_DTYPE_BF16)
        ((uint16_t *)(void *)p->image[t])[at] = ps_f32_to_bf16((float)x);
    else
        ((float *)(void *)p->image[t])[at] = (float)x;
    p->exact[t][row * p->cols[t] + col] = value(p, t, row, col);
}

/* Device memory for everything, and the arguments that point to it. */
static void to_device(struct problem *p)
{
    struct ps_attention_args *a = &p->args;
    int32_t *doc = allocate(((size_t)p->n_tok * 2 + 1) * sizeof *doc);
    for (int32_t d = 0; d < a->doc_count; d++)
        for (int32_t i = p->doc_start[d]; i < p->doc_start[d + 1]; i++) {
            doc[2 * i] = p->doc_start[d];
            doc[2 * i + 1] = p->doc_start[d + 1];
        }
    p->doc = device_make(p->stream, (size_t)p->n_tok * 2 * sizeof *doc, 0, doc);
    free(doc);
    for (int t = 0; t < TENSORS; t++)
        p->tensor[t] = device_make(p->stream, tensor_bytes(p, t), 0, p->image[t]);
    size_t lse_bytes = (size_t)p->n_tok * (size_t)a->n_head * sizeof(float);
    p->lse = device_make(p->stream, lse_bytes, 0, NULL);
    p->work =
        device_make(p->stream, ps_attention_workspace_bytes_cuda(p->n_tok, a->n_head), 0, NULL);
    p->lse_image = allocate(lse_bytes);
    p->lse_exact = allocate(lse_bytes);
    a->q = p->tensor[Q].data, a->k = p->tensor[K].data, a->v = p->tensor[V].data;
    a->out = p->tensor[OUT].data, a->dout = p->tensor[DOUT].data;
    a->dq = p->tensor[DQ].data, a->dk = p->tensor[DK].data, a->dv = p->tensor[DV].data;
    a->q_ld = p->ld[Q], a->k_ld = p->ld[K], a->v_ld = p->ld[V];
    a->out_ld = p->ld[OUT], a->dout_ld = p->ld[DOUT];
    a->dq_ld = p->ld[DQ], a->dk_ld = p->ld[DK], a->dv_ld = p->ld[DV];
    a->lse = (float *)(void *)p->lse.data;
}

/* Rows of tensor t are gap * t elements further apart than needed. */
static void make(struct problem *p, cudaStream_t stream, const struct shape *s, enum ps_dtype dtype,
                 size_t gap)
{
    memset(p, 0, sizeof *p);
    p->stream = stream;
    int32_t docs = 0;
    for (; docs < DOC_MAX && s->len[docs]; docs++)
        p->doc_start[docs + 1] = p->doc_start[docs] + s->len[docs];
    p->n_tok = p->doc_start[docs];
    p->args = (struct ps_attention_args){.doc_start = p->doc_start,
                                         .doc_count = docs,
                                         .n_head = s->n_head,
                                         .n_kv_head = s->n_kv_head,
                                         .head_dim = s->head_dim,
                                         .sliding_window = s->window,
                                         .scale = (float)(1 / sqrt(s->head_dim)),
                                         .dtype = dtype};
    for (int t = 0; t < TENSORS; t++) {
        int kv = t == K || t == V || t == DK || t == DV;
        p->cols[t] = (size_t)(kv ? s->n_kv_head : s->n_head) * (size_t)s->head_dim;
        p->ld[t] = p->cols[t] + (size_t)t * gap;
        p->image[t] = allocate(tensor_bytes(p, t));
        p->exact[t] = allocate((size_t)p->n_tok * p->cols[t] * sizeof(double));
        for (size_t i = 0; t <= DOUT && i < (size_t)p->n_tok; i++)
            for (size_t c = 0; c < p->cols[t]; c++)
                set(p, t, i, c, normal());
    }
    to_device(p);
}

static void drop(struct problem *p)
{
    for (int t = 0; t < TENSORS; t++) {
        device_free(p->stream, &p->tensor[t]);
        free(p->image[t]);
        free(p->exact[t]);
    }
    device_free(p->stream, &p->lse);
    device_free(p->stream, &p->doc);
    device_free(p->stream, &p->work);
    free(p->lse_image);
    free(p->lse_exact);
}

/* Fetch a tensor; what lies between its rows must be as it was. */
static void fetch(struct problem *p, int t)
{
    size_t size = ps_dtype_size(p->args.dtype);
    memcpy(p->image[t], device_get(p->stream, &p->tensor[t]), tensor_bytes(p, t));
    for (size_t i = 0; i < (size_t)p->n_tok; i++)
        for (size_t b = p->cols[t] * size; b < p->ld[t] * size; b++)
            if (p->image[t][i * p->ld[t] * size + b] != GAP_BYTE)
                fail_msg("%s: row %zu is written past its end", tensor_name[t], i);
}

/* Forward and backward on the device, outputs and lse fetched. */
static void run(struct problem *p)
{
    const int32_t *doc = (const int32_t *)(const void *)p->doc.data;
    for (int t = OUT; t < TENSORS; t++) {
        memset(p->image[t], GAP_BYTE, tensor_bytes(p, t));
        device_put(p->stream, &p->tensor[t], p->image[t]);
    }
    device_put(p->stream, &p->work, NULL);
    assert_int_equal(ps_attention_forward_cuda(p->stream, &p->args, doc, p->n_tok), 0);
    assert_int_equal(ps_attention_backward_cuda(p->stream, &p->args, doc, p->n_tok, p->work.data),
                     0);
    for (int t = OUT; t < TENSORS; t++)
        fetch(p, t);
    memcpy(p->lse_image, device_get(p->stream, &p->lse), p->lse.bytes);
    device_get(p->stream, &p->work); /* its guards */
}

/* The expected outputs. */
static void reference(struct problem *p)
{
    struct ps_attention_args a = p->args;
    a.dtype = PS_DTYPE_F64;
    a.q = p->exact[Q], a.k = p->exact[K], a.v = p->exact[V], a.dout = p->exact[DOUT];
    a.out = p->exact[OUT], a.dq = p->exact[DQ], a.dk = p->exact[DK], a.dv = p->exact[DV];
    a.q_ld = a.dq_ld = a.out_ld = a.dout_ld = p->cols[Q];
    a.k_ld = a.v_ld = a.dk_ld = a.dv_ld = p->cols[K];
    a.lse = p->lse_exact;
    ps_attention_forward_reference(&a);
    ps_attention_backward_reference(&a);
}

/* |x - exact| <= atol + rtol |exact|, and the error in norm at most `norm` of the tensor's and of a
 * tensor of ones. */
static void compare(const struct problem *p, int t, double atol, double rtol, double norm)
{
    double error2 = 0, exact2 = 0;
    for (size_t i = 0; i < (size_t)p->n_tok; i++)
        for (size_t c = 0; c < p->cols[t]; c++) {
            double x = value(p, t, i, c), y = p->exact[t][i * p->cols[t] + c];
            error2 += (x - y) * (x - y);
            exact2 += y * y;
            if (!(fabs(x - y) <= atol + rtol * fabs(y)))
                fail_msg("%s[%zu][%zu] = %.9g, expected %.9g (heads %d/%d, dim %d, window %d)",
                         tensor_name[t], i, c, x, y, p->args.n_head, p->args.n_kv_head,
                         p->args.head_dim, p->args.sliding_window);
        }
    double count = (double)p->n_tok * (double)p->cols[t]; /* the gradient may be exactly 0 */
    if (getenv("PRINT_ERRORS"))
        printf("%s %g\n", tensor_name[t], sqrt(error2 / (exact2 + count)));
    if (!(sqrt(error2) <= norm * sqrt(exact2 + count)))
        fail_msg("%s: error %g of the norm (head_dim %d)", tensor_name[t],
                 sqrt(error2 / (exact2 + count)), p->args.head_dim);
}

/* fp32: sums of up to some hundred terms near 1, each rounded at 6e-8; the device's exp and log add
 * 2 ulp of numbers below 20. bf16: P and dS carry 2^-9 each, the outputs another 2^-9; a sum may
 * cancel, hence the absolute part, about 2^-7 of a typical value; 2^-8 in norm. lse is fp32 for
 * both.
 */
static void check_results(const struct problem *p)
{
    int bf16 = p->args.dtype == PS_DTYPE_BF16;
    for (int t = OUT; t < TENSORS; t++)
        compare(p, t, bf16 ? 3e-2 : 2e-5, bf16 ? 2e-2 : 1e-5, bf16 ? 5e-3 : 4e-6);
    for (size_t i = 0; i < (size_t)p->n_tok * (size_t)p->args.n_head; i++)
        if (!(fabsf(p->lse_image[i] - p->lse_exact[i]) <= 4e-6f * (1 + fabsf(p->lse_exact[i]))))
            fail_msg("lse[%zu] = %.9g, expected %.9g (head_dim %d)", i, (double)p->lse_image[i],
                     (double)p->lse_exact[i], p->args.head_dim);
}

static void match(cudaStream_t stream, const struct shape *s, enum ps_dtype dtype, size_t gap)
{
    struct problem p;
    make(&p, stream, s, dtype, gap);
    reference(&p);
    run(&p);
    check_results(&p);
    drop(&p);
}

static const int32_t tile_dims[] = {64, 80, 96, 128, 256};
enum { TILE_DIMS = sizeof tile_dims / sizeof tile_dims[0] };

/* Documents of 1, of odd lengths and of one less and one more than the tiles of 32, 64 and 128;
 * borders inside tiles; windows shorter than a tile, of a tile and longer. head_dim comes from the
 * test.
 */
static const struct shape shapes[] = {
    {{1}, 1, 1, 0, 0},          {{1, 1, 1}, 4, 1, 0, 0},
    {{17}, 4, 4, 0, 5},         {{1, 31, 32, 33}, 4, 1, 0, 0},
    {{63, 64, 65}, 1, 1, 0, 0}, {{127, 3}, 2, 1, 0, 0},
    {{128}, 2, 2, 0, 0},        {{129, 7, 1}, 1, 1, 0, 0},
    {{45, 19}, 8, 1, 0, 0},     {{50}, 8, 2, 0, 0},
    {{40, 150}, 1, 1, 0, 1},    {{190}, 2, 1, 0, 20},
    {{9, 180}, 1, 1, 0, 64},    {{200}, 1, 1, 0, 97},
    {{70, 30}, 2, 1, 0, 500},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void tensor_cores_match_the_reference(void **state)
{
    for (size_t d = 0; d < TILE_DIMS; d++)
        for (size_t i = 0; i < SHAPES; i++) {
            struct shape s = shapes[i];
            if (d > 0 && (i + d) % 2) /* half of them each: time */
                continue;
            s.head_dim = tile_dims[d];
            state_of_rng = 100 + i;
            match(*state, &s, PS_DTYPE_BF16, i % 2 ? 8 : 0);
        }
}

/* A whole number in [low, high]. */
static int32_t pick(int32_t low, int32_t high)
{
    state_of_rng = state_of_rng * 6364136223846793005u + 1442695040888963407u;
    return low + (int32_t)((state_of_rng >> 33) % (uint64_t)(high - low + 1));
}

/* Up to four documents of up to 90 tokens, groups of up to four heads, windows that hide whole
 * tiles of some rows, every head_dim. */
static void random_shapes_match_the_reference(void **state)
{
    enum { COUNT = 50 };
    for (int i = 0; i < COUNT; i++) {
        state_of_rng = 1000 + (uint64_t)i;
        struct shape s = {.head_dim = tile_dims[i % TILE_DIMS]};
        for (int d = pick(1, 4); d > 0; d--)
            s.len[d - 1] = pick(1, pick(0, 3) == 0 ? 90 : 40);
        s.n_kv_head = pick(1, 2);
        s.n_head = s.n_kv_head * (1 << pick(0, s.n_kv_head == 1 ? 2 : 1));
        s.window = pick(0, 1) ? pick(1, 70) : 0;
        match(*state, &s, PS_DTYPE_BF16, pick(0, 1) ? 8 : 0);
    }
}

/* One document of each length up to one more than two tiles of 32. */
static void every_length_matches_the_reference(void **state)
{
    for (int32_t n = 1; n <= 65; n++) {
        struct shape s = {{n}, 1, 1, tile_dims[n % TILE_DIMS], n % 3 ? 0 : n / 2};
        state_of_rng = 2000 + (uint64_t)n;
        match(*state, &s, PS_DTYPE_BF16, 0);
    }
}

/* Other head_dims, rows at odd addresses, fp32. */
static const struct shape plain_shapes[] = {
    {{1}, 1, 1, 1, 0},    {{2, 1, 3}, 2, 2, 3, 0},    {{31, 32, 33}, 4, 2, 24, 0},
    {{100}, 4, 1, 64, 0}, {{1, 17, 65}, 8, 1, 80, 0}, {{70, 40}, 2, 1, 33, 20},
    {{40}, 2, 1, 512, 0}, {{35}, 2, 1, 511, 3},       {{90}, 3, 3, 128, 1},
};
enum { PLAIN_SHAPES = sizeof plain_shapes / sizeof plain_shapes[0] };

static void plain_kernels_match_the_reference(void **state)
{
    FOR_EACH_TYPE(dtype)
    for (size_t i = 0; i < PLAIN_SHAPES; i++) {
        state_of_rng = 200 + i;
        match(*state, &plain_shapes[i], dtype, 3);
    }
}

static void a_negative_scale_matches_the_reference(void **state)
{
    struct problem p;
    state_of_rng = 300;
    make(&p, *state, &(struct shape){{40, 30}, 2, 1, 64, 0}, PS_DTYPE_BF16, 8);
    p.args.scale = -p.args.scale;
    reference(&p);
    run(&p);
    check_results(&p);
    drop(&p);
}

/* Scores of some hundred: the maximum moves from tile to tile and most probabilities vanish. bf16
 * of scores' operands is exact here, so the error is that of P alone; gradients grow with the
 * scale. */
static void large_scores_do_not_overflow(void **state)
{
    for (size_t d = 0; d < TILE_DIMS; d++) {
        struct problem p;
        state_of_rng = 310;
        make(&p, *state, &(struct shape){{150}, 1, 1, tile_dims[d], 0}, PS_DTYPE_BF16, 0);
        p.args.scale *= 40;
        reference(&p);
        run(&p);
        compare(&p, OUT, 3e-2, 2e-2, 5e-3);
        for (int t = DQ; t < TENSORS; t++)
            compare(&p, t, 3e-2 * 40, 2e-2, 2e-2);
        for (size_t i = 0; i < (size_t)p.n_tok; i++)
            assert_true(fabsf(p.lse_image[i] - p.lse_exact[i]) <=
                        4e-6f * (1 + fabsf(p.lse_exact[i])));
        drop(&p);
    }
}

/* Two runs of each head_dim, six of the first. */
static void runs_give_the_same_bits_whatever_the_order_of_threads(void **state)
{
    for (size_t k = 0; k < TILE_DIMS + 1; k++) {
        const size_t d = k < TILE_DIMS ? k : 0;
        struct problem p;
        unsigned char *first[TENSORS];
        state_of_rng = 320;
        make(&p, *state, &(struct shape){{20, 130}, 4, 2, tile_dims[d], 50}, PS_DTYPE_BF16, 8);
        run(&p);
        float *lse = host_copy(p.lse_image, p.lse.bytes);
        for (int t = OUT; t < TENSORS; t++)
            first[t] = host_copy(p.image[t], tensor_bytes(&p, t));
        for (int again = k < TILE_DIMS ? 1 : 5; again > 0; again--) {
            run(&p);
            assert_memory_equal(lse, p.lse_image, p.lse.bytes);
            for (int t = OUT; t < TENSORS; t++)
                assert_memory_equal(first[t], p.image[t], tensor_bytes(&p, t));
        }
        for (int t = OUT; t < TENSORS; t++)
            free(first[t]);
        free(lse);
        drop(&p);
    }
}

/* The first document of `alone` and document `which` of `among` hold the same numbers: the same
 * results, bit for bit. */
static void same_results(struct problem *alone, struct problem *among, int which)
{
    size_t begin = (size_t)among->doc_start[which], size = ps_dtype_size(alone->args.dtype);
    for (int t = 0; t <= DOUT; t++) {
        for (size_t i = 0; i < (size_t)alone->n_tok; i++)
            for (size_t c = 0; c < alone->cols[t]; c++)
                set(among, t, begin + i, c, value(alone, t, i, c));
        device_put(among->stream, &among->tensor[t], among->image[t]);
    }
    run(alone);
    run(among);
    for (int t = OUT; t < TENSORS; t++)
        for (size_t i = 0; i < (size_t)alone->n_tok; i++)
            if (memcmp(alone->image[t] + i * alone->ld[t] * size,
                       among->image[t] + (begin + i) * among->ld[t] * size,
                       alone->cols[t] * size) != 0)
                fail_msg("%s: row %zu depends on its place (head_dim %d)", tensor_name[t], i,
                         alone->args.head_dim);
    size_t heads = (size_t)alone->args.n_head;
    assert_memory_equal(alone->lse_image, among->lse_image + begin * heads, alone->lse.bytes);
}

static void a_document_does_not_depend_on_its_place_in_the_stream(void **state)
{
    static const int32_t window[] = {0, 40};
    for (size_t d = 0; d < TILE_DIMS; d++)
        for (int w = 0; w < 2; w++) {
            struct problem alone, among;
            struct shape s = {{143}, 2, 1, tile_dims[d], window[w]};
            state_of_rng = 330;
            make(&alone, *state, &s, PS_DTYPE_BF16, 0);
            memcpy(s.len, (int32_t[]){37, 143, 21}, 3 * sizeof(int32_t));
            make(&among, *state, &s, PS_DTYPE_BF16, 8);
            same_results(&alone, &among, 1);
            drop(&alone);
            drop(&among);
        }
}

static int row_has_nan(const struct problem *p, int t, size_t row)
{
    for (size_t c = 0; c < p->cols[t]; c++)
        if (isnan(value(p, t, row, c)))
            return 1;
    return 0;
}

static void nan_reaches_all_later_tokens_and_no_other_document(void **state)
{
    static const int inputs[] = {Q, K, V};
    for (size_t d = 0; d < TILE_DIMS; d++)
        for (size_t n = 0; n < 3; n++) {
            struct problem p;
            make(&p, *state, &(struct shape){{20, 60, 40}, 1, 1, tile_dims[d], 0}, PS_DTYPE_BF16,
                 0);
            set(&p, inputs[n], 30, 3, (double)NAN);
            device_put(p.stream, &p.tensor[inputs[n]], p.image[inputs[n]]);
            run(&p);
            for (size_t i = 0; i < 120; i++)
                for (int t = OUT; t < TENSORS; t++)
                    if (i < 20 || i >= 80)
                        assert_false(row_has_nan(&p, t, i));
            for (size_t i = 30; i < (inputs[n] == Q ? 31 : 80); i++)
                assert_true(row_has_nan(&p, OUT, i));
            drop(&p);
        }
}

/* The last token of a document, against the cache of all of it. */
static void decode_matches_the_reference(void **state)
{
    static const struct shape s[] = {
        {{1}, 1, 1, 64, 0},    {{2}, 4, 2, 3, 0},    {{31}, 8, 1, 80, 0},    {{200}, 4, 4, 64, 0},
        {{257}, 2, 1, 128, 0}, {{300}, 2, 1, 33, 7}, {{120}, 2, 2, 256, 64}, {{90}, 1, 1, 512, 100},
    };
    FOR_EACH_TYPE(dtype)
    for (size_t i = 0; i < sizeof s / sizeof *s; i++) {
        struct problem p;
        state_of_rng = 340 + i;
        make(&p, *state, &s[i], dtype, 3);
        reference(&p);
        size_t last = (size_t)p.n_tok - 1, size = ps_dtype_size(dtype);
        struct ps_attention_args a = p.args;
        struct device_buffer out = device_make(p.stream, p.cols[OUT] * size, 0, NULL);
        a.q = (const char *)a.q + last * a.q_ld * size;
        a.out = out.data;
        assert_int_equal(ps_attention_decode_cuda(p.stream, &a, (int32_t)last), 0);
        const unsigned char *got = device_get(p.stream, &out);
        for (size_t c = 0; c < p.cols[OUT]; c++)
            close_to("decode", c, get(got, dtype, c), p.exact[OUT][last * p.cols[OUT] + c],
                     dtype == PS_DTYPE_BF16 ? 2e-2 : 1e-5, dtype == PS_DTYPE_BF16 ? 1e-2 : 1e-5);
        device_free(p.stream, &out);
        drop(&p);
    }
}

static void wrong_arguments_are_refused_and_nothing_is_done_for_no_tokens(void **state)
{
    struct problem p;
    make(&p, *state, &(struct shape){{5}, 4, 2, 64, 0}, PS_DTYPE_BF16, 0);
    const int32_t *doc = (const int32_t *)(const void *)p.doc.data;
    struct ps_attention_args a = p.args;
    assert_int_equal(ps_attention_forward_cuda(p.stream, &a, doc, 0), 0);
    assert_int_equal(ps_attention_backward_cuda(p.stream, &a, doc, 0, p.work.data), 0);
    assert_int_equal(ps_attention_forward_cuda(p.stream, &a, NULL, 5), -EINVAL);
    assert_int_equal(ps_attention_forward_cuda(p.stream, &a, doc, -1), -EINVAL);
    assert_int_equal(ps_attention_forward_cuda(p.stream, &a, doc, 65535 * 64 + 1), -EINVAL);
    assert_int_equal(ps_attention_backward_cuda(p.stream, &a, doc, 5, NULL), -EINVAL);
    a.head_dim = 513;
    assert_int_equal(ps_attention_forward_cuda(p.stream, &a, doc, 5), -EINVAL);
    assert_int_equal(ps_attention_decode_cuda(p.stream, &a, 1), -EINVAL);
    a = p.args;
    a.n_kv_head = 3;
    assert_int_equal(ps_attention_backward_cuda(p.stream, &a, doc, 5, p.work.data), -EINVAL);
    a = p.args;
    a.dtype = PS_DTYPE_F16;
    assert_int_equal(ps_attention_forward_cuda(p.stream, &a, doc, 5), -EINVAL);
    assert_int_equal(ps_attention_decode_cuda(p.stream, &a, 1), -EINVAL);
    a = p.args;
    assert_int_equal(ps_attention_decode_cuda(p.stream, &a, -1), -EINVAL);
    for (int t = OUT; t < TENSORS; t++)
        assert_memory_equal(device_get(p.stream, &p.tensor[t]), p.image[t], tensor_bytes(&p, t));
    drop(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensor_cores_match_the_reference),
        cmocka_unit_test(random_shapes_match_the_reference),
        cmocka_unit_test(every_length_matches_the_reference),
        cmocka_unit_test(plain_kernels_match_the_reference),
        cmocka_unit_test(a_negative_scale_matches_the_reference),
        cmocka_unit_test(large_scores_do_not_overflow),
        cmocka_unit_test(runs_give_the_same_bits_whatever_the_order_of_threads),
        cmocka_unit_test(a_document_does_not_depend_on_its_place_in_the_stream),
        cmocka_unit_test(nan_reaches_all_later_tokens_and_no_other_document),
        cmocka_unit_test(decode_matches_the_reference),
        cmocka_unit_test(wrong_arguments_are_refused_and_nothing_is_done_for_no_tokens),
    };
    return cmocka_run_group_tests(tests, stream_setup, stream_teardown);
}
