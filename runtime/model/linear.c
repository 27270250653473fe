/* One linear layer applied to a stream of tokens: see linear.h. */
#include "runtime/model/linear.h"

#include <assert.h>

#include "runtime/kernels/elementwise.h"

static const void *bias_data(const struct ps_linear_call *call)
{
    return call->bias ? call->bias->data : NULL;
}

void ps_linear_gemm_forward(const struct ps_linear_call *call, struct ps_gemm_args *g)
{
    size_t out = (size_t)call->out;
    size_t in = (size_t)call->in;
    enum ps_dtype dtype = call->cx->dtype;
    *g = (struct ps_gemm_args){
        .m = call->n_tok,
        .n = out,
        .k = in,
        .a = {.data = call->x, .ld = in, .dtype = dtype},
        .b = {.data = call->weight->data, .ld = in, .dtype = call->weight->dtype, .trans = 1},
        .bias = bias_data(call),
        .bias_dtype = call->bias ? call->bias->dtype : PS_DTYPE_F32,
        .residual = call->residual,
        .residual_ld = out,
        .residual_dtype = dtype,
        .c = call->y,
        .c_ld = out,
        .c_dtype = ps_linear_out_dtype(call),
        .math = call->cx->math,
    };
}

void ps_linear_gemm_backward(const struct ps_linear_call *call, struct ps_gemm_args *g)
{
    size_t out = (size_t)call->out;
    size_t in = (size_t)call->in;
    enum ps_dtype dtype = call->cx->dtype;
    *g = (struct ps_gemm_args){
        .m = call->n_tok,
        .n = in,
        .k = out,
        .a = {.data = call->dy, .ld = out, .dtype = ps_linear_out_dtype(call)},
        .b = {.data = call->weight->data, .ld = in, .dtype = call->weight->dtype},
        .residual = call->dx_add,
        .residual_ld = in,
        .residual_dtype = dtype,
        .c = call->dx,
        .c_ld = in,
        .c_dtype = dtype,
        .math = call->cx->math,
    };
}

void ps_linear_forward(const struct ps_linear_call *call)
{
    assert(call->weight->data);
    if (call->site) {
        call->site->ops->forward(call);
        return;
    }
    struct ps_gemm_args g;
    ps_linear_gemm_forward(call, &g);
    ps_compute_gemm(call->cx, &g);
}

void ps_linear_backward(const struct ps_linear_call *call)
{
    const struct ps_compute *cx = call->cx;
    size_t out = (size_t)call->out;
    size_t in = (size_t)call->in;
    if (call->dweight) {
        struct ps_gemm_args w = {
            .m = out,
            .n = in,
            .k = call->n_tok,
            .a = {.data = call->dy, .ld = out, .dtype = ps_linear_out_dtype(call), .trans = 1},
            .b = {.data = call->x, .ld = in, .dtype = cx->dtype},
            .c = call->dweight,
            .c_ld = in,
            .c_dtype = PS_DTYPE_F32,
            .accumulate = call->accumulate,
            .math = cx->math,
        };
        ps_compute_gemm(cx, &w);
    }
    assert(!call->dbias || !call->logits);
    if (call->dbias)
        cx->k->column_sum(cx, call->dbias, call->dy, out, call->n_tok, out, call->accumulate);
    if (call->site) {
        call->site->ops->backward(call);
        return;
    }
    if (!call->dx)
        return;
    struct ps_gemm_args g;
    ps_linear_gemm_backward(call, &g);
    ps_compute_gemm(cx, &g);
}
