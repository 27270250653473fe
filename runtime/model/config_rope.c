/* RoPE parameters of a configuration and their frequencies.
 *
 * The parameters stand in `rope_parameters` (transformers 5), or in `rope_scaling` with a top-level
 * `rope_theta` (before). The frequencies repeat the fp32 operations of transformers'
 * modeling_rope_utils on torch tensors in their order: a Python scalar divided by a tensor is
 * torch's reciprocal times the scalar, and scalars are rounded to fp32 first. Only the power is
 * better than torch's: correctly rounded (by way of double) where torch's is within 1 ulp. */
#include "runtime/model/config_internal.h"

#include <math.h>
#include <string.h>

#define THETA_DEFAULT 10000.0

static int refuse_rope(const char *type, const char *reason, const char *key, const char *file,
                       struct ps_error *err)
{
    return ps_error_full(
        err, PS_EUNSUPPORTED, file, key, "supported RoPE types: default, linear, llama3",
        "RoPE type \"%.64s\" is not supported%s%s", type, reason[0] ? ": " : "", reason);
}

/* The object with the parameters, NULL when there is none, and the key it came from. */
static int find_params(const json_t *root, const char *file, const json_t **params,
                       const char **key, struct ps_error *err)
{
    const json_t *now = json_object_get(root, "rope_parameters");
    const json_t *old = json_object_get(root, "rope_scaling");
    if (json_is_null(now))
        now = NULL;
    if (json_is_null(old))
        old = NULL;
    if (now && old && !json_equal(now, old))
        return ps_error_full(err, PS_EFORMAT, file, "rope_parameters",
                             "remove the one that does not belong to the weights",
                             "\"rope_parameters\" and \"rope_scaling\" contradict each other");
    *key = now ? "rope_parameters" : "rope_scaling";
    *params = now ? now : old;
    if (*params && !json_is_object(*params))
        return ps_error_full(err, PS_EFORMAT, file, *key, NULL, "\"%s\" must be an object", *key);
    if (json_object_get(*params, "sliding_attention") || json_object_get(*params, "full_attention"))
        return ps_error_full(err, PS_EUNSUPPORTED, file, *key, NULL,
                             "RoPE parameters that differ by layer type are not supported");
    return 0;
}

static int read_type(struct ps_model_config *out, const json_t *params, const char *key,
                     const char *file, struct ps_error *err)
{
    const char *type;
    int ret = ps_json_get_string(params, "rope_type", NULL, file, &type, err);
    if (!ret && !type)
        ret = ps_json_get_string(params, "type", "default", file, &type, err);
    if (ret)
        return ret;
    if (strcmp(type, "default") == 0)
        out->rope_type = PS_ROPE_DEFAULT;
    else if (strcmp(type, "linear") == 0)
        out->rope_type = PS_ROPE_LINEAR;
    else if (strcmp(type, "llama3") == 0)
        out->rope_type = PS_ROPE_LLAMA3;
    else if (strcmp(type, "dynamic") == 0)
        return refuse_rope(type, "its frequencies change with the length", key, file, err);
    else
        return refuse_rope(type, "", key, file, err);
    return 0;
}

/* A required real. */
static int get_factor(const json_t *params, const char *key, double min, double max,
                      const char *file, double *out, struct ps_error *err)
{
    if (!json_object_get(params, key) || json_is_null(json_object_get(params, key)))
        return ps_error_full(err, PS_EFORMAT, file, key, NULL,
                             "\"%s\" is missing from the RoPE parameters", key);
    return ps_json_get_real(params, key, min, max, 0, file, out, err);
}

/* partial_rotary_factor may sit in the parameters or at the top. */
static int check_partial(const json_t *root, const json_t *params, const char *file,
                         struct ps_error *err)
{
    double top, inner;
    int ret = ps_json_get_real(root, "partial_rotary_factor", 0, 1, 1, file, &top, err);
    if (!ret)
        ret = ps_json_get_real(params, "partial_rotary_factor", 0, 1, top, file, &inner, err);
    if (ret)
        return ret;
    if (inner < 1)
        return ps_error_full(err, PS_EUNSUPPORTED, file, "partial_rotary_factor", NULL,
                             "\"partial_rotary_factor\" is %g: RoPE on a part of each head is not "
                             "supported",
                             inner);
    return 0;
}

