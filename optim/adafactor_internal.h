/* What Adafactor's instruction sets share. Private to optim. */
#ifndef PS_OPTIM_ADAFACTOR_INTERNAL_H
#define PS_OPTIM_ADAFACTOR_INTERNAL_H

#include "optim/weight_io.h"

#define PS__ADAFACTOR_LANES 16 /* partial sums of a row: element j of it is in lane j % 16 */

/* A matrix, or a vector as rows of PS_TILE elements. */
struct ps__adafactor_shape {
    size_t rows, cols, n;
    size_t block; /* rows whose column sums are added up apart */
    bool matrix;
};

/* Lies in the workspace. */
struct ps__adafactor_parts {
    double *row, *row_w;            /* (rows,): sums of squares of a row */
    double *col;                    /* (blocks, cols): of a block's columns */
    float *row_factor, *col_factor; /* (rows,), (cols,): what scales a gradient */
};

struct ps__adafactor {
    const struct ps_update *u;
    struct ps__adafactor_shape s;
    struct ps__adafactor_parts p;
    float eps, beta2, one_minus_beta2, beta1, one_minus_beta1;
    float decay, step; /* a * weight_decay; a / max(1, RMS(u) / threshold) */
    int momentum;      /* its state, or -1 */
};

/* Work on rows [begin, end). */
typedef void (*ps__adafactor_rows_fn)(const struct ps__adafactor *a, size_t begin, size_t end);

/* Of a matrix. Sums: row[i], and col of the block that begins at `begin`. Norms: row[i] of the
 * update, row_w[i] of the weights with scale_parameter. */
void ps__adafactor_sums_avx512(const struct ps__adafactor *a, size_t begin, size_t end);
void ps__adafactor_norms_avx512(const struct ps__adafactor *a, size_t begin, size_t end);
void ps__adafactor_step_avx512(const struct ps__adafactor *a, size_t begin, size_t end);

#endif
