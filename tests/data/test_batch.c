/* The order of the data: every row once an epoch, resuming by step number alone, documents apart.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "runtime/data/batch.h"

enum { CANARY = 0x5A5A5A5A };

/* Rows of random lengths in [2, len_max]; token j of row r is r * 1000 + j, its label that plus 7
 * or, for a third of them, -100. */
static struct ps_dataset make_rows(uint32_t count, uint32_t len_max, uint64_t seed)
{
    struct ps_dataset ds = {0};
    struct ps_rng_key key = {.seed = seed, .site = 99};
    ds.row_begin = calloc(count + 1, sizeof *ds.row_begin);
    ds.ids = calloc((size_t)count * len_max, sizeof *ds.ids);
    ds.labels = calloc((size_t)count * len_max, sizeof *ds.labels);
    for (uint32_t r = 0; r < count; r++) {
        uint32_t len = 2 + ps_rng_u32(&key, r) % (len_max - 1);
        for (uint32_t j = 0; j < len; j++) {
            int32_t id = (int32_t)(r * 1000 + j);
            ds.ids[ds.token_count + j] = id;
            ds.labels[ds.token_count + j] = (r + j) % 3 ? id + 7 : PS_LABEL_IGNORE;
        }
        ds.token_count += len;
        ds.row_begin[++ds.row_count] = ds.token_count;
    }
    return ds;
}

static struct ps_batcher *make(const struct ps_dataset *ds, struct ps_batch_options opt)
{
    struct ps_batcher *b;
    struct ps_error err = {0};
    assert_int_equal(ps_batcher_create(&b, ds, &opt, &err), 0);
    return b;
}

struct arrays {
    struct ps_batch batch;
    int32_t tok_max, doc_max;
};

static struct arrays make_arrays(const struct ps_batcher *b)
{
    struct arrays a = {.tok_max = ps_batcher_tok_max(b), .doc_max = ps_batcher_doc_max(b)};
    size_t t = (size_t)a.tok_max + 1, d = (size_t)a.doc_max + 2;
    a.batch.ids = malloc(t * sizeof(int32_t));
    a.batch.target = malloc(t * sizeof(int32_t));
    a.batch.position = malloc(t * sizeof(int32_t));
    a.batch.doc_start = malloc(d * sizeof(int32_t));
    a.batch.doc_row = malloc(d * sizeof(uint64_t));
    a.batch.ids[t - 1] = a.batch.target[t - 1] = a.batch.position[t - 1] = CANARY;
    a.batch.doc_start[d - 1] = CANARY;
    a.batch.doc_row[d - 2] = CANARY;
    return a;
}

static void free_arrays(struct arrays *a)
{
    assert_int_equal(a->batch.ids[a->tok_max], CANARY);
    assert_int_equal(a->batch.target[a->tok_max], CANARY);
    assert_int_equal(a->batch.position[a->tok_max], CANARY);
    assert_int_equal(a->batch.doc_start[a->doc_max + 1], CANARY);
    assert_int_equal(a->batch.doc_row[a->doc_max], CANARY);
    free(a->batch.ids);
    free(a->batch.target);
    free(a->batch.position);
    free(a->batch.doc_start);
    free(a->batch.doc_row);
}

/* Every document is its row, positions from 0, targets the next labels, none across the end. */
static void check_documents(const struct ps_dataset *ds, const struct ps_batch *m)
{
    int64_t labels = 0;
    assert_int_equal(m->doc_start[0], 0);
    assert_int_equal(m->doc_start[m->doc_count], m->n_tok);
    for (int32_t d = 0; d < m->doc_count; d++) {
        uint64_t begin = ds->row_begin[m->doc_row[d]];
        int32_t at = m->doc_start[d], len = m->doc_start[d + 1] - at;
        assert_int_equal(len, ds->row_begin[m->doc_row[d] + 1] - begin);
        for (int32_t i = 0; i < len; i++) {
            assert_int_equal(m->ids[at + i], ds->ids[begin + (uint64_t)i]);
            assert_int_equal(m->position[at + i], i);
            int32_t want = i + 1 < len ? ds->labels[begin + (uint64_t)i + 1] : PS_LABEL_IGNORE;
            assert_int_equal(m->target[at + i], want);
            labels += want != PS_LABEL_IGNORE;
        }
    }
    assert_int_equal(m->label_count, labels);
}

