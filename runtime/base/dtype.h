/* Element types and their conversions. */
#ifndef PS_BASE_DTYPE_H
#define PS_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The values are those of PS_DTYPE_ in checkpoints' metadata and never change. */
enum ps_dtype {
    PS_DTYPE_F32 = 0,
    PS_DTYPE_BF16 = 1,
    PS_DTYPE_F16 = 2,
    PS_DTYPE_I32 = 3,
    PS_DTYPE_U16 = 4,
    PS_DTYPE_I64 = 5,
    PS_DTYPE_U8 = 6,
    PS_DTYPE_F64 = 7,
    PS_DTYPE_COUNT = 8,
};

/* Bytes of one element. */
static inline size_t ps_dtype_size(enum ps_dtype t)
{
    static const unsigned char size[PS_DTYPE_COUNT] = {4, 2, 2, 4, 2, 8, 1, 8};
    return size[t];
}

/* safetensors spelling ("F32", "BF16", ...). Static storage. */
const char *ps_dtype_name(enum ps_dtype t);

static inline float ps_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest even; every NaN becomes a quiet NaN of the same sign, overflow becomes Inf. */
static inline uint16_t ps_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* IEEE binary16 to fp32, exact, subnormals included. */
float ps_f16_to_f32(uint16_t h);

/* fp32 to IEEE binary16, round to nearest even. */
uint16_t ps_f32_to_f16(float f);

/* Convert n elements between any two of F32, BF16, F16 (round to nearest even), host memory,
 * element alignment suffices, no overlap unless src_type == dst_type and src == dst. */
void ps_dtype_convert(void *dst, enum ps_dtype dst_type, const void *src, enum ps_dtype src_type,
                      size_t n);

#ifdef __cplusplus
}
#endif
#endif
