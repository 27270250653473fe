/* Where the frozen weights of a unit (a layer, the embedding or a row block of it, the head with the final
 * norm) lie in the user's safetensors files, and how they get into a slot of memory.
 *
 * A unit is read as a few extents: each the 4096-byte aligned superset of a run of neighbouring tensors
 * of one file. Extents follow each other in a raw slot:
 *
 *   raw slot   | extent 0: pad t0 t1 .. pad | extent 1 | ... |        (4096-byte aligned)
 *   near slot  | tensor 0 | tensor 1 | ... |                           (64-byte aligned each)
 *
 * When every tensor of the unit already has the dtype that compute wants and an address aligned to its
 * element size, the raw slot *is* the near slot (`direct`): the tensors are used where they lie. Else
 * they are moved or converted (ps_unit_convert), which the plan counts. */
#ifndef PS_MODEL_UNIT_SOURCE_H
#define PS_MODEL_UNIT_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"
#include "runtime/model/params.h"
#include "runtime/model/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One range to read: 4096-aligned offset, bytes and raw_offset. */
struct ps_extent {
    uint32_t file;       /* index in the ps_st_set */
    uint64_t offset;     /* in the file */
    uint64_t bytes;      /* to ask for, a multiple of 4096 */
    uint64_t expect;     /* min(bytes, file size - offset) */
    uint64_t raw_offset; /* in the raw slot */
    uint64_t checksum_idx; /* first of its chunks in ps_unit_sources.checksum */
};

struct ps_unit_tensor {
    int32_t param_idx;        /* in the parameter table */
    enum ps_dtype src_dtype;  /* in the file */
    enum ps_dtype near_dtype; /* that compute uses */
    uint64_t elements;        /* of this piece: a row block holds a part of the tensor */
    uint64_t raw_offset;      /* of the first byte in the raw slot */
    uint64_t near_offset;     /* of the first byte in the near slot */
};

struct ps_unit_source {
    int32_t unit;  /* layer, PS_UNIT_EMBED or PS_UNIT_HEAD of schedule.h */
    int32_t block; /* row block of the embedding, else 0 */
    int64_t row_begin, row_end; /* of the embedding block */
    struct ps_extent *extent;
    uint32_t extent_count;
    struct ps_unit_tensor *tensor;
    uint32_t tensor_count;
    uint64_t raw_bytes;  /* of the raw slot: sum of extents */
    uint64_t read_bytes; /* sum of expect: what the disk moves */
    uint64_t near_bytes; /* of the near slot; == raw_bytes when direct */
    bool direct;
};

struct ps_unit_sources {
    struct ps_unit_source *unit; /* embedding blocks ascending, layers ascending, head */
    uint32_t unit_count;
    uint32_t embed_block_count;
    bool all_direct;
    uint64_t *checksum; /* XXH3 of each chunk (PS_UNIT_CHUNK_BYTES) of each extent; 0: not yet known */
    uint64_t checksum_count;
};

#define PS_UNIT_CHUNK_BYTES ((uint64_t)2 << 20)

struct ps_unit_options {
    enum ps_dtype dtype;      /* of the run: BF16: every tensor becomes BF16; F32: tensors keep the file's
                                 dtype (F32, BF16 or F16) */
    uint64_t embed_block_max; /* largest row block of the embedding in bytes; 0: one block */
    bool force_staged;        /* never direct (discrete devices): near slots get their own layout */
    const bool *trained;      /* (params->count), or NULL: none. With dtype F32 these become F32 */
};

/* Plan the units of a model. `files` NULL: from the configuration alone, as if one file held all tensors
 * as BF16 in the table's order. A tied head is part of the embedding and the head unit then holds the
 * final norm alone. Errors as ps_weights_find. */
int ps_unit_sources_create(struct ps_unit_sources *out, const struct ps_param_table *params,
                           const struct ps_st_set *files, const char *model_dir,
                           const struct ps_unit_options *opt, struct ps_error *err) PS_WARN_UNUSED;
void ps_unit_sources_fini(struct ps_unit_sources *s);

/* From a raw slot into a near slot (host addresses), on the calling thread: move or convert each tensor
 * to nearest even. Also checks nothing: non-finite values are found by ps_unit_check_finite. */
void ps_unit_convert(const struct ps_unit_source *u, void *near, const void *raw);

/* The same for n elements: BF16, F32 or F16 at any host address, no overlap. */
void ps_unit_convert_elements(void *near, enum ps_dtype near_dtype, const void *raw,
                              enum ps_dtype src_dtype, size_t n);

/* PS_EFORMAT when a tensor in the raw slot holds a non-finite value (first pass only). */
int ps_unit_check_finite(const struct ps_unit_source *u, const void *raw,
                         const struct ps_param_table *params, const char *file,
                         struct ps_error *err) PS_WARN_UNUSED;

/* Checksums of an extent that has just been read: where they are known compare (PS_ECHECKSUM names file,
 * offset and what to do), else remember. Whole chunks of `expect`, the last one short. `raw` is the extent's
 * first byte (raw slot + e->raw_offset). Different extents may be verified at the same time. */
int ps_unit_verify(struct ps_unit_sources *s, const struct ps_extent *e, const void *raw,
                   const char *file, struct ps_error *err) PS_WARN_UNUSED;

/* The table on disk: keyed by each file's name, size and modification time, and by the extents' layout;
 * written atomically. Load: 1 when it fits this model, 0 when there is none or it is damaged or another's
 * (then *why says what, naming the file that changed; may be NULL). */
int ps_unit_checksums_save(const struct ps_unit_sources *s, const struct ps_st_set *files,
                           const char *path, struct ps_error *err) PS_WARN_UNUSED;
int ps_unit_checksums_load(struct ps_unit_sources *s, const struct ps_st_set *files, const char *path,
                           char why[256], struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
