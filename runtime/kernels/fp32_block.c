/* Short fp32 blocks: see fp32_block_internal.h. */
#include "runtime/kernels/fp32_block_internal.h"

#include <assert.h>
#include <string.h>

void ps__block_load(float *dst, const void *src, enum ps_dtype dtype, size_t at, size_t n)
{
    if (dtype == PS_DTYPE_F32) {
        memcpy(dst, (const float *)src + at, n * sizeof(float));
    } else if (dtype == PS_DTYPE_BF16) {
        const uint16_t *h = (const uint16_t *)src + at;
        for (size_t i = 0; i < n; i++)
            dst[i] = ps_bf16_to_f32(h[i]);
    } else {
        assert(dtype == PS_DTYPE_F16);
        const uint16_t *h = (const uint16_t *)src + at;
        for (size_t i = 0; i < n; i++)
            dst[i] = ps_f16_to_f32(h[i]);
    }
}

void ps__block_store(void *dst, enum ps_dtype dtype, size_t at, const float *src, size_t n)
{
    if (dtype == PS_DTYPE_F32) {
        memcpy((float *)dst + at, src, n * sizeof(float));
    } else if (dtype == PS_DTYPE_BF16) {
        uint16_t *h = (uint16_t *)dst + at;
        for (size_t i = 0; i < n; i++)
            h[i] = ps_f32_to_bf16(src[i]);
    } else {
        assert(dtype == PS_DTYPE_F16);
        uint16_t *h = (uint16_t *)dst + at;
        for (size_t i = 0; i < n; i++)
            h[i] = ps_f32_to_f16(src[i]);
    }
}
