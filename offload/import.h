/* Import of a frozen base: every unit's weights as BF16, split into byte planes and compressed, in
 * a directory of its own on the fast disk. It is worth its place only where disk time is the
 * bottleneck and cores have time to decode, or where the files are wider than BF16: ps_import_pays
 * decides, with the rates that ps_import_measure finds on the machine and the weights at hand.
 *
 *   PATH/penstock-import-HASH/weights.bin   units one after the other, each at a multiple of 4096:
 *                                           chunk records, each at a multiple of 64, zeros to 4096
 *                             index.bin     units and chunks with checksums
 *   PATH/penstock-import-tmp/               one that is being made
 *   PATH/penstock-import.lock               held (flock) by the process that makes one
 *
 * HASH is of the model's content (file names, sizes, checksums of what the units read) and of the
 * near layout, so that a directory fits exactly the plans that are equal to its own; one is made
 * under the temporary name, and renamed when it is whole.
 *
 * A chunk is 2 MiB of a unit's near slot. Its words are rotated left by one bit, which brings the
 * exponent into one byte, sign and mantissa into the other: two planes. A plane is a zstd frame
 * (level 1) or, where that does not save 1/64, kept as it is. */
#ifndef PS_OFFLOAD_IMPORT_H
#define PS_OFFLOAD_IMPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/model/params.h"
#include "runtime/model/safetensors.h"
#include "runtime/model/unit_source.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_IMPORT_CHUNK_BYTES ((uint64_t)2 << 20)

/* Whether a plan can be imported: it is staged (force_staged) and BF16 throughout. *why, or NULL,
 * receives the reason (static storage). */
bool ps_import_possible(const struct ps_unit_sources *plan, const char **why);

/* ---- Does it pay? ---- */

struct ps_import_sample {
    uint64_t near_bytes; /* looked at */
    double ratio;        /* near bytes per stored byte, >= 1 */
    double encode_rate,
        decode_rate; /* near bytes/s with the pool's threads, nothing else running */
};

/* Compress and decompress chunks from all over the model, `bytes` in all (0: 16 MiB). The plan must
 * be possible. Takes about three times `bytes` of memory while it runs. */
int ps_import_measure(struct ps_import_sample *out, const struct ps_unit_sources *plan,
                      const struct ps_st_set *files, struct ps_pool *pool, uint64_t bytes,
                      struct ps_error *err) PS_WARN_UNUSED;

struct ps_import_question {
    double file_bytes, near_bytes; /* that one pass streams: in the files, and as BF16 */
    double total_file_bytes, total_near_bytes; /* of the whole model: what making it costs */
    double passes;                             /* of the run */
    double compute_s;                          /* of one pass */
    bool cores_shared;                         /* compute runs on the cores that decode */
    double disk_read, disk_write;              /* bytes/s */
    double convert_rate; /* near bytes/s of ps_unit_convert; 0: direct, nothing to convert */
    struct ps_import_sample sample;
    bool exists; /* ps_import_open found one: nothing to pay for */
};
struct ps_import_answer {
    bool pays;
    double plain_s, import_s; /* of one pass */
    double build_s;           /* once; 0 when it exists */
    double passes_needed;     /* from which on it pays; HUGE_VAL: never */
};

/* With C compute_s, F file_bytes, N near_bytes, D disk_read, V convert_rate, Z decode_rate, r
 * ratio:
 *
 *   cores shared    plain = max(C + N/V, F/D)      import = max(C + N/Z, N/(r D))
 *   cores free      plain = max(C, N/V, F/D)       import = max(C, N/Z, N/(r D))
 *   build           total F/D + max(total N / encode_rate, total N / (r disk_write))
 *
 * (N/V is 0 when nothing is converted.) It pays when import < 0.98 plain and the passes save more
 * than the build costs. */
void ps_import_pays(struct ps_import_answer *out, const struct ps_import_question *q);

/* ---- Making and opening ---- */

struct ps_import; /* an open import; constant, may be used by several threads */

/* Open the import of this model and plan below `path`. 1: opened. 0: there is none, or it is
 * damaged, or the plan's checksums are not all known yet, so that the content hash cannot be told
 * (*why says which; may be NULL). Errors: PS_EUSAGE when not possible, -ENOMEM, -errno. */
int ps_import_open(struct ps_import **out, const char *path, const struct ps_unit_sources *plan,
                   const struct ps_st_set *files, char why[256],
                   struct ps_error *err) PS_WARN_UNUSED;
void ps_import_close(struct ps_import *im);

