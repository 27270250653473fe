/* A compressed import of the frozen base in a run (--import): whether it pays, making or finding
 * one, streaming the weights from it. See offload/import.h for what it is.
 *
 * It lies in the first directory of --nvme-path, else in OUTPUT/spill, and stays there for later
 * runs. Beside it, `penstock-model-KEY.checksums` has the checksums of a model's files, so that
 * their content is known without reading them; KEY is of the files' path, inode, size and times. */
#ifndef PS_SESSION_SESSION_IMPORT_H
#define PS_SESSION_SESSION_IMPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"

struct ps_session;
struct ps_session_import;

/* What a plan tells about it. */
struct ps__import_facts {
    bool used;                 /* the weights are streamed from an import */
    bool exists;               /* it was there before, or has been made; else it is only planned */
    const char *path;          /* directory that holds it; NULL: none */
    uint64_t bytes;            /* on the disk */
    uint64_t near_bytes;       /* decoded */
    double decode_rate;        /* near bytes/s that the plan counts with */
    uint64_t plain_read_bytes; /* disk reads of a step without it */
    char why[256];             /* in words; "" when --import never, or nothing is streamed */
};

/* After the layout was chosen (ps__layout_choose): with --import always, or auto where it pays,
 * find or make an import, stream from it, and choose the layout again. `plan` and --dry-run make
 * nothing. PS_EUSAGE where --import always cannot be; PS_ENOFIT for too small an --nvme-mem or
 * --host-mem; errors of ps_import_build and ps__layout_choose. */
int ps__import_choose(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* NULL is legal; after the trainer. */
void ps__import_destroy(struct ps_session_import *im);

/* Constant until close; .used is false without an import. */
const struct ps__import_facts *ps__import_facts(const struct ps_session *s);
/* As a JSON value, null when nothing was considered; NULL when out of memory. */
json_t *ps__import_json(const struct ps_session *s);

/* For the layout: memory beside the arenas, bytes on the disk, and the rate (0: no import) and
 * share of the cores of decoding. */
struct ps__import_needs {
    uint64_t host_bytes, disk_bytes;
    double decode_rate, decode_share;
};
struct ps__import_needs ps__import_needs(const struct ps_session *s);

/* Keep the model's checksums where a run without an import would; nothing without an import. */
int ps__import_keep_checksums(const struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;

#endif