/* Fill all micro-batches of a step, checking them; *seen counts the rows, *hash folds everything.
 */
static void read_step(struct ps_batcher *b, const struct ps_dataset *ds, uint64_t step,
                      struct arrays *a, uint32_t *seen, uint64_t *hash)
{
    ps_batcher_seek(b, step);
    int64_t labels = 0, tokens = 0;
    assert_true(ps_batcher_micro_count(b) >= 1);
    for (int32_t m = 0; m < ps_batcher_micro_count(b); m++) {
        ps_batcher_fill(b, m, &a->batch);
        assert_in_range(a->batch.n_tok, 1, a->tok_max);
        assert_in_range(a->batch.doc_count, 1, a->doc_max);
        check_documents(ds, &a->batch);
        labels += a->batch.label_count;
        tokens += a->batch.n_tok;
        for (int32_t d = 0; d < a->batch.doc_count; d++) {
            if (seen)
                seen[a->batch.doc_row[d]]++;
            *hash = (*hash ^ (a->batch.doc_row[d] + 1)) * 0x9E3779B97F4A7C15u;
        }
        *hash = (*hash ^ (uint64_t)a->batch.n_tok) * 0x9E3779B97F4A7C15u;
    }
    assert_int_equal(ps_batcher_window_labels(b), labels);
    assert_int_equal(ps_batcher_window_tokens(b), tokens);
}

static const struct ps_batch_options base = {
    .batch_size = 3, .grad_accum = 2, .max_seq_len = 40, .seed = 7, .epochs = 3};

static struct ps_batch_options with(bool packing, bool shuffle)
{
    struct ps_batch_options o = base;
    o.packing = packing;
    o.shuffle = shuffle;
    return o;
}

static void every_row_comes_once_an_epoch(void **state)
{
    (void)state;
    for (int mode = 0; mode < 4; mode++) {
        struct ps_dataset ds = make_rows(101, 40, 1);
        struct ps_batcher *b = make(&ds, with(mode & 1, mode & 2));
        struct arrays a = make_arrays(b);
        uint32_t seen[101] = {0};
        uint64_t hash = 0;
        double before = 0;
        uint32_t epoch = 0;
        for (uint64_t s = 0; s < ps_batcher_step_count(b); s++) {
            read_step(b, &ds, s, &a, seen, &hash);
            double at = ps_batcher_epoch_at(b, s);
            assert_true(at > before && at <= (double)epoch + 1);
            before = at;
            if (at == (double)epoch + 1) {
                epoch++;
                for (int r = 0; r < 101; r++)
                    assert_int_equal(seen[r], epoch);
            }
        }
        assert_int_equal(epoch, 3);
        free_arrays(&a);
        ps_batcher_destroy(b);
        ps_dataset_fini(&ds);
    }
    ps_batcher_destroy(NULL);
}

static void seeking_is_pure_whatever_came_before(void **state)
{
    (void)state;
    for (int mode = 0; mode < 4; mode++) {
        struct ps_dataset ds = make_rows(67, 33, 2);
        struct ps_batcher *b = make(&ds, with(mode & 1, mode & 2));
        struct arrays a = make_arrays(b);
        uint64_t n = ps_batcher_step_count(b), want[256];
        assert_true(n > 10 && n < 256);
        for (uint64_t s = 0; s < n; s++) {
            struct ps_batcher *fresh = make(&ds, with(mode & 1, mode & 2));
            want[s] = 0;
            read_step(fresh, &ds, s, &a, NULL, &want[s]);
            ps_batcher_destroy(fresh);
        }
        struct ps_rng_key key = {.seed = 5, .site = 99};
        for (uint64_t i = 0; i < 300; i++) {
            uint64_t s = ps_rng_u32(&key, i) % n, hash = 0;
            read_step(b, &ds, s, &a, NULL, &hash);
            assert_int_equal(hash, want[s]);
        }
        free_arrays(&a);
        ps_batcher_destroy(b);
        ps_dataset_fini(&ds);
    }
}

