/* The order of the data: rows -> sequences -> micro-batches -> windows (optimizer steps).
 *
 * A sequence is one row, or with packing several whole rows of together at most max_seq_len tokens
 * (rows longer than that were cut when the data set was loaded). A micro-batch is batch_size
 * sequences (fewer only at the end of an epoch), laid out as one dense stream of tokens cut into
 * documents: no padding is ever computed. Positions restart at each document, no target crosses a
 * document. A window is grad_accum micro-batches; the last, partial one of an epoch is a step too.
 *
 * The order of epoch e is a permutation drawn from (seed, e) alone (file order when shuffle is
 * off); packing fills sequences greedily in that order: each row goes to the first of the 64 most
 * recently opened sequences that has room for it, else a new one is opened. Everything here is a
 * pure function of (options, step): resuming needs only the step number. */
#ifndef PS_DATA_BATCH_H
#define PS_DATA_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/data/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_batch_options {
    int32_t batch_size, grad_accum, max_seq_len;
    bool packing, shuffle;
    uint64_t seed;
    double epochs;      /* used when max_steps == 0; > 0, may be fractional */
    uint64_t max_steps; /* 0: from epochs */
};

/* One micro-batch in the caller's memory: arrays of the capacities below. */
struct ps_batch {
    int32_t *ids;       /* (n_tok,) */
    int32_t *target;    /* (n_tok,) label of the next token of the document, or -100 */
    int32_t *position;  /* (n_tok,) */
    int32_t *doc_start; /* (doc_count + 1,) */
    uint64_t *doc_row;  /* (doc_count,) data set row of each document */
    int32_t n_tok, doc_count;
    int64_t label_count; /* targets that are not -100 */
};

struct ps_batcher;

/* Keeps a pointer to ds, which must live as long. All memory is allocated here. */
int ps_batcher_create(struct ps_batcher **out, const struct ps_dataset *ds,
                      const struct ps_batch_options *opt, struct ps_error *err) PS_WARN_UNUSED;
void ps_batcher_destroy(struct ps_batcher *b);

uint64_t ps_batcher_step_count(const struct ps_batcher *b);
/* Most tokens and documents that any micro-batch of the run can have. */
int32_t ps_batcher_tok_max(const struct ps_batcher *b);
int32_t ps_batcher_doc_max(const struct ps_batcher *b);

/* Position of step `step` (0-based) in epochs: the fraction of the data seen when it ends. */
double ps_batcher_epoch_at(const struct ps_batcher *b, uint64_t step);

/* Move to a step: computes the epoch's order if the epoch changes. No allocation. */
void ps_batcher_seek(struct ps_batcher *b, uint64_t step);
/* Of the step sought: micro-batches in its window, labelled targets, tokens. */
int32_t ps_batcher_micro_count(const struct ps_batcher *b);
int64_t ps_batcher_window_labels(const struct ps_batcher *b);
int64_t ps_batcher_window_tokens(const struct ps_batcher *b);
/* Fill micro-batch `micro` of the step sought. No allocation. */
void ps_batcher_fill(const struct ps_batcher *b, int32_t micro, struct ps_batch *out);

/* Leave out what no gradient comes from, in place: the tokens after the last target of each
 * document (attention is causal: nothing that has a loss reads them), and documents without a
 * target. The others keep their positions, targets and order. Of a batch without any target the
 * first token stays. Returns the tokens left out. */
int32_t ps_batch_drop_unlabelled(struct ps_batch *b);
/* How many that is of all rows of a data set, but for batches without any target. */
uint64_t ps_batch_unlabelled_tokens(const struct ps_dataset *ds);

/* Tokens over (sequences * max_seq_len) of the first epoch. */
double ps_batcher_packing_efficiency(const struct ps_batcher *b);

#ifdef __cplusplus
}
#endif
#endif
