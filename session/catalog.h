/* Names of what this version has, for `penstock list`, and facts about the build, for `penstock
 * version`. */
#ifndef PS_SESSION_CATALOG_H
#define PS_SESSION_CATALOG_H

#include <stddef.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_CATALOG_MAX 32

/* Kinds of things with names, NULL-terminated: "optimizers", "adapters", "strategies", "models",
 * "schedules", "quant", "methods". Static storage. */
const char *const *ps_catalog_kinds(void);

/* The names of one kind in names[0, *count), each in static storage. PS_EUSAGE for an unknown kind,
 * with a suggestion. */
int ps_catalog_list(const char *kind, const char *names[PS_CATALOG_MAX], size_t *count,
                    struct ps_error *err) PS_WARN_UNUSED;

/* The candidate (NULL-terminated list) that `word` is most likely a misspelling of, or NULL if none
 * is near. */
const char *ps_catalog_nearest(const char *word, const char *const *candidates);

/* Best instruction set of this machine ("avx512_bf16"), the compiler of the library, and the commit
 * that it was built from ("unknown" unless PS_COMMIT was defined). Static storage. */
const char *ps_catalog_isa(void);
const char *ps_catalog_compiler(void);
const char *ps_catalog_commit(void);

#ifdef __cplusplus
}
#endif
#endif
