/* What the AdamW variants share. Private to optim. */
#ifndef PS_OPTIM_ADAMW_INTERNAL_H
#define PS_OPTIM_ADAMW_INTERNAL_H

#include "optim/adamw.h"

/* Update elements [begin, end) of the slice. */
void ps__adamw_update_portable(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *slice,
                               size_t begin, size_t end);
void ps__adamw_update_avx2(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *slice,
                           size_t begin, size_t end);
void ps__adamw_update_avx512(const struct ps_adamw_scalars *s, const struct ps_adamw_slice *slice,
                             size_t begin, size_t end);

#endif