struct ps_import_options {
    const char *path; /* existing directory */
    struct ps_pool *pool;
    double ratio; /* expected (ps_import_measure), for the check of free space; 0: 1 */
    /* Called after each piece on the calling thread; false: stop with PS_ESTOPPED. May be NULL. */
    bool (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes);
    void *arg;
};

/* Make the import, and open it. The files' checksums are compared where the plan knows them and
 * remembered where it does not; every chunk is decoded again and compared. Replaces a damaged one.
 * Errors: PS_EUSAGE (not possible), -ENOSPC (too little space, found before or while writing),
 * -EBUSY (another process is making one here), PS_EFORMAT (non-finite weights, files that changed),
 * PS_ECHECKSUM, PS_ESTOPPED, -errno; nothing half made is left of it then. */
int ps_import_build(struct ps_import **out, struct ps_unit_sources *plan,
                    const struct ps_param_table *params, const struct ps_st_set *files,
                    const struct ps_import_options *opt, struct ps_error *err) PS_WARN_UNUSED;
/* Read the model's files whole to know the checksums that tell its content, without making
 * anything; takes memory for the largest raw slot. Errors: -ENOMEM, PS_EFORMAT, PS_ECHECKSUM,
 * -errno. */
int ps_import_scan(struct ps_unit_sources *plan, const struct ps_st_set *files,
                   struct ps_error *err) PS_WARN_UNUSED;
/* Memory that ps_import_build takes: the largest raw slot and about 9 MiB a thread besides. */
uint64_t ps_import_build_bytes(const struct ps_unit_sources *plan, int thread_count);
/* Upper bound of the disk space at a ratio. */
uint64_t ps_import_disk_bytes(const struct ps_unit_sources *plan, double ratio);

/* weights.bin, for the storage back end; its size. */
const char *ps_import_path(const struct ps_import *im);
uint64_t ps_import_bytes(const struct ps_import *im);

/* The plan that reads the import instead of the model's files: the same units and near slots; each
 * unit is one extent of file 0 (weights.bin) and its raw slot holds compressed chunks, for
 * ps_import_decode_unit instead of ps_unit_convert and ps_unit_check_finite. Tensors' src_dtype is
 * BF16 and their raw_offset means nothing. Free with ps_unit_sources_fini. */
int ps_import_sources(const struct ps_import *im, const struct ps_unit_sources *plan,
                      struct ps_unit_sources *out, struct ps_error *err) PS_WARN_UNUSED;
/* The same for one that is yet to be made, at an expected ratio (>= 1): for planning. */
int ps_import_expect_sources(const struct ps_unit_sources *plan, double ratio,
                             struct ps_unit_sources *out, struct ps_error *err) PS_WARN_UNUSED;
/* The extent of one unit, by number in the plan. raw_offset 0; checksum_idx of ps_import_sources.
 */
void ps_import_unit_extent(const struct ps_import *im, uint32_t unit_idx, struct ps_extent *out);

/* ---- Decoding ---- */

struct ps_import_decoder; /* scratch for thread_count threads: about 2.2 MiB each, all of it
                             allocated here */
int ps_import_decoder_create(struct ps_import_decoder **out, int thread_count) PS_WARN_UNUSED;
void ps_import_decoder_destroy(struct ps_import_decoder *d);
uint64_t ps_import_decoder_bytes(int thread_count);

uint32_t ps_import_chunk_count(const struct ps_import *im, uint32_t unit_idx);
/* Check one chunk's checksum and decode it from the raw slot into the near slot (2-byte aligned;
 * host addresses of the unit's first bytes). thread_idx: below the decoder's thread_count, one
 * thread at a time each. PS_ECHECKSUM names weights.bin and the offset. */
int ps_import_decode_chunk(const struct ps_import *im, struct ps_import_decoder *d, int thread_idx,
                           uint32_t unit_idx, uint32_t chunk_idx, void *near, const void *raw,
                           struct ps_error *err) PS_WARN_UNUSED;
/* All chunks, on the pool (NULL: this thread alone); the first failing chunk's error. The decoder
 * has at least the pool's threads. */
int ps_import_decode_unit(const struct ps_import *im, struct ps_import_decoder *d,
                          struct ps_pool *pool, uint32_t unit_idx, void *near, const void *raw,
                          struct ps_error *err) PS_WARN_UNUSED;

/* Bytes [begin, begin + bytes) of the near slot alone, into `near`: whole chunks, or up to the
 * slot's end; begin is a multiple of PS_IMPORT_CHUNK_BYTES. */
int ps_import_decode_range(const struct ps_import *im, struct ps_import_decoder *d,
                           struct ps_pool *pool, uint32_t unit_idx, uint64_t begin, uint64_t bytes,
                           void *near, const void *raw, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
