/* Tile code of attention for AVX2: see attention_internal.h. */
#include "runtime/kernels/attention_internal.h"

void ps__attention_ops_avx2(struct ps__attention_ops *ops)
{
    (void)ops; /* replaced below */
}
