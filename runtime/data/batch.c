/* The order of the data: see batch.h.
 *
 * Design: an epoch's order is computed whole when a seek enters it (one shuffle, one packing pass),
 * into arrays allocated at creation. Where the epochs begin in steps is known from creation on:
 * with shuffling and packing together the number of sequences differs from epoch to epoch, so
 * creation goes through every epoch of the run once and keeps a table; else one epoch stands for
 * all.
 *
 * Packing: a row goes to the first, in the order of opening, of the 64 most recently opened
 * sequences that has room, full ones among them.
 *
 * Invariants:
 *   1. order[0, n) is a permutation of the rows.
 *   2. rows of sequence s are seq_row[seq_begin[s], seq_begin[s + 1]); without packing s is
 * order[s]. */
#include "runtime/data/batch.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/base/rng.h"

#define OPEN_MAX 64

struct epoch {
    uint64_t step_begin; /* first step of the epoch */
    uint32_t seq_count;  /* sequences of the whole epoch */
};

struct ps_batcher {
    const struct ps_dataset *ds;
    struct ps_batch_options opt;
    uint32_t row_count;
    int32_t max_seq_len;            /* resolved: never 0 */
    uint32_t *row_len, *row_labels; /* (row_count,) */
    /* the epoch sought */
    bool have_epoch;
    uint64_t epoch;
    uint32_t *order;               /* (row_count,) */
    uint32_t *seq_of;              /* (row_count,) by position in order; scratch of packing */
    uint32_t *seq_begin, *seq_row; /* (row_count + 1,), (row_count,); packing only */
    uint32_t seq_count;
    /* the run */
    bool uniform; /* every epoch has epoch_seqs sequences */
    uint32_t epoch_seqs;
    struct epoch *epochs; /* (epoch_count,) when not uniform */
    uint64_t epoch_count, epoch_cap;
    uint64_t last_epoch; /* the one that the fraction cuts; UINT64_MAX: none */
    double last_fraction;
    uint64_t step_count;
    int32_t tok_max, doc_max;
    double efficiency;
    /* the step sought: sequences [first, last) */
    uint32_t first, last;
};