static void the_order_depends_on_seed_and_epoch_alone(void **state)
{
    (void)state;
    struct ps_dataset ds = make_rows(64, 9, 3);
    uint64_t hash[4] = {0};
    struct ps_batch_options o = with(false, true);
    o.grad_accum = 64; /* one step an epoch */
    struct ps_batcher *b = make(&ds, o);
    struct arrays a = make_arrays(b);
    read_step(b, &ds, 0, &a, NULL, &hash[0]);
    read_step(b, &ds, 1, &a, NULL, &hash[1]);
    ps_batcher_destroy(b);
    o.seed = 8;
    b = make(&ds, o);
    read_step(b, &ds, 0, &a, NULL, &hash[2]);
    ps_batcher_destroy(b);
    o.seed = 7;
    o.epochs = 0;
    o.max_steps = 9; /* what bounds the run does not change the order */
    b = make(&ds, o);
    read_step(b, &ds, 0, &a, NULL, &hash[3]);
    ps_batcher_destroy(b);
    assert_int_not_equal(hash[0], hash[1]);
    assert_int_not_equal(hash[0], hash[2]);
    assert_int_equal(hash[0], hash[3]);
    free_arrays(&a);
    ps_dataset_fini(&ds);
}

static void shuffling_is_uniform(void **state)
{
    (void)state;
    /* 4 rows: each of the 24 orders in 4800 epochs 200 times, +- 6 standard deviations (14) */
    struct ps_dataset ds = make_rows(4, 2, 4);
    struct ps_batch_options o = {
        .batch_size = 4, .grad_accum = 1, .shuffle = true, .seed = 1, .epochs = 4800};
    struct ps_batcher *b = make(&ds, o);
    struct arrays a = make_arrays(b);
    int count[256] = {0}, orders = 0;
    assert_int_equal(ps_batcher_step_count(b), 4800);
    for (uint64_t s = 0; s < 4800; s++) {
        ps_batcher_seek(b, s);
        ps_batcher_fill(b, 0, &a.batch);
        uint64_t *r = a.batch.doc_row;
        count[r[0] << 6 | r[1] << 4 | r[2] << 2 | r[3]]++;
    }
    for (int i = 0; i < 256; i++) {
        if (!count[i])
            continue;
        orders++;
        assert_in_range(count[i], 116, 284);
    }
    assert_int_equal(orders, 24);
    free_arrays(&a);
    ps_batcher_destroy(b);
    ps_dataset_fini(&ds);
}

/* Rows of the given lengths. */
static struct ps_dataset rows_of(const uint32_t *len, uint32_t count)
{
    struct ps_dataset ds = {0};
    ds.row_begin = calloc(count + 1, sizeof *ds.row_begin);
    for (uint32_t r = 0; r < count; r++)
        ds.row_begin[++ds.row_count] = ds.token_count += len[r];
    ds.ids = calloc(ds.token_count, sizeof *ds.ids);
    ds.labels = calloc(ds.token_count, sizeof *ds.labels);
    return ds;
}

static void packing_fills_the_first_open_sequence_with_room(void **state)
{
    (void)state;
    /* by hand, 10 tokens a sequence: [6 4] [7 3] [5 5] [8] */
    const uint32_t len[] = {6, 7, 5, 4, 3, 5, 8};
    static const uint64_t rows[] = {0, 3, 1, 4, 2, 5, 6};
    static const int32_t starts[] = {0, 6, 10, 17, 20, 25, 30, 38};
    struct ps_dataset ds = rows_of(len, 7);
    struct ps_batch_options o = {
        .batch_size = 4, .grad_accum = 1, .max_seq_len = 10, .packing = true, .epochs = 1};
    struct ps_batcher *b = make(&ds, o);
    assert_int_equal(ps_batcher_step_count(b), 1);
    assert_int_equal(ps_batcher_tok_max(b), 38);
    assert_int_equal(ps_batcher_doc_max(b), 7);
    assert_true(ps_batcher_packing_efficiency(b) == 38.0 / 40.0);
    struct arrays a = make_arrays(b);
    ps_batcher_fill(b, 0, &a.batch);
    assert_int_equal(a.batch.doc_count, 7);
    assert_memory_equal(a.batch.doc_row, rows, sizeof rows);
    assert_memory_equal(a.batch.doc_start, starts, sizeof starts);
    free_arrays(&a);
    ps_batcher_destroy(b);
    ps_dataset_fini(&ds);
}

