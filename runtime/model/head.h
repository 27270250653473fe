/* Final norm, output head and cross-entropy, in chunks of labelled tokens: logits are never whole.
 *
 * Only tokens with a target pass: their hidden states are gathered in ascending order, normed,
 * multiplied by the head in chunks of ps_head_chunk_rows rows (a function of the model's shape
 * alone), and the gradient goes back the same way. */
#ifndef PS_MODEL_HEAD_H
#define PS_MODEL_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/model/config.h"
#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_head {
    const struct ps_model_config *cfg;
    struct ps_weight norm;              /* (hidden,) */
    struct ps_weight head;              /* (vocab, hidden); the embedding when tied */
    float *dnorm;                       /* (hidden,) fp32 or NULL */
    float *dhead;                       /* (vocab, hidden) fp32 or NULL */
    const struct ps_adapter_site *site; /* NULL: no adapter */
};

struct ps_head_scratch {
    double *loss;          /* (n_tok,) */
    float *rstd;           /* (n_tok,) */
    void *x;               /* (n_tok, hidden) gathered */
    void *normed;          /* (n_tok, hidden) */
    void *dnormed;         /* (n_tok, hidden), backward only */
    float *logits;         /* (chunk rows, vocab) */
    void *rmsnorm;         /* backward only */
    void *saved, *adapter; /* the adapter's, of one chunk */
};

/* Rows of one chunk of logits. */
size_t ps_head_chunk_rows(const struct ps_model_config *cfg);

/* As ps_block_scratch_carve; site: the adapter of the head, or NULL. */
size_t ps_head_scratch_carve(struct ps_head_scratch *out, void *base,
                             const struct ps_model_config *cfg, const struct ps_adapter_site *site,
                             enum ps_dtype dtype, size_t n_tok, bool backward);

struct ps_head_call {
    const struct ps_compute *cx;
    const struct ps_head_scratch *scratch;
    size_t n_tok;
    const void *x; /* (n_tok, hidden) output of the last layer */
    /* The labelled tokens, ascending: their indices and their targets, (rows,). */
    const int32_t *row, *target;
    size_t rows;
    float dscale; /* 1 / labelled tokens of the window */
    void *dx; /* (n_tok, hidden) gradient of x, zero at tokens without a label; NULL: loss only */
    bool accumulate; /* dnorm, dhead and the adapter's gradients += */
    bool training;   /* the adapter's dropout is active, with this key */
    struct ps_rng_key key;
    double *loss; /* receives the sum of the losses, added in ascending order */
};

void ps_head_loss(const struct ps_head *h, const struct ps_head_call *call);

/* Logits of rows [row_begin, row_begin + rows) into out (rows, vocab) fp32. rows <= chunk rows. */
void ps_head_logits(const struct ps_head *h, const struct ps_compute *cx,
                    const struct ps_head_scratch *scratch, const void *x, size_t row_begin,
                    size_t rows, float *out);

#ifdef __cplusplus
}
#endif
#endif
