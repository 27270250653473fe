/* From the session's options to those of the data set reader. */
#ifndef PS_SESSION_DATASET_OPTIONS_H
#define PS_SESSION_DATASET_OPTIONS_H

#include "runtime/data/dataset.h"
#include "session/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fill *out for the file or directory `path` and the part `split` ("train" or "valid"). Strings
 * stay those of opt. vocab_size and eos_token_id are left for the caller. PS_EUSAGE for an unknown
 * name. */
int ps_dataset_options_from(struct ps_dataset_options *out, const struct ps_options *opt,
                            const char *path, const char *split,
                            struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