static void packing_looks_at_the_64_newest_sequences_only(void **state)
{
    (void)state;
    /* a row of 8 leaves room for 2; then 63 or 64 rows of 9; then a row of 2 */
    for (uint32_t nines = 63; nines <= 64; nines++) {
        uint32_t len[66] = {8};
        for (uint32_t i = 1; i <= nines; i++)
            len[i] = 9;
        len[nines + 1] = 2;
        struct ps_dataset ds = rows_of(len, nines + 2);
        struct ps_batch_options o = {
            .batch_size = 1, .grad_accum = 1, .max_seq_len = 10, .packing = true, .epochs = 1};
        struct ps_batcher *b = make(&ds, o);
        assert_int_equal(ps_batcher_step_count(b), nines == 63 ? 64 : 66);
        ps_batcher_destroy(b);
        ps_dataset_fini(&ds);
    }
}

static void no_sequence_is_longer_than_max_seq_len(void **state)
{
    (void)state;
    struct ps_dataset ds = make_rows(500, 40, 9);
    struct ps_batch_options o = with(true, true);
    o.batch_size = o.grad_accum = 1;
    struct ps_batcher *b = make(&ds, o);
    assert_in_range(ps_batcher_tok_max(b), 1, 40);
    struct arrays a = make_arrays(b);
    int32_t longest = 0, docs = 0;
    for (uint64_t s = 0; s < ps_batcher_step_count(b); s++) {
        ps_batcher_seek(b, s);
        ps_batcher_fill(b, 0, &a.batch);
        longest = a.batch.n_tok > longest ? a.batch.n_tok : longest;
        docs = a.batch.doc_count > docs ? a.batch.doc_count : docs;
    }
    assert_int_equal(longest, ps_batcher_tok_max(b)); /* the maxima are true ones */
    assert_int_equal(docs, ps_batcher_doc_max(b));
    assert_true(ps_batcher_packing_efficiency(b) > 0.93);
    free_arrays(&a);
    ps_batcher_destroy(b);
    ps_dataset_fini(&ds);
}

static void the_last_window_of_an_epoch_is_partial_and_a_step(void **state)
{
    (void)state;
    struct ps_dataset ds = make_rows(14, 5, 5);
    struct ps_batch_options o = with(false, true); /* windows of 6: 6 + 6 + 2 */
    struct ps_batcher *b = make(&ds, o);
    assert_int_equal(ps_batcher_step_count(b), 9);
    static const int32_t micro[] = {2, 2, 1};
    struct arrays a = make_arrays(b);
    for (uint64_t s = 0; s < 9; s++) {
        ps_batcher_seek(b, s);
        assert_int_equal(ps_batcher_micro_count(b), micro[s % 3]);
        for (int32_t m = 0; m < micro[s % 3]; m++) {
            ps_batcher_fill(b, m, &a.batch);
            assert_int_equal(a.batch.doc_count, s % 3 == 2 ? 2 : 3);
        }
    }
    assert_true(ps_batcher_epoch_at(b, 0) == 6.0 / 14);
    assert_true(ps_batcher_epoch_at(b, 2) == 1.0);
    assert_true(ps_batcher_epoch_at(b, 8) == 3.0);
    free_arrays(&a);
    ps_batcher_destroy(b);
    ps_dataset_fini(&ds);
}

static void fractional_epochs_cut_the_last_one(void **state)
{
    (void)state;
    static const struct {
        double epochs;
        uint64_t steps, rows_last; /* windows of 6 in 14 rows; rows of the last step */
        double at;
    } want[] = {
        {0.01, 1, 1, 1.0 / 14},     {0.5, 2, 1, 0.5}, {1, 3, 2, 1},
        {1.25, 4, 4, 1 + 4.0 / 14}, {2.5, 8, 1, 2.5}, {0.999, 3, 2, 1},
    };
    struct ps_dataset ds = make_rows(14, 5, 5);
    for (int mode = 0; mode < 4; mode++)
        for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
            struct ps_batch_options o = with(mode & 1, mode & 2);
            o.max_seq_len = 5;
            o.epochs = want[i].epochs;
            struct ps_batcher *b = make(&ds, o);
            struct arrays a = make_arrays(b);
            uint64_t last = ps_batcher_step_count(b) - 1, hash = 0;
            for (uint64_t s = 0; s <= last; s++)
                read_step(b, &ds, s, &a, NULL, &hash);
            if (!o.packing) {
                assert_int_equal(last + 1, want[i].steps);
                ps_batcher_seek(b, last);
                ps_batcher_fill(b, ps_batcher_micro_count(b) - 1, &a.batch);
                assert_int_equal(a.batch.doc_count, (want[i].rows_last - 1) % 3 + 1);
                assert_true(fabs(ps_batcher_epoch_at(b, last) - want[i].at) < 1e-12);
            } else {
                double at = ps_batcher_epoch_at(b, last);
                assert_true(at >= want[i].epochs && at < want[i].epochs + 0.2);
            }
            free_arrays(&a);
            ps_batcher_destroy(b);
        }
    ps_dataset_fini(&ds);
}