static int read_llama3(struct ps_model_config *out, const json_t *root, const json_t *params,
                       const char *file, struct ps_error *err)
{
    int ret =
        get_factor(params, "low_freq_factor", 1e-6, 1e6, file, &out->rope_low_freq_factor, err);
    if (!ret)
        ret = get_factor(params, "high_freq_factor", 1e-6, 1e6, file, &out->rope_high_freq_factor,
                         err);
    if (ret)
        return ret;
    if (out->rope_high_freq_factor <= out->rope_low_freq_factor)
        return ps_error_full(err, PS_EFORMAT, file, "high_freq_factor", NULL,
                             "\"high_freq_factor\" (%g) must be above \"low_freq_factor\" (%g)",
                             out->rope_high_freq_factor, out->rope_low_freq_factor);
    /* transformers: the top-level key wins, the model's length is the fallback */
    const char *key = "original_max_position_embeddings";
    double inner;
    ret =
        ps_json_get_real(params, key, 1, 1 << 26, out->max_position_embeddings, file, &inner, err);
    if (!ret)
        ret = ps_json_get_real(root, key, 1, 1 << 26, inner, file, &out->rope_original_max_position,
                               err);
    return ret;
}

int ps__model_config_rope(struct ps_model_config *out, const json_t *root, const char *file,
                          struct ps_error *err)
{
    const json_t *params = NULL;
    const char *key = NULL;
    int ret = find_params(root, file, &params, &key, err);
    if (!ret)
        ret = read_type(out, params, key, file, err);
    if (!ret)
        ret = check_partial(root, params, file, err);
    double top = THETA_DEFAULT;
    if (!ret)
        ret = ps_json_get_real(root, "rope_theta", 1, 1e15, THETA_DEFAULT, file, &top, err);
    if (!ret)
        ret = ps_json_get_real(params, "rope_theta", 1, 1e15, top, file, &out->rope_theta, err);
    if (ret)
        return ret;
    out->rope_factor = 1;
    if (out->rope_type != PS_ROPE_DEFAULT)
        ret = get_factor(params, "factor", 1e-6, 1e6, file, &out->rope_factor, err);
    if (!ret && out->rope_type == PS_ROPE_LLAMA3)
        ret = read_llama3(out, root, params, file, err);
    return ret;
}

static float scale_llama3(const struct ps_model_config *cfg, float inv)
{
    float factor = (float)cfg->rope_factor;
    float low = (float)cfg->rope_low_freq_factor;
    float span = (float)(cfg->rope_high_freq_factor - cfg->rope_low_freq_factor);
    float orig = (float)cfg->rope_original_max_position;
    float low_wavelen = (float)(cfg->rope_original_max_position / cfg->rope_low_freq_factor);
    float high_wavelen = (float)(cfg->rope_original_max_position / cfg->rope_high_freq_factor);
    float wavelen = (1.0f / inv) * 6.283185307179586f;
    if (wavelen > low_wavelen)
        return inv / factor;
    if (wavelen < high_wavelen)
        return inv;
    float smooth = ((1.0f / wavelen) * orig - low) / span;
    return (1.0f - smooth) * inv / factor + smooth * inv;
}

void ps_model_rope_inv_freq(const struct ps_model_config *cfg, float *inv_freq)
{
    double theta = (double)(float)cfg->rope_theta;
    for (int32_t i = 0; i < cfg->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)cfg->head_dim;
        float inv = 1.0f / (float)pow(theta, (double)exponent);
        if (cfg->rope_type == PS_ROPE_LINEAR)
            inv /= (float)cfg->rope_factor;
        else if (cfg->rope_type == PS_ROPE_LLAMA3)
            inv = scale_llama3(cfg, inv);
        inv_freq[i] = inv;
    }
}