static uint64_t ceil_div(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

static uint32_t window_seqs(const struct ps_batcher *b)
{
    uint64_t w = (uint64_t)b->opt.batch_size * (uint64_t)b->opt.grad_accum;
    return w < UINT32_MAX ? (uint32_t)w : UINT32_MAX;
}

/* Uniform in [0, bound), without bias: Lemire, "Fast random integer generation in an interval",
 * 2019. */
static uint64_t draw_below(const struct ps_rng_key *key, uint64_t *index, uint64_t bound)
{
    for (;;) {
        unsigned __int128 m = (unsigned __int128)ps_rng_u64(key, (*index)++) * bound;
        if ((uint64_t)m >= (0 - bound) % bound)
            return (uint64_t)(m >> 64);
    }
}

static void make_order(struct ps_batcher *b, uint64_t epoch)
{
    for (uint32_t i = 0; i < b->row_count; i++)
        b->order[i] = i;
    if (!b->opt.shuffle)
        return;
    struct ps_rng_key key = {.seed = b->opt.seed, .step = epoch, .site = PS_RNG_SHUFFLE};
    uint64_t index = 0;
    for (uint32_t i = b->row_count; i > 1; i--) {
        uint32_t k = (uint32_t)draw_below(&key, &index, i);
        uint32_t t = b->order[i - 1];
        b->order[i - 1] = b->order[k];
        b->order[k] = t;
    }
}

/* Least k with room[k] >= len, or OPEN_MAX. Groups of 16 make this one pass of vector compares:
 * packing a million rows is mostly this search. */
static uint32_t first_with_room(const int32_t room[OPEN_MAX], int32_t len)
{
    for (uint32_t g = 0; g < OPEN_MAX; g += 16) {
        int32_t most = -1;
        for (uint32_t i = 0; i < 16; i++)
            most = room[g + i] > most ? room[g + i] : most;
        if (most < len)
            continue;
        while (room[g] < len)
            g++;
        return g;
    }
    return OPEN_MAX;
}

/* Fill seq_begin and seq_row from order. */
static void pack(struct ps_batcher *b)
{
    int32_t room[OPEN_MAX];
    uint32_t open = 0, base = 0; /* room[i] is that of sequence base + i; -1 where none is open */
    for (uint32_t i = 0; i < OPEN_MAX; i++)
        room[i] = -1;
    for (uint32_t i = 0; i < b->row_count; i++) {
        int32_t len = (int32_t)b->row_len[b->order[i]];
        uint32_t k = first_with_room(room, len);
        if (k == OPEN_MAX) {
            if (open == OPEN_MAX) {
                memmove(room, room + 1, (OPEN_MAX - 1) * sizeof *room);
                base++;
                open--;
            }
            k = open;
            room[open++] = b->max_seq_len;
        }
        room[k] -= len;
        b->seq_of[i] = base + k;
    }
    b->seq_count = base + open;
    /* stable counting sort of the positions by sequence */
    memset(b->seq_begin, 0, ((size_t)b->row_count + 1) * sizeof *b->seq_begin);
    for (uint32_t i = 0; i < b->row_count; i++)
        b->seq_begin[b->seq_of[i] + 1]++;
    for (uint32_t s = 0; s < b->seq_count; s++)
        b->seq_begin[s + 1] += b->seq_begin[s];
    for (uint32_t i = 0; i < b->row_count; i++)
        b->seq_row[b->seq_begin[b->seq_of[i]]++] = b->order[i];
    /* each begin has moved to its end: shift back */
    memmove(b->seq_begin + 1, b->seq_begin, b->seq_count * sizeof *b->seq_begin);
    b->seq_begin[0] = 0;
}

static void enter_epoch(struct ps_batcher *b, uint64_t epoch)
{
    if (b->have_epoch && b->epoch == epoch)
        return;
    bool same = b->have_epoch && !b->opt.shuffle; /* file order in every epoch */
    b->have_epoch = true;
    b->epoch = epoch;
    if (same)
        return;
    make_order(b, epoch);
    if (b->opt.packing)
        pack(b);
    else
        b->seq_count = b->row_count;
}

/* Rows of sequence s: *count of them. */
static const uint32_t *seq_rows(const struct ps_batcher *b, uint32_t s, uint32_t *count)
{
    if (!b->opt.packing) {
        *count = 1;
        return b->order + s;
    }
    *count = b->seq_begin[s + 1] - b->seq_begin[s];
    return b->seq_row + b->seq_begin[s];
}

/* Sequences of an epoch that the run uses, of seq_count. */
static uint32_t used_seqs(const struct ps_batcher *b, uint64_t epoch, uint32_t seq_count)
{
    if (epoch != b->last_epoch)
        return seq_count;
    double n = ceil(b->last_fraction * (double)seq_count);
    return n < (double)seq_count ? (uint32_t)n : seq_count;
}

/* Raise tok_max and doc_max to those of the epoch entered. */
static void measure_epoch(struct ps_batcher *b)
{
    uint64_t batch = (uint64_t)b->opt.batch_size, tok = 0, doc = 0;
    for (uint32_t s = 0; s < b->seq_count; s++) {
        if (s % batch == 0)
            tok = doc = 0;
        uint32_t count;
        const uint32_t *rows = seq_rows(b, s, &count);
        for (uint32_t i = 0; i < count; i++)
            tok += b->row_len[rows[i]];
        doc += count;
        if (tok > (uint64_t)b->tok_max)
            b->tok_max = (int32_t)tok; /* below batch_size * max_seq_len, checked at creation */
        if (doc > (uint64_t)b->doc_max)
            b->doc_max = (int32_t)doc;
    }
}

static int by_len_desc(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

/* Without packing any batch_size rows can meet: the longest ones bound the micro-batch. */
static void measure_rows(struct ps_batcher *b)
{
    uint32_t batch = (uint32_t)b->opt.batch_size;
    uint32_t n = b->row_count < batch ? b->row_count : batch;
    memcpy(b->seq_of, b->row_len, b->row_count * sizeof *b->seq_of);
    qsort(b->seq_of, b->row_count, sizeof *b->seq_of, by_len_desc);
    b->tok_max = 0;
    for (uint32_t i = 0; i < n; i++)
        b->tok_max += (int32_t)b->seq_of[i];
    b->doc_max = (int32_t)n;
}

static int push_epoch(struct ps_batcher *b, uint64_t step_begin, struct ps_error *err)
{
    if (b->epoch_count == b->epoch_cap) {
        uint64_t cap = b->epoch_cap * 2 + 8;
        struct epoch *e = realloc(b->epochs, cap * sizeof *e);
        if (!e)
            return ps_error_set(err, -ENOMEM, "out of memory for the order of the data");
        b->epochs = e;
        b->epoch_cap = cap;
    }
    b->epochs[b->epoch_count++] = (struct epoch){step_begin, b->seq_count};
    return 0;
}

/* Count the steps of the run: go through the epochs until max_steps or the last one. */
static int plan_run(struct ps_batcher *b, struct ps_error *err)
{
    uint32_t window = window_seqs(b);
    uint64_t epochs_max = UINT64_MAX;
    b->last_epoch = UINT64_MAX;
    if (b->opt.max_steps == 0) {
        double whole = floor(b->opt.epochs);
        b->last_fraction = b->opt.epochs - whole;
        epochs_max = (uint64_t)whole;
        if (b->last_fraction > 0)
            b->last_epoch = epochs_max++;
    }
    if (b->uniform) {
        b->epoch_seqs = b->seq_count;
        uint64_t steps = ceil_div(b->seq_count, window);
        b->step_count = b->opt.max_steps;
        if (!b->step_count) {
            bool cut = b->last_epoch != UINT64_MAX;
            if (cut)
                b->step_count = ceil_div(used_seqs(b, b->last_epoch, b->seq_count), window);
            b->step_count += steps * (epochs_max - cut);
        }
        return 0;
    }
    uint64_t steps = 0;
    for (uint64_t e = 0; e < epochs_max && (!b->opt.max_steps || steps < b->opt.max_steps); e++) {
        enter_epoch(b, e);
        measure_epoch(b);
        int ret = push_epoch(b, steps, err);
        if (ret < 0)
            return ret;
        steps += ceil_div(used_seqs(b, e, b->seq_count), window);
    }
    b->step_count = b->opt.max_steps ? b->opt.max_steps : steps;
    return 0;
}

static int check_options(const struct ps_dataset *ds, const struct ps_batch_options *opt,
                         struct ps_error *err)
{
    if (opt->batch_size < 1 || opt->grad_accum < 1 || opt->max_seq_len < 0)
        return ps_error_set(err, PS_EUSAGE,
                            "batch size and accumulation must be at least 1, not %d and %d",
                            opt->batch_size, opt->grad_accum);
    if (opt->max_steps == 0 && !(opt->epochs > 0 && opt->epochs <= 1e9))
        return ps_error_full(err, PS_EUSAGE, NULL, "epochs", NULL,
                             "epochs must be above 0 and at most 1e9, not %g", opt->epochs);
    if (ds->row_count == 0 || ds->row_count >= UINT32_MAX)
        return ps_error_full(err, PS_EDATA, ds->path, NULL, NULL,
                             "a run needs between 1 and 2^32 - 2 rows, not %llu",
                             (unsigned long long)ds->row_count);
    return 0;
}

/* Lengths and labels of the rows; resolves max_seq_len. */
static int scan_rows(struct ps_batcher *b, struct ps_error *err)
{
    const struct ps_dataset *ds = b->ds;
    uint64_t longest = 1;
    for (uint32_t r = 0; r < b->row_count; r++) {
        uint64_t begin = ds->row_begin[r], len = ds->row_begin[r + 1] - begin;
        if (b->opt.max_seq_len > 0 && len > (uint64_t)b->opt.max_seq_len)
            return ps_error_full(err, PS_EUSAGE, ds->path, "max-seq-len", NULL,
                                 "row %u has %llu tokens, max-seq-len is %d", r + 1,
                                 (unsigned long long)len, b->opt.max_seq_len);
        longest = len > longest ? len : longest;
        b->row_len[r] = (uint32_t)len;
        b->row_labels[r] = 0;
        for (uint64_t i = 1; i < len; i++)
            b->row_labels[r] += ds->labels[begin + i] != PS_LABEL_IGNORE;
    }
    b->max_seq_len = b->opt.max_seq_len > 0 ? b->opt.max_seq_len : (int32_t)longest;
    if ((uint64_t)b->opt.batch_size * (uint64_t)b->max_seq_len > INT32_MAX)
        return ps_error_full(err, PS_EUSAGE, NULL, "batch-size",
                             "lower --batch-size or --max-seq-len",
                             "a micro-batch of %d sequences of %d tokens is too large",
                             b->opt.batch_size, b->max_seq_len);
    return 0;
}

int ps_batcher_create(struct ps_batcher **out, const struct ps_dataset *ds,
                      const struct ps_batch_options *opt, struct ps_error *err)
{
    int ret = check_options(ds, opt, err);
    if (ret < 0)
        return ret;
    struct ps_batcher *b = calloc(1, sizeof *b);
    if (!b)
        return ps_error_set(err, -ENOMEM, "out of memory for the order of the data");
    b->ds = ds;
    b->opt = *opt;
    b->row_count = (uint32_t)ds->row_count;
    b->uniform = !(opt->packing && opt->shuffle);
    size_t n = (size_t)b->row_count + 1;
    b->row_len = malloc(n * sizeof *b->row_len);
    b->row_labels = malloc(n * sizeof *b->row_labels);
    b->order = malloc(n * sizeof *b->order);
    b->seq_of = malloc(n * sizeof *b->seq_of);
    b->seq_begin = opt->packing ? malloc(n * sizeof *b->seq_begin) : NULL;
    b->seq_row = opt->packing ? malloc(n * sizeof *b->seq_row) : NULL;
    if (!b->row_len || !b->row_labels || !b->order || !b->seq_of ||
        (opt->packing && (!b->seq_begin || !b->seq_row))) {
        ret = ps_error_set(err, -ENOMEM, "out of memory for the order of the data");
        goto fail;
    }
    ret = scan_rows(b, err);
    if (ret < 0)
        goto fail;
    enter_epoch(b, 0);
    b->efficiency =
        (double)ds->row_begin[ds->row_count] / ((double)b->seq_count * (double)b->max_seq_len);
    if (opt->packing || !opt->shuffle)
        measure_epoch(b);
    else
        measure_rows(b);
    ret = plan_run(b, err);
    if (ret < 0)
        goto fail;
    ps_batcher_seek(b, 0);
    *out = b;
    return 0;

fail:
    ps_batcher_destroy(b);
    return ret;
}

void ps_batcher_destroy(struct ps_batcher *b)
{
    if (!b)
        return;
    free(b->row_len);
    free(b->row_labels);
    free(b->order);
    free(b->seq_of);
    free(b->seq_begin);
    free(b->seq_row);
    free(b->epochs);
    free(b);
}

uint64_t ps_batcher_step_count(const struct ps_batcher *b)
{
    return b->step_count;
}

int32_t ps_batcher_tok_max(const struct ps_batcher *b)
{
    return b->tok_max;
}

int32_t ps_batcher_doc_max(const struct ps_batcher *b)
{
    return b->doc_max;
}

double ps_batcher_packing_efficiency(const struct ps_batcher *b)
{
    return b->efficiency;
}

struct place {
    uint64_t epoch, step; /* step within the epoch */
    uint32_t seq_count;   /* of the whole epoch */
};

static struct place locate(const struct ps_batcher *b, uint64_t step)
{
    assert(step < b->step_count);
    if (b->uniform) {
        uint64_t steps = ceil_div(b->epoch_seqs, window_seqs(b));
        return (struct place){step / steps, step % steps, b->epoch_seqs};
    }
    uint64_t lo = 0,
             hi = b->epoch_count; /* epochs[lo].step_begin <= step < epochs[hi].step_begin */
    while (hi - lo > 1) {
        uint64_t mid = lo + (hi - lo) / 2;
        if (b->epochs[mid].step_begin <= step)
            lo = mid;
        else
            hi = mid;
    }
    return (struct place){lo, step - b->epochs[lo].step_begin, b->epochs[lo].seq_count};
}

/* Sequences [first, last) of the step's window. */
static void window_of(const struct ps_batcher *b, const struct place *p, uint32_t *first,
                      uint32_t *last)
{
    uint64_t used = used_seqs(b, p->epoch, p->seq_count);
    uint64_t begin = p->step * window_seqs(b);
    uint64_t end = begin + window_seqs(b);
    *first = (uint32_t)begin;
    *last = (uint32_t)(end < used ? end : used);
}

double ps_batcher_epoch_at(const struct ps_batcher *b, uint64_t step)
{
    struct place p = locate(b, step);
    uint32_t first, last;
    window_of(b, &p, &first, &last);
    return (double)p.epoch + (double)last / (double)p.seq_count;
}

void ps_batcher_seek(struct ps_batcher *b, uint64_t step)
{
    struct place p = locate(b, step);
    enter_epoch(b, p.epoch);
    assert(b->seq_count == p.seq_count);
    window_of(b, &p, &b->first, &b->last);
}

int32_t ps_batcher_micro_count(const struct ps_batcher *b)
{
    return (int32_t)ceil_div(b->last - b->first, (uint64_t)b->opt.batch_size);
}

/* Sum of a per-row number over the window. */
static int64_t window_sum(const struct ps_batcher *b, const uint32_t *per_row)
{
    int64_t sum = 0;
    for (uint32_t s = b->first; s < b->last; s++) {
        uint32_t count;
        const uint32_t *rows = seq_rows(b, s, &count);
        for (uint32_t i = 0; i < count; i++)
            sum += per_row[rows[i]];
    }
    return sum;
}

int64_t ps_batcher_window_labels(const struct ps_batcher *b)
{
    return window_sum(b, b->row_labels);
}

int64_t ps_batcher_window_tokens(const struct ps_batcher *b)
{
    return window_sum(b, b->row_len);
}

/* Append one row as a document. */
static void put_document(const struct ps_batcher *b, uint32_t row, struct ps_batch *out)
{
    const struct ps_dataset *ds = b->ds;
    int32_t len = (int32_t)b->row_len[row], at = out->n_tok;
    const int32_t *ids = ds->ids + ds->row_begin[row], *labels = ds->labels + ds->row_begin[row];
    for (int32_t i = 0; i < len; i++) {
        out->ids[at + i] = ids[i];
        out->target[at + i] = i + 1 < len ? labels[i + 1] : PS_LABEL_IGNORE;
        out->position[at + i] = i;
    }
    out->label_count += b->row_labels[row];
    out->doc_row[out->doc_count++] = row;
    out->n_tok += len;
    out->doc_start[out->doc_count] = out->n_tok;
}

void ps_batcher_fill(const struct ps_batcher *b, int32_t micro, struct ps_batch *out)
{
    assert(micro >= 0 && micro < ps_batcher_micro_count(b));
    uint64_t begin = b->first + (uint64_t)micro * (uint64_t)b->opt.batch_size;
    uint64_t end = begin + (uint64_t)b->opt.batch_size;
    if (end > b->last)
        end = b->last;
    out->n_tok = 0;
    out->doc_count = 0;
    out->label_count = 0;
    out->doc_start[0] = 0;
    for (uint64_t s = begin; s < end; s++) {
        uint32_t count;
        const uint32_t *rows = seq_rows(b, (uint32_t)s, &count);
        for (uint32_t i = 0; i < count; i++)
            put_document(b, rows[i], out);
    }
}

/* One past the last token of [begin, end) that has a target; begin: none has. */
static int32_t last_target(const struct ps_batch *b, int32_t begin, int32_t end)
{
    while (end > begin && b->target[end - 1] < 0)
        end--;
    return end;
}

int32_t ps_batch_drop_unlabelled(struct ps_batch *b)
{
    int32_t before = b->n_tok;
    int32_t at = 0;
    int32_t docs = 0;
    int32_t begin = 0;
    for (int32_t d = 0; d < b->doc_count; d++) {
        int32_t next = b->doc_start[d + 1];
        int32_t end = last_target(b, begin, next);
        if (at == 0 && end == begin && d + 1 == b->doc_count)
            end = begin + 1;
        size_t n = (size_t)(end - begin) * sizeof(int32_t);
        if (n > 0) {
            memmove(b->ids + at, b->ids + begin, n);
            memmove(b->target + at, b->target + begin, n);
            memmove(b->position + at, b->position + begin, n);
            b->doc_row[docs++] = b->doc_row[d];
            at += end - begin;
            b->doc_start[docs] = at;
        }
        begin = next;
    }
    b->doc_count = docs;
    b->n_tok = at;
    return before - at;
}

uint64_t ps_batch_unlabelled_tokens(const struct ps_dataset *ds)
{
    uint64_t sum = 0;
    for (uint64_t r = 0; r < ds->row_count; r++) {
        uint64_t begin = ds->row_begin[r];
        uint64_t end = ds->row_begin[r + 1];
        uint64_t all = end;
        while (end > begin + 1 && ds->labels[end - 1] == PS_LABEL_IGNORE)
            end--;
        sum += end > begin + 1 ? all - (end - 1) : all - begin;
    }
    return sum;
}