static void max_steps_beats_epochs_in_both_directions(void **state)
{
    (void)state;
    struct ps_dataset ds = make_rows(14, 5, 5);
    for (int mode = 0; mode < 4; mode++)
        for (uint64_t steps = 1; steps < 40; steps += 12) {
            struct ps_batch_options o = with(mode & 1, mode & 2);
            o.max_steps = steps;
            o.epochs = mode ? 0.1 : 0;
            struct ps_batcher *b = make(&ds, o);
            assert_int_equal(ps_batcher_step_count(b), steps);
            struct arrays a = make_arrays(b);
            uint64_t hash = 0;
            for (uint64_t s = 0; s < steps; s++)
                read_step(b, &ds, s, &a, NULL, &hash);
            free_arrays(&a);
            ps_batcher_destroy(b);
        }
    ps_dataset_fini(&ds);
}

static void without_a_limit_the_longest_row_is_max_seq_len(void **state)
{
    (void)state;
    const uint32_t len[] = {3, 9, 4, 5};
    struct ps_dataset ds = rows_of(len, 4);
    struct ps_batch_options o = {.batch_size = 2, .grad_accum = 1, .packing = true, .epochs = 1};
    struct ps_batcher *b = make(&ds, o);
    assert_int_equal(ps_batcher_step_count(b), 2); /* [3 4] [9] [5] */
    assert_int_equal(ps_batcher_tok_max(b), 16);
    ps_batcher_destroy(b);
    o.packing = false;
    b = make(&ds, o);
    assert_int_equal(ps_batcher_tok_max(b), 12); /* file order: 3 + 9, 4 + 5 */
    ps_batcher_destroy(b);
    o.shuffle = true;
    b = make(&ds, o);
    assert_int_equal(ps_batcher_tok_max(b), 14); /* 9 and 5 can meet */
    assert_int_equal(ps_batcher_doc_max(b), 2);
    ps_batcher_destroy(b);
    ps_dataset_fini(&ds);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    struct ps_dataset ds = make_rows(14, 5, 5), empty = {0};
    static const struct ps_batch_options bad[] = {
        {.batch_size = 0, .grad_accum = 1, .epochs = 1},
        {.batch_size = 1, .grad_accum = 0, .epochs = 1},
        {.batch_size = 1, .grad_accum = 1, .epochs = 0},
        {.batch_size = 1, .grad_accum = 1, .epochs = -1},
        {.batch_size = 1, .grad_accum = 1, .epochs = NAN},
        {.batch_size = 1, .grad_accum = 1, .epochs = INFINITY},
        {.batch_size = 1, .grad_accum = 1, .epochs = 1, .max_seq_len = 2},
        {.batch_size = 1 << 30, .grad_accum = 1, .epochs = 1, .max_seq_len = 64},
    };
    struct ps_batcher *b = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ps_error err = {0};
        assert_int_equal(ps_batcher_create(&b, &ds, &bad[i], &err), PS_EUSAGE);
        assert_true(err.message[0] != 0);
    }
    assert_int_equal(ps_batcher_create(&b, &empty, &base, NULL), PS_EDATA);
    assert_null(b);
    ps_dataset_fini(&ds);
}

