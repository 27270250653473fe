/* What the SwiGLU variants share. Private to runtime/kernels. */
#ifndef PS_KERNELS_SWIGLU_INTERNAL_H
#define PS_KERNELS_SWIGLU_INTERNAL_H

#include "runtime/kernels/swiglu.h"

struct ps__swiglu_args {
    enum ps_dtype dtype;
    size_t n_tok, n;
    const void *gate, *up, *dy;
    size_t gate_ld, up_ld, dy_ld;
    void *y, *dgate, *dup;
    size_t y_ld, dgate_ld, dup_ld;
};

/* Row t whole. */
void ps__swiglu_forward_avx512(const struct ps__swiglu_args *a, size_t t);
void ps__swiglu_backward_avx512(const struct ps__swiglu_args *a, size_t t);

#endif
