/* Loading a model's weights: see weights.h. */
#include "runtime/model/weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PIECE_ELEMENTS ((size_t)16384)

int ps_weights_find(const struct ps_st_set *set, const char *model_dir,
                    const struct ps_param_info *info, const struct ps_st_tensor **tensor,
                    const struct ps_st_file **file, struct ps_error *err)
{
    const struct ps_st_tensor *t = ps_st_set_find(set, info->name, file);
    if (!t)
        return ps_error_full(
            err, PS_EFORMAT, model_dir, info->name,
            info->role == PS_ROLE_HEAD
                ? "the exporter dropped the head: set tie_word_embeddings to true in "
                  "config.json if the model shares it with the embedding"
                : "check that the download is complete and matches config.json",
            "the model's files have no tensor %s", info->name);
    bool same = t->rank == info->rank;
    for (int i = 0; same && i < info->rank; i++)
        same = t->shape[i] == info->shape[i];
    if (!same) {
        char shape[96] = "";
        size_t len = 0;
        for (int i = 0; i < t->rank && len < sizeof shape - 24; i++)
            len += (size_t)snprintf(shape + len, sizeof shape - len, "%s%lld", i ? ", " : "",
                                    (long long)t->shape[i]);
        return ps_error_full(err, PS_EFORMAT, ps_st_path(*file), info->name,
                             "config.json and the weights must belong to the same model",
                             "tensor %s has shape [%s], config.json asks for [%lld%s%.0lld]",
                             info->name, shape, (long long)info->shape[0],
                             info->rank == 2 ? ", " : "",
                             (long long)(info->rank == 2 ? info->shape[1] : 0));
    }
    if (t->dtype < 0 || t->dtype > PS_DTYPE_F16)
        return ps_error_full(err, PS_EUNSUPPORTED, ps_st_path(*file), info->name,
                             "convert the model to BF16, F16 or F32",
                             "tensor %s has dtype %s; supported are F32, BF16 and F16", info->name,
                             t->dtype_text);
    *tensor = t;
    return 0;
}

static bool finite_f32(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

static bool finite_16(const uint16_t *x, size_t n, enum ps_dtype t)
{
    uint16_t exp = t == PS_DTYPE_BF16 ? 0x7f80 : 0x7c00;
    unsigned bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (x[i] & exp) == exp;
    return !bad;
}

static int not_finite(const struct ps_st_file *file, const struct ps_st_tensor *t,
                      struct ps_error *err)
{
    return ps_error_full(err, PS_EFORMAT, ps_st_path(file), t->name,
                         "the file is damaged or the model diverged; get another copy",
                         "tensor %s holds NaN or Inf", t->name);
}

static int read_split(const struct ps_st_file *file, const struct ps_st_tensor *t, uint16_t *dst,
                      uint16_t *remainder, ps_weights_split_fn split, struct ps_error *err)
{
    unsigned char raw[PIECE_ELEMENTS * 4];
    float piece[PIECE_ELEMENTS];
    enum ps_dtype src = (enum ps_dtype)t->dtype;
    size_t e = ps_dtype_size(src);
    size_t n = (size_t)t->elements;
    for (size_t at = 0; at < n; at += PIECE_ELEMENTS) {
        size_t count = n - at < PIECE_ELEMENTS ? n - at : PIECE_ELEMENTS;
        int ret = ps_st_read(file, t, at * e, count * e, raw, err);
        if (ret < 0)
            return ret;
        ps_dtype_convert(piece, PS_DTYPE_F32, raw, src, count);
        for (size_t i = 0; i < count; i++)
            split(piece[i], &dst[at + i], &remainder[at + i]);
    }
    return 0;
}

int ps_weights_read(const struct ps_st_file *file, const struct ps_st_tensor *t, void *dst,
                    enum ps_dtype dst_dtype, uint16_t *remainder, ps_weights_split_fn split,
                    struct ps_error *err)
{
    int ret = remainder ? read_split(file, t, dst, remainder, split, err)
                        : ps_st_read_as(file, t, dst_dtype, dst, err);
    if (ret < 0)
        return ret;
    size_t n = (size_t)t->elements;
    bool ok = dst_dtype == PS_DTYPE_F32 ? finite_f32(dst, n) : finite_16(dst, n, dst_dtype);
    return ok ? 0 : not_finite(file, t, err);
}

int ps_weights_read_pieces(const struct ps_st_file *file, const struct ps_st_tensor *t,
                           enum ps_dtype dst_dtype, ps_weights_split_fn split,
                           ps_weights_put_fn put, void *arg, struct ps_error *err)
{
    unsigned char raw[PIECE_ELEMENTS * 4];
    float value[PIECE_ELEMENTS];
    uint16_t high[PIECE_ELEMENTS];
    uint16_t low[PIECE_ELEMENTS];
    enum ps_dtype src = (enum ps_dtype)t->dtype;
    size_t e = ps_dtype_size(src);
    size_t n = (size_t)t->elements;
    for (size_t at = 0; at < n; at += PIECE_ELEMENTS) {
        size_t count = n - at < PIECE_ELEMENTS ? n - at : PIECE_ELEMENTS;
        int ret = ps_st_read(file, t, at * e, count * e, raw, err);
        if (ret < 0)
            return ret;
        if (split) {
            ps_dtype_convert(value, PS_DTYPE_F32, raw, src, count);
            for (size_t i = 0; i < count; i++)
                split(value[i], &high[i], &low[i]);
            if (!finite_f32(value, count) || !finite_16(high, count, PS_DTYPE_BF16))
                return not_finite(file, t, err);
            ret = put(arg, at, count, high, low);
        } else {
            ps_dtype_convert(value, dst_dtype, raw, src, count);
            bool ok = dst_dtype == PS_DTYPE_F32
                          ? finite_f32(value, count)
                          : finite_16((const uint16_t *)(const void *)value, count, dst_dtype);
            if (!ok)
                return not_finite(file, t, err);
            ret = put(arg, at, count, value, NULL);
        }
        if (ret < 0)
            return ret;
    }
    return 0;
}
