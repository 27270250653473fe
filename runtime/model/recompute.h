/* What of a layer's saved set waits for the backward pass, and what is computed again just before
 * it. A level drops what the one before it drops and more:
 *
 *   R0  nothing is computed again but element-wise things
 *   R1  gate and up (two products)
 *   R2  also q, k, v (three products)
 *   R3  also the sum after attention (one product): attention's output and its log-sum-exp are kept
 *   R4  also attention: nothing is kept but the layer's input
 *
 * The product of down_proj is never done again: its result is the next layer's input. All levels
 * run the same kernels on the same values with the same random numbers, so results do not depend on
 * the level. */
#ifndef PS_MODEL_RECOMPUTE_H
#define PS_MODEL_RECOMPUTE_H

#ifdef __cplusplus
extern "C" {
#endif

enum ps_recompute {
    PS_RECOMPUTE_R0,
    PS_RECOMPUTE_R1,
    PS_RECOMPUTE_R2,
    PS_RECOMPUTE_R3,
    PS_RECOMPUTE_R4,
    PS_RECOMPUTE_COUNT,
};

/* "R0" .. "R4". */
const char *ps_recompute_name(enum ps_recompute level);

#ifdef __cplusplus
}
#endif
#endif
