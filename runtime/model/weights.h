/* Loading a model's weights from safetensors into memory that the caller planned. */
#ifndef PS_MODEL_WEIGHTS_H
#define PS_MODEL_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/thread_pool.h"
#include "runtime/model/linear.h"
#include "runtime/model/params.h"
#include "runtime/model/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Find the tensor of a parameter and check its shape and dtype against the table. PS_EFORMAT names
 * the file and tensor. */
int ps_weights_find(const struct ps_st_set *set, const char *model_dir,
                    const struct ps_param_info *info, const struct ps_st_tensor **tensor,
                    const struct ps_st_file **file, struct ps_error *err) PS_WARN_UNUSED;

/* Read a parameter into `dst` as dst_dtype (rounded to nearest even). With a remainder plane
 * (dst_dtype BF16) the pair holds the exact fp32 value instead: see ps_master_split's encoding,
 * which `split` implements. Non-finite values are PS_EFORMAT. */
typedef void (*ps_weights_split_fn)(float master, uint16_t *weight, uint16_t *remainder);
int ps_weights_read(const struct ps_st_file *file, const struct ps_st_tensor *tensor, void *dst,
                    enum ps_dtype dst_dtype, uint16_t *remainder, ps_weights_split_fn split,
                    struct ps_error *err) PS_WARN_UNUSED;

/* The same in pieces: put(arg, first element, count, values of dst_dtype, remainders or NULL) receives
 * each; for memory that the host cannot write. Stops at and returns put's first negative value. */
typedef int (*ps_weights_put_fn)(void *arg, size_t begin, size_t count, const void *values,
                                 const uint16_t *remainder);
int ps_weights_read_pieces(const struct ps_st_file *file, const struct ps_st_tensor *tensor,
                           enum ps_dtype dst_dtype, ps_weights_split_fn split_or_null,
                           ps_weights_put_fn put, void *arg, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
