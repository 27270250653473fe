/* Tile code of attention for vdpbf16ps: see attention_internal.h. */
#include "runtime/kernels/attention_internal.h"

void ps__attention_ops_avx512_bf16(struct ps__attention_ops *ops)
{
    (void)ops; /* fp32 operands so far: attention_avx512.c */
}
