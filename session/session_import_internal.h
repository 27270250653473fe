/* What session_import.c (whether to use an import) and session_import_files.c (finding and making
 * one) share. */
#ifndef PS_SESSION_SESSION_IMPORT_INTERNAL_H
#define PS_SESSION_SESSION_IMPORT_INTERNAL_H

#include <limits.h>

#include "offload/import.h"
#include "session/session_internal.h"

struct ps_session_import {
    struct ps__import_facts facts;
    struct ps_unit_sources staged; /* in the model's files */
    struct ps_unit_sources source; /* in the import */
    bool has_source;
    struct ps_import *im; /* NULL: there is none, or not yet */
    struct ps_import_decoder *decoder;
    struct ps_pool *pool; /* NULL: the lane's thread decodes alone */
    struct ps_unit_codec codec;
    struct ps_import_sample sample;
    int decode_threads;
    bool in_use; /* the trainer has the codec */
    char dir[PATH_MAX];
    char table[PATH_MAX]; /* the model's checksums */
};

/* `plan`, or --dry-run. */
bool ps__import_makes_nothing(const struct ps_session *s);
/* Directory of imports, in im->dir; false: none was given. */
bool ps__import_find_directory(struct ps_session_import *im, const struct ps_options *o);
/* Name of the table of checksums, in im->table: of what tells these files from all others. 0,
 * -errno. */
int ps__import_name_table(struct ps_session_import *im,
                          const struct ps_st_set *files) PS_WARN_UNUSED;
/* Into im->staged: checksums from the run that goes on, or from the table in the directory. */
int ps__import_load_checksums(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* Open the import of this model, if there is one, as im->im. Where the model's content is not
 * known: none, or with `scan` read it. */
int ps__import_find(struct ps_session *s, bool scan, struct ps_error *err) PS_WARN_UNUSED;
/* Bytes of all units decoded, and in the files. */
uint64_t ps__import_near_bytes(const struct ps_unit_sources *plan);
uint64_t ps__import_file_bytes(const struct ps_unit_sources *plan);
/* Memory of the budget that may be taken now, before the arenas are there. */
uint64_t ps__import_memory_left(const struct ps_session *s);
/* Room on the disk for im->im, or on the disk and in memory for making one at im->sample.ratio:
 * PS_ENOFIT names the option. */
int ps__import_check_room(const struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;
/* Make it and open it as im->im. */
int ps__import_make(struct ps_session *s, struct ps_error *err) PS_WARN_UNUSED;

#endif