/* One batch of documents by their targets; ids and positions count on. */
static void lay_out(struct ps_batch *b, const char *const *doc, int32_t docs)
{
    b->n_tok = b->doc_count = b->doc_start[0] = 0;
    for (int32_t d = 0; d < docs; d++) {
        for (int32_t i = 0; doc[d][i]; i++) {
            b->ids[b->n_tok] = 100 * d + i;
            b->position[b->n_tok] = i;
            b->target[b->n_tok++] = doc[d][i] == '.' ? -100 : doc[d][i];
        }
        b->doc_row[d] = (uint64_t)(10 + d);
        b->doc_start[++b->doc_count] = b->n_tok;
    }
}

static void expect_dropped(const char *const *doc, int32_t docs, const char *const *want,
                           const int32_t *from, int32_t wanted)
{
    int32_t ids[32], target[32], position[32], start[8];
    uint64_t row[8];
    struct ps_batch b = {
        .ids = ids, .target = target, .position = position, .doc_start = start, .doc_row = row};
    lay_out(&b, doc, docs);
    int32_t before = b.n_tok;
    int32_t dropped = ps_batch_drop_unlabelled(&b);
    assert_int_equal(b.doc_count, wanted);
    int32_t at = 0;
    for (int32_t d = 0; d < wanted; d++) {
        assert_int_equal(start[d], at);
        assert_int_equal(row[d], 10 + from[d]);
        for (int32_t i = 0; want[d][i]; i++, at++) {
            assert_int_equal(ids[at], 100 * from[d] + i);
            assert_int_equal(position[at], i);
            assert_int_equal(target[at], want[d][i] == '.' ? -100 : want[d][i]);
        }
    }
    assert_int_equal(start[wanted], at);
    assert_int_equal(b.n_tok, at);
    assert_int_equal(dropped, before - at);
}

static void tokens_after_the_last_target_are_left_out(void **state)
{
    (void)state;
    expect_dropped((const char *const[]){"..ab.", "ab.", "...", "a..b....", "."}, 5,
                   (const char *const[]){"..ab", "ab", "a..b"}, (const int32_t[]){0, 1, 3}, 3);
    expect_dropped((const char *const[]){"...", "..x"}, 2, (const char *const[]){"..x"},
                   (const int32_t[]){1}, 1);
    expect_dropped((const char *const[]){"abc", "d"}, 2, (const char *const[]){"abc", "d"},
                   (const int32_t[]){0, 1}, 2);
    /* one token stays where nothing has a target */
    expect_dropped((const char *const[]){"..", "..."}, 2, (const char *const[]){"."},
                   (const int32_t[]){1}, 1);
}

static void what_is_left_out_is_counted_by_rows(void **state)
{
    (void)state;
    struct ps_dataset ds = make_rows(40, 12, 3);
    struct ps_batcher *b =
        make(&ds, (struct ps_batch_options){.batch_size = 40, .grad_accum = 1, .epochs = 1});
    struct arrays a = make_arrays(b);
    ps_batcher_seek(b, 0);
    ps_batcher_fill(b, 0, &a.batch);
    int64_t labels = a.batch.label_count;
    assert_int_equal(ps_batch_drop_unlabelled(&a.batch), ps_batch_unlabelled_tokens(&ds));
    assert_int_equal(a.batch.label_count, labels);
    for (int32_t i = 0; i < a.batch.n_tok; i++)
        labels -= a.batch.target[i] >= 0;
    assert_int_equal(labels, 0);
    free_arrays(&a);
    ps_batcher_destroy(b);
    free(ds.row_begin);
    free(ds.ids);
    free(ds.labels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_comes_once_an_epoch),
        cmocka_unit_test(seeking_is_pure_whatever_came_before),
        cmocka_unit_test(the_order_depends_on_seed_and_epoch_alone),
        cmocka_unit_test(shuffling_is_uniform),
        cmocka_unit_test(packing_fills_the_first_open_sequence_with_room),
        cmocka_unit_test(packing_looks_at_the_64_newest_sequences_only),
        cmocka_unit_test(no_sequence_is_longer_than_max_seq_len),
        cmocka_unit_test(the_last_window_of_an_epoch_is_partial_and_a_step),
        cmocka_unit_test(fractional_epochs_cut_the_last_one),
        cmocka_unit_test(max_steps_beats_epochs_in_both_directions),
        cmocka_unit_test(without_a_limit_the_longest_row_is_max_seq_len),
        cmocka_unit_test(tokens_after_the_last_target_are_left_out),
        cmocka_unit_test(what_is_left_out_is_counted_by_rows),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
