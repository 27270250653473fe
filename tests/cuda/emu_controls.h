/* Small kernels with bugs on demand: whether the emulation catches them. From C.
 *
 * Each launcher queues its kernel on `stream` with the named bug planted, or none, and returns 0 or
 * PS_ECUDA. All pointers are device memory. */
#ifndef PS_TESTS_CUDA_EMU_CONTROLS_H
#define PS_TESTS_CUDA_EMU_CONTROLS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum control_bug {
    BUG_NONE,
    BUG_NO_BARRIER,       /* a __syncthreads is missing */
    BUG_DIVERGENT,        /* a barrier in a branch that not all threads take */
    BUG_TWO_BARRIERS,     /* threads of one block wait at different barriers */
    BUG_PARTIAL_SHUFFLE,  /* half a warp shuffles with a full mask */
    BUG_NO_COPY_WAIT,     /* a cp.async wait is missing */
    BUG_ONE_GROUP_FEWER,  /* it waits for one group too few */
    BUG_COPY_LEFT,        /* a thread ends with copies under way */
    BUG_SWAPPED_FRAGMENT, /* the registers of operand B are swapped */
    BUG_SHARED_SHORT,     /* 32 bytes of dynamic shared memory too few */
    BUG_GLOBAL_OVERRUN,   /* one element past the output is written */
    BUG_GLOBAL_UNDERRUN,  /* one element before the output is written */
    BUG_SHARED_PAST,      /* one element past dynamic shared memory is written */
    BUG_SHARED_BEFORE,    /* one element before it */
    BUG_NO_SYNCWARP,      /* a __syncwarp is missing */
    BUG_BANK_CONFLICT,    /* rows of a fragment lie in the same banks */
    BUG_UNINITIALISED,    /* shared memory is read that nobody wrote */
};

#define CONTROL_THREADS 128

/* out[b] = sum of x[b * 128 ...], 128 values a block. */
int control_block_sum(void *stream, enum control_bug bug, float *out, const float *x, int blocks);
/* out[w] = sum of x[w * 32 ...] by shuffles, one warp a sum. */
int control_warp_sum(void *stream, enum control_bug bug, float *out, const float *x, int warps);
/* out[i] = sum over tiles t of x[t * 512 + 511 - i], i < 512, tiles through a ring of two stages.
 */
int control_pipeline(void *stream, enum control_bug bug, float *out, const float *x, int tiles);
/* d (16,16) = a (16,16) b (16,16)^T, bf16 in, fp32 out, by one warp with ldmatrix and mma. */
int control_matmul(void *stream, enum control_bug bug, float *d, const uint16_t *a,
                   const uint16_t *b);
/* y[i] = 2 x[i], pointers inside a struct argument. */
int control_double(void *stream, enum control_bug bug, float *y, const float *x, int n);

#ifdef __cplusplus
}
#endif
#endif
