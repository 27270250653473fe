/* MicroAdam: Adam over a window of sparse gradients, with the rest kept as 4-bit error feedback.
 *
 * A tensor is taken as blocks of 16384 elements (the last one may be shorter). At the update number
 * t of the tensor, with row = (t - 1) mod window:
 *
 *   a = g + dequantised error                                              (g = grad * grad_scale)
 *   row holds the ceil(density n) largest |a| of each block, index and bf16 value; of equal ones
 * the lower index; they are 0 in a error = a in 4 bits: per quant block lo <= a <= hi in bf16, code
 * = round((a - lo) 15 / (hi - lo)) z1 = sum over rows of beta1^age v,  z2 = sum of beta2^age v^2,
 * age = (t - 1 - row) mod window p <- p - (lr * decay) p p <- p - lr ((1 - beta1) / c1 z1) /
 * (sqrt((1 - beta2) / c2 z2) + eps)         c = 1 - beta^t
 *
 * Two codes share a byte, the first in the high half. lo is rounded down and hi up, so that an
 * error is at most half a step off. c counts all updates though the window forgets: from t > window
 * on steps are longer than Adam's (6.5 times with the defaults), as the authors have it.
 *
 * Source: Modoranu et al. 2024, arXiv:2405.15593; block size fixed, error in fp32: ours. */
#include <math.h>

#include "optim/optimizers.h"
#include "optim/tile_internal.h"

#define BLOCK 16384 /* indices fit 16 bits with room */

enum { INDEX, VALUE, ERROR, LOW, HIGH };

static size_t kept_of(double density, size_t n)
{
    size_t k = (size_t)ceil(density * (double)n);
    return k < 1 ? 1 : k > n ? n : k;
}

/* Entries of a row. */
static size_t kept_all(double density, size_t n)
{
    size_t tail = n % BLOCK;
    return n / BLOCK * kept_of(density, BLOCK) + (tail ? kept_of(density, tail) : 0);
}

static int microadam_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                            struct ps_opt_layout *out, struct ps_error *err)
{
    uint32_t quant = (uint32_t)h->quant_block;
    if (quant < 2 || BLOCK % quant != 0)
        return ps_error_full(
            err, PS_EUSAGE, NULL, "quant-block-size", "take a power of two from 2 to 16384, as 64",
            "`quant-block-size` %d does not divide the blocks of 16384 elements", h->quant_block);
    uint64_t entries = (uint64_t)h->window * kept_all(h->density, tensor->n);
    *out = (struct ps_opt_layout){
        .state_count = 5,
        .state = {{.name = "index", .dtype = PS_DTYPE_U16, .count = entries},
                  {.name = "value", .dtype = PS_DTYPE_BF16, .count = entries},
                  {.name = "error", .dtype = PS_DTYPE_U8, .per = 2},
                  {.name = "error_min", .dtype = PS_DTYPE_BF16, .per = quant},
                  {.name = "error_max", .dtype = PS_DTYPE_BF16, .per = quant}},
        .granule = 0,
        .remainder = !h->stochastic_rounding,
    };
    return 0;
}

struct pass {
    const struct ps_update *u;
    size_t row_entries, block_entries, row;
    size_t quant;
    float decay, lr, eps, c1, c2;
    float weight1[64], weight2[64]; /* of a row's values and their squares */
};

static void load_error(const struct pass *a, size_t at, size_t n, float *x)
{
    const uint8_t *code = (const uint8_t *)a->u->state[ERROR] + at / 2;
    const uint16_t *low = (const uint16_t *)a->u->state[LOW] + at / a->quant;
    const uint16_t *high = (const uint16_t *)a->u->state[HIGH] + at / a->quant;
    for (size_t b = 0; b < n; b += a->quant) {
        float lo = ps_bf16_to_f32(low[b / a->quant]), hi = ps_bf16_to_f32(high[b / a->quant]);
        float step = (hi - lo) / 15;
        size_t end = n - b < a->quant ? n : b + a->quant;
        for (size_t i = b; i < end; i++)
            x[i] = lo + step * (float)(code[i / 2] >> (i % 2 ? 0 : 4) & 15);
    }
}

