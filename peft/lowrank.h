/* What the low-rank methods share: y = W x + b + s B M A drop(x) - s B0 A0 x.
 *
 * M (r, r) is mid - mid0, or the identity; the frozen pair A0, B0 takes off what the initial A and
 * B add, so that methods which split the base (PiSSA, OLoRA, Nystroem) leave it alone. Kept from
 * forward to backward: H = s drop(x) A^T (n_tok, r), in fp32 with a pair, else in the activations'
 * dtype. With a pair products with the adapter are made in fp32, because their difference counts.
 */
#ifndef PS_PEFT_LOWRANK_H
#define PS_PEFT_LOWRANK_H

#include "runtime/model/linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A site as one method sees it; gradients NULL: frozen. */
struct ps_lowrank {
    size_t r;
    double scale;
    const float *a, *b;      /* (r, in), (out, r) */
    const float *mid, *mid0; /* (r, r); NULL: identity, zero */
    const float *a0, *b0;    /* (r, in), (out, r); NULL: none */
    float *da, *db, *dmid;
};

/* The scale s of a configuration: alpha / r, with rsLoRA alpha / sqrt(r). */
double ps_lora_scale(const struct ps_adapter_config *cfg);

/* 0, or PS_EUSAGE when the rank does not fit the site's linear. */
int ps_lowrank_check(const struct ps_adapter_site *site, struct ps_error *err) PS_WARN_UNUSED;

/* What the wing keeps of a method beside its table: ops->own. */
struct ps_peft_method {
    struct ps_lowrank (*view)(const struct ps_adapter_site *s); /* NULL: not of this family */
    bool has_mid, has_pair;                                     /* what the view has */
    const char *peft_type;                                      /* in adapter_config.json */
    bool folds; /* files hold plain LoRA with the same function; the method's own tensors lie apart
                 */
};
const struct ps_peft_method *ps_peft_method_of(const struct ps_adapter_ops *ops);

/* The entries of a table of this family. Merging adds fp64 sums to w. */
size_t ps_lowrank_saved_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype);
size_t ps_lowrank_scratch_bytes(const struct ps_adapter_site *s, size_t n_tok, enum ps_dtype dtype);
void ps_lowrank_save(const struct ps_linear_call *c);
void ps_lowrank_forward(const struct ps_linear_call *c);
void ps_lowrank_backward(const struct ps_linear_call *c);
int ps_lowrank_merge(const struct ps_adapter_site *s, int64_t row_begin, int64_t rows, float *w);

/* Plain LoRA with the same function: factors A' (R, in), B' (out, R), R = r without a pair, else
 * 2r, scale 1. */
size_t ps_lowrank_fold_rank(const struct ps_lowrank *v);
void ps_lowrank_fold(const struct ps_adapter_site *s, const struct ps_lowrank *v, float *a,
                     float *b);

/* Uniform in +-1/sqrt(in) (Kaiming uniform with a = sqrt 5); `stream` tells a site's tensors apart
 */
void ps_lowrank_uniform(const struct ps_adapter_site *s, uint32_t stream, int64_t rows, int64_t in,
                        float *out);

/* The seed's mask for this call. */
struct ps_rng_key ps_lowrank_dropout_key(const struct ps_linear_call *c);
bool ps_lowrank_drops(const struct ps_linear_call *c);

#ifdef __cplusplus
}
#endif
#endif
