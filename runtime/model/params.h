/* The parameter table: every weight tensor of a decoder, in a fixed order, with what the planner,
 * the optimizers and the file writers need to know about it. */
#ifndef PS_MODEL_PARAMS_H
#define PS_MODEL_PARAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/model/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The seven linears come first: their values index per-layer arrays of linears. */
enum ps_role {
    PS_ROLE_Q,
    PS_ROLE_K,
    PS_ROLE_V,
    PS_ROLE_O,
    PS_ROLE_GATE,
    PS_ROLE_UP,
    PS_ROLE_DOWN,
    PS_ROLE_ATTN_NORM,
    PS_ROLE_MLP_NORM,
    PS_ROLE_Q_NORM,
    PS_ROLE_K_NORM,
    PS_ROLE_Q_BIAS,
    PS_ROLE_K_BIAS,
    PS_ROLE_V_BIAS,
    PS_ROLE_O_BIAS,
    PS_ROLE_GATE_BIAS,
    PS_ROLE_UP_BIAS,
    PS_ROLE_DOWN_BIAS,
    PS_ROLE_LAYER_COUNT, /* roles above are per layer */
    PS_ROLE_EMBED = PS_ROLE_LAYER_COUNT,
    PS_ROLE_FINAL_NORM,
    PS_ROLE_HEAD,
    PS_ROLE_COUNT,
};
#define PS_LINEAR_COUNT 7

struct ps_param_info {
    char name[96]; /* Hugging Face tensor name */
    enum ps_role role;
    int32_t layer;    /* -1 outside the layers */
    int32_t rank;     /* 1 or 2 */
    int64_t shape[2]; /* (out, in), (vocab, hidden) or (n,) */
    size_t elements;
    int32_t
        head_count; /* rows fall into this many heads (q, k, v; columns for o); 0: no partition */
    int32_t tied_group; /* parameters of one group > 0 share storage; 0: none */
    int32_t rate_group; /* learning-rate group: 0 for all base parameters */
    bool decay;         /* weight decay applies: 2-D tensors */
};

struct ps_param_table {
    struct ps_param_info *param;
    size_t count;
    size_t elements; /* sum over parameters, tied ones once */
    int32_t *index;  /* (n_layer * PS_ROLE_LAYER_COUNT + 3): parameter index or -1 */
    int32_t n_layer;
};

/* Build the table of a model: embedding, layers in ascending order (norm, q, k, v, o and their
 * biases, norms per head, norm, gate, up, down), final norm, head (absent when tied). 0 or -ENOMEM.
 */
int ps_param_table_create(struct ps_param_table *out,
                          const struct ps_model_config *cfg) PS_WARN_UNUSED;
void ps_param_table_fini(struct ps_param_table *t);

/* Index of the parameter of a role, or -1. layer is ignored for the roles outside layers. For a
 * tied model PS_ROLE_HEAD gives the embedding. */
int32_t ps_param_find(const struct ps_param_table *t, int32_t layer, enum ps_role role);

/* Module name of a linear: "q_proj", ..., "down_proj"; and its parent: "self_attn" or "mlp". */
const char *ps_linear_name(enum ps_role role);
const char *ps_linear_parent(enum ps_role role);

/* Output and input sizes of a linear; of the embedding (hidden, vocab), of the head (vocab,
 * hidden).
 */
void ps_linear_shape(const struct ps_model_config *cfg, enum ps_role role, int64_t *out,
                     int64_t *in);

/* What can have an adapter, a site: the linears of layer l at l * 7 + role, then the embedding and
 * the head. Tables by site have ps_site_count entries. */
static inline size_t ps_site_count(int32_t n_layer)
{
    return (size_t)n_layer * PS_LINEAR_COUNT + 2;
}
size_t ps_site_idx(int32_t n_layer, int32_t layer, enum ps_role role);
/* Layer (-1 outside) and role of a site. */
void ps_site_at(int32_t n_layer, size_t site, int32_t *layer, enum ps_role *role);
/* Its module path, as "model.layers.0.self_attn.q_proj". */
#define PS_SITE_PATH_MAX 96
void ps_site_path(char path[PS_SITE_PATH_MAX], int32_t layer, enum ps_role role);

#ifdef __cplusplus
}
#endif
#endif