/* The bf16 value next to x on the side of `sign` (or x itself). */
static uint16_t round_outward(float x, int sign)
{
    uint16_t h = ps_f32_to_bf16(x);
    float back = ps_bf16_to_f32(h);
    if (sign < 0 ? back <= x : back >= x)
        return h;
    /* one step outward: larger magnitude if the sign agrees, else smaller; x is not 0 here */
    return (uint16_t)((x < 0) == (sign < 0) ? h + 1 : h - 1);
}

static void store_error(const struct pass *a, size_t at, size_t n, const float *x)
{
    uint8_t *code = (uint8_t *)a->u->state[ERROR] + at / 2;
    uint16_t *low = (uint16_t *)a->u->state[LOW] + at / a->quant;
    uint16_t *high = (uint16_t *)a->u->state[HIGH] + at / a->quant;
    memset(code, 0, (n + 1) / 2);
    for (size_t b = 0; b < n; b += a->quant) {
        size_t end = n - b < a->quant ? n : b + a->quant;
        float lo = x[b], hi = x[b];
        for (size_t i = b; i < end; i++) {
            lo = x[i] < lo ? x[i] : lo;
            hi = x[i] > hi ? x[i] : hi;
        }
        low[b / a->quant] = round_outward(lo, -1);
        high[b / a->quant] = round_outward(hi, 1);
        lo = ps_bf16_to_f32(low[b / a->quant]);
        float step = (ps_bf16_to_f32(high[b / a->quant]) - lo) / 15;
        if (!(step > 0))
            continue;
        for (size_t i = b; i < end; i++) {
            float q = (x[i] - lo) / step + 0.5f;
            unsigned c = q < 1 ? 0 : q < 15 ? (unsigned)q : 15;
            code[i / 2] = (uint8_t)(code[i / 2] | c << (i % 2 ? 0 : 4));
        }
    }
}

static uint32_t magnitude(float x)
{
    return ps__bits_of(x) & 0x7fffffffu;
}

/* Bits of the k-th largest magnitude, and how many are above it: a digit of 8 bits at a time. */
static uint32_t kth_largest(const float *x, size_t n, size_t k, size_t *above)
{
    uint32_t prefix = 0, mask = 0;
    size_t left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t count[256] = {0};
        for (size_t i = 0; i < n; i++)
            if ((magnitude(x[i]) & mask) == prefix)
                count[magnitude(x[i]) >> shift & 255]++;
        uint32_t digit = 255;
        while (digit > 0 && count[digit] < left)
            left -= count[digit--];
        prefix |= digit << shift;
        mask |= 255u << shift;
    }
    *above = k - left;
    return prefix;
}

/* Move the k largest of x into the row, ascending in index. */
static void take_largest(float *x, size_t n, size_t k, uint16_t *index, uint16_t *value)
{
    size_t above, taken = 0;
    uint32_t least = kth_largest(x, n, k, &above);
    size_t equal = k - above;
    for (size_t i = 0; i < n; i++) {
        uint32_t m = magnitude(x[i]);
        if (m < least || (m == least && equal == 0))
            continue;
        equal -= m == least;
        index[taken] = (uint16_t)i;
        value[taken++] = ps_f32_to_bf16(x[i]);
        x[i] = 0;
    }
    assert(taken == k);
}

