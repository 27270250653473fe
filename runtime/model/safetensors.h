/* safetensors files: reading with every check of the reliability rules (section 4.1), writing.
 *
 * Layout: u64 little-endian N; N bytes of JSON; data. Names map to {dtype, shape, data_offsets}.
 * The file is read with pread only, never mapped. Source: huggingface/safetensors. */
#ifndef PS_MODEL_SAFETENSORS_H
#define PS_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS_ST_RANK_MAX 8
#define PS_ST_NAME_MAX 1024

struct ps_st_tensor {
    const char *name;       /* lives as long as the file object */
    const char *dtype_text; /* as spelled in the file: "BF16", "I64", "F8_E4M3", ... */
    int dtype;              /* enum ps_dtype, or -1 for types that Penstock does not compute with */
    int rank;
    int64_t shape[PS_ST_RANK_MAX];
    uint64_t offset; /* of the first byte, from the start of the file */
    uint64_t bytes;
    int64_t elements;
};

struct ps_st_file; /* one open file */

/* Open and check a file. Returns 0, -errno, PS_EFORMAT, or PS_EUNSUPPORTED for types smaller than a
 * byte, with file and tensor name in err. */
int ps_st_open(struct ps_st_file **out, const char *path, struct ps_error *err) PS_WARN_UNUSED;
void ps_st_close(struct ps_st_file *f);

size_t ps_st_count(const struct ps_st_file *f);
/* Tensor by index, in ascending order of offset. */
const struct ps_st_tensor *ps_st_at(const struct ps_st_file *f, size_t idx);
/* Tensor by name, or NULL. */
const struct ps_st_tensor *ps_st_find(const struct ps_st_file *f, const char *name);
const char *ps_st_path(const struct ps_st_file *f);
int ps_st_fd(const struct ps_st_file *f);
/* Value of a __metadata__ key, or NULL. */
const char *ps_st_metadata(const struct ps_st_file *f, const char *key);

/* Read bytes [begin, begin + len) of a tensor into dst; short reads are continued, a file that
 * became shorter is PS_EFORMAT. */
int ps_st_read(const struct ps_st_file *f, const struct ps_st_tensor *t, uint64_t begin,
               uint64_t len, void *dst, struct ps_error *err) PS_WARN_UNUSED;

/* Read a whole F32, BF16 or F16 tensor converted to dst_type. `dst` holds t->elements elements. */
int ps_st_read_as(const struct ps_st_file *f, const struct ps_st_tensor *t, enum ps_dtype dst_type,
                  void *dst, struct ps_error *err) PS_WARN_UNUSED;

/* 0 while the file still has the size and modification time that it had when it was opened, else
 * PS_EFORMAT: call it after the last read. */
int ps_st_check_unchanged(const struct ps_st_file *f, struct ps_error *err) PS_WARN_UNUSED;

/* The tensors of a model directory: `model.safetensors`, or the shards that
 * `model.safetensors.index.json` names (bare names only; each mapped tensor must be in its shard;
 * a tensor that is in a shard but not in the map is ignored and counted). */
struct ps_st_set;
int ps_st_set_open(struct ps_st_set **out, const char *model_dir,
                   struct ps_error *err) PS_WARN_UNUSED;
void ps_st_set_close(struct ps_st_set *set);
/* Find a tensor; *file receives the file that holds it. NULL if absent. */
const struct ps_st_tensor *ps_st_set_find(const struct ps_st_set *set, const char *name,
                                          const struct ps_st_file **file);
size_t ps_st_set_file_count(const struct ps_st_set *set);
const struct ps_st_file *ps_st_set_file(const struct ps_st_set *set, size_t idx);
size_t ps_st_set_unmapped_count(const struct ps_st_set *set);

/* Writing. The header is laid out when the writer is created, from a list of tensors; the data are
 * then appended in the order of the list in pieces of any size. The caller's order is kept in the
 * file. `__metadata__` always has {"format":"pt"}. The file appears under its final name only in
 * ps_st_writer_close (fsync, rename, fsync of the directory). */
struct ps_st_spec {
    const char *name;
    enum ps_dtype dtype;
    int rank;
    int64_t shape[PS_ST_RANK_MAX];
};
struct ps_st_writer;
int ps_st_writer_create(struct ps_st_writer **out, const char *path, const struct ps_st_spec *spec,
                        size_t count, struct ps_error *err) PS_WARN_UNUSED;
int ps_st_writer_append(struct ps_st_writer *w, const void *data, size_t bytes,
                        struct ps_error *err) PS_WARN_UNUSED;
/* Finish: fails with PS_EFORMAT if not all bytes of all tensors were appended. Frees w in every
 * case; on failure the temporary file is removed and any older file of that name is untouched. */
int ps_st_writer_close(struct ps_st_writer *w, struct ps_error *err) PS_WARN_UNUSED;
/* Give up: removes the temporary file. NULL is legal. */
void ps_st_writer_abort(struct ps_st_writer *w);
/* XXH3-64 of all bytes written so far, header included. */
uint64_t ps_st_writer_hash(const struct ps_st_writer *w);

#ifdef __cplusplus
}
#endif
#endif
