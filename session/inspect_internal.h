/* What the files of `penstock inspect` share. */
#ifndef PS_SESSION_INSPECT_INTERNAL_H
#define PS_SESSION_INSPECT_INTERNAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"

struct ps_inspect_report {
    const char *kind;
    const char *path;
    char why_not[768]; /* "": supported; the first reason stays */
    uint64_t parameters;
    json_t *tensors; /* array */
    json_t *details; /* object */
};

/* The report as lines of text, to be freed with free(); NULL without memory. */
char *ps__inspect_text(const struct ps_inspect_report *r);

/* A spill store, NVME_PATH/penstock-UUID (inspect_spill.c): its details, or why it cannot be used.
 */
int ps__inspect_spill(struct ps_inspect_report *r, struct ps_error *err) PS_WARN_UNUSED;

#endif
