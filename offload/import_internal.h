/* What the import's files share: the codec of a chunk, the index as it lies on disk, the window of
 * a near slot. */
#ifndef PS_OFFLOAD_IMPORT_INTERNAL_H
#define PS_OFFLOAD_IMPORT_INTERNAL_H

#include <assert.h>
#include <stdint.h>

#include "offload/import.h"

#define PS_IMPORT_VERSION 1u
#define PS_IMPORT_RECORD_ALIGN ((size_t)64)
#define PS_IMPORT_UNIT_ALIGN ((size_t)4096)
#define PS_IMPORT_PLANE_BYTES ((size_t)PS_IMPORT_CHUNK_BYTES / 2)
#define PS_IMPORT_NAME "penstock-import-"
#define PS_IMPORT_HEX 33 /* hash as text, NUL included */

/* index.bin: header, units, chunks, then XXH3-64 of all before. Little-endian. */
struct ps__import_header {
    char magic[8];
    uint32_t version, unit_count;
    uint64_t chunk_count;
    uint64_t chunk_bytes;
    uint64_t weights_bytes; /* size of weights.bin */
    char hash[40];          /* PS_IMPORT_HEX bytes, rest 0 */
};
static_assert(sizeof(struct ps__import_header) == 80, "on-disk layout");

struct ps__import_unit {
    uint64_t offset, bytes; /* in weights.bin, multiples of 4096 */
    uint64_t near_bytes;
    uint64_t chunk_begin; /* first of its chunks */
};
static_assert(sizeof(struct ps__import_unit) == 32, "on-disk layout");

struct ps__import_chunk {
    uint64_t offset;         /* in the unit, a multiple of 64 */
    uint32_t exponent_bytes; /* stored; half the chunk's near bytes: not compressed */
    uint32_t mantissa_bytes; /* the same; follows at once */
    uint64_t checksum;       /* XXH3-64 of both */
};
static_assert(sizeof(struct ps__import_chunk) == 24, "on-disk layout");

/* Near bytes of chunk i of a unit of near_bytes. */
static inline size_t ps__import_chunk_near(uint64_t near_bytes, uint64_t i)
{
    uint64_t left = near_bytes - i * PS_IMPORT_CHUNK_BYTES;
    return (size_t)(left < PS_IMPORT_CHUNK_BYTES ? left : PS_IMPORT_CHUNK_BYTES);
}

static inline uint64_t ps__import_chunks(uint64_t near_bytes)
{
    return (near_bytes + PS_IMPORT_CHUNK_BYTES - 1) / PS_IMPORT_CHUNK_BYTES;
}

/* ---- codec ---- */

struct ps__import_coder; /* of one thread: planes and zstd contexts */
/* For decoding alone, or for both directions. NULL: no memory. */
struct ps__import_coder *ps__import_coder_create(bool encodes);
void ps__import_coder_destroy(struct ps__import_coder *c);

/* Encode n near bytes (a multiple of 2, at most a chunk) into out, which has room for n bytes;
 * fills *x but offset. 0 or -ENOMEM. */
int ps__import_encode(struct ps__import_coder *c, const void *near, size_t n, void *out,
                      struct ps__import_chunk *x) PS_WARN_UNUSED;
/* Decode a record of x->exponent_bytes + x->mantissa_bytes bytes into n near bytes. The sizes are
 * those of a checked index. PS_ECHECKSUM when the record is not what it was. */
int ps__import_decode(struct ps__import_coder *c, const void *record,
                      const struct ps__import_chunk *x, void *near, size_t n) PS_WARN_UNUSED;

/* ---- near slot ---- */

/* Bytes [begin, begin + n) of a unit's near slot as BF16, n a multiple of 2; bytes between tensors
 * are 0. From a raw slot, or read from the files. */
void ps__import_window(const struct ps_unit_source *u, uint64_t begin, size_t n, void *near,
                       const void *raw);
/* Read all extents of a unit into its raw slot. PS_EFORMAT: a file became shorter; -errno. */
int ps__import_read_unit(const struct ps_unit_source *u, const struct ps_st_set *files, void *raw,
                         struct ps_error *err) PS_WARN_UNUSED;
int ps__import_window_read(const struct ps_unit_source *u, const struct ps_st_set *files,
                           uint64_t begin, size_t n, void *near,
                           struct ps_error *err) PS_WARN_UNUSED;

/* The plan that reads units at these places: see ps_import_sources. */
int ps__import_sources_of(const struct ps__import_unit *unit, const struct ps_unit_sources *plan,
                          struct ps_unit_sources *out, struct ps_error *err) PS_WARN_UNUSED;

/* ---- identity ---- */

/* Hash of content and layout as text. 0, or -ENODATA while a checksum is not known. */
int ps__import_hash(const struct ps_unit_sources *plan, const struct ps_st_set *files,
                    char hex[PS_IMPORT_HEX]) PS_WARN_UNUSED;
/* ps_import_open with the hash known. */
int ps__import_open_hash(struct ps_import **out, const char *path,
                         const struct ps_unit_sources *plan, const char *hex, char why[256],
                         struct ps_error *err) PS_WARN_UNUSED;
/* PS_EUSAGE with the reason when the plan cannot be imported. */
int ps__import_require(const struct ps_unit_sources *plan, struct ps_error *err) PS_WARN_UNUSED;

#endif