/* The step of elements [from, from + n) of a block that begins at `at`; cursor: of each row. */
static void step_tile(const struct pass *a, size_t at, size_t from, size_t n, size_t k,
                      const uint16_t *const *index, const uint16_t *const *value, size_t *cursor)
{
    float z1[PS_TILE] = {0}, z2[PS_TILE] = {0}, w[PS_TILE];
    int32_t rows = a->u->hyper->window;
    for (int32_t r = 0; r < rows; r++)
        for (; cursor[r] < k && index[r][cursor[r]] < from + n; cursor[r]++) {
            size_t i = index[r][cursor[r]] - from;
            float v = ps_bf16_to_f32(value[r][cursor[r]]);
            z1[i] = z1[i] + a->weight1[r] * v;
            z2[i] = z2[i] + a->weight2[r] * (v * v);
        }
    ps_weight_load(a->u, at + from, n, w);
    for (size_t i = 0; i < n; i++) {
        float step = (a->c1 * z1[i]) / (__builtin_sqrtf(a->c2 * z2[i]) + a->eps);
        w[i] = (w[i] - a->decay * w[i]) - a->lr * step;
    }
    ps_weight_store(a->u, at + from, n, w);
}

static void run_block(void *arg, size_t block, int thread)
{
    (void)thread;
    const struct pass *a = arg;
    const struct ps_update *u = a->u;
    float x[BLOCK], g[PS_TILE];
    const uint16_t *index[64], *value[64];
    size_t cursor[64] = {0};
    size_t at = block * BLOCK, n = u->n - at < BLOCK ? u->n - at : BLOCK;
    size_t k = kept_of(u->hyper->density, n), entry = block * a->block_entries;
    load_error(a, at, n, x);
    for (size_t i = 0; i < n; i += PS_TILE) {
        size_t m = n - i < PS_TILE ? n - i : PS_TILE;
        ps_grad_load(u, at + i, m, g);
        for (size_t j = 0; j < m; j++)
            x[i + j] = g[j] + x[i + j];
    }
    uint16_t *indices = u->state[INDEX], *values = u->state[VALUE];
    take_largest(x, n, k, indices + a->row * a->row_entries + entry,
                 values + a->row * a->row_entries + entry);
    store_error(a, at, n, x);
    /* rows that have not been written yet hold zeros: as many as possible at index 0 */
    for (int32_t r = 0; r < u->hyper->window; r++) {
        index[r] = indices + (size_t)r * a->row_entries + entry;
        value[r] = values + (size_t)r * a->row_entries + entry;
    }
    for (size_t i = 0; i < n; i += PS_TILE)
        step_tile(a, at, i, n - i < PS_TILE ? n - i : PS_TILE, k, index, value, cursor);
}

static int microadam_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    const struct ps_optimizer_hyper *h = u->hyper;
    double t = (double)u->t;
    struct pass a = {.u = u,
                     .row_entries = kept_all(h->density, u->n),
                     .block_entries = kept_of(h->density, BLOCK),
                     .row = (size_t)((u->t - 1) % (uint64_t)h->window),
                     .quant = (size_t)h->quant_block,
                     .decay = (float)(u->lr * (u->decay ? h->weight_decay : 0)),
                     .lr = (float)u->lr,
                     .eps = (float)h->eps,
                     .c1 = (float)((1 - h->beta1) / -expm1(t * log(h->beta1))),
                     .c2 = (float)((1 - h->beta2) / -expm1(t * log(h->beta2)))};
    assert(u->begin == 0 && u->n == u->tensor->n && h->window >= 1 && h->window <= 64);
    for (int32_t r = 0; r < h->window; r++) {
        size_t window = (size_t)h->window;
        double age = (double)((a.row + window - (size_t)r) % window);
        a.weight1[r] = (float)pow(h->beta1, age);
        a.weight2[r] = (float)pow(h->beta2, age);
    }
    ps_pool_run(u->pool, run_block, &a, (u->n + BLOCK - 1) / BLOCK);
    return 0;
}

static const struct ps_optimizer_option microadam_options[] = {{"beta1", 0.9},
                                                               {"beta2", 0.999},
                                                               {"eps", 1e-8},
                                                               {"microadam-window", 10},
                                                               {"microadam-density", 0.01},
                                                               {"quant-block-size", 64},
                                                               {NULL, 0}};

const struct ps_optimizer_ops ps_microadam_ops = {
    .name = "microadam",
    .options = microadam_options,
    .layout = microadam_layout,
    .update = microadam_update,
};
