/* What lies where in a spill store: from extents, mode and number of files alone. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "offload/spill_store_internal.h"
#include "runtime/base/checked.h"

static const char digits[] = "0123456789abcdef";

bool ps__spill_uuid_parse(uint8_t out[16], const char *text)
{
    uint8_t uuid[16] = {0};
    unsigned n = 0;
    if (!text || strlen(text) != 36)
        return false;
    for (int i = 0; i < 36; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text[i] != '-')
                return false;
            continue;
        }
        const char *d = strchr(digits, text[i]);
        if (!d)
            return false;
        uuid[n / 2] = (uint8_t)((unsigned)uuid[n / 2] << 4 | (unsigned)(d - digits));
        n++;
    }
    memcpy(out, uuid, sizeof uuid);
    return true;
}

void ps__spill_uuid_text(char out[37], const uint8_t uuid[16])
{
    char *p = out;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *p++ = '-';
        *p++ = digits[uuid[i] >> 4];
        *p++ = digits[uuid[i] & 15];
    }
    *p = '\0';
}

static int check_extents(const struct ps_store_extent *extent, uint32_t n, uint64_t *chunks,
                         struct ps_error *err)
{
    uint64_t bytes = 0;
    *chunks = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct ps_store_extent *e = &extent[i];
        const uint64_t *at = e->chunk_offset;
        bool ok = memchr(e->name, 0, sizeof e->name) != NULL &&
                  (e->bytes > 0) == (e->chunk_count > 0) && (e->chunk_count == 0 || at[0] == 0);
        for (uint32_t c = 0; ok && c < e->chunk_count; c++)
            ok = at[c] < at[c + 1] && at[c + 1] % PS__SPILL_BLOCK == 0 &&
                 at[c + 1] - at[c] <= UINT32_MAX;
        ok = ok && (e->chunk_count == 0 || at[e->chunk_count] == e->bytes);
        *chunks += e->chunk_count;
        if (!ok || __builtin_add_overflow(bytes, e->bytes, &bytes) ||
            bytes > (uint64_t)INT64_MAX / 4 || *chunks > PS__SPILL_CHUNKS_MAX)
            return ps_error_set(err, PS_EUSAGE,
                                "spill store: the chunks of extent %u (%.63s) are "
                                "no multiples of 4096 that add up to its size",
                                i, e->name);
    }
    return 0;
}

static void copy_extents(struct ps__spill_shape *h, const struct ps_store_extent *extent)
{
    uint64_t *at = h->chunk_offset;
    for (uint32_t i = 0; i < h->extent_count; i++) {
        struct ps_store_extent *e = &h->extent[i];
        *e = extent[i];
        e->chunk_offset = at;
        *at++ = 0;
        h->extent_at[i] = h->slot_bytes;
        h->chunk_first[i] = h->chunk_count;
        for (uint32_t c = 0; c < e->chunk_count; c++) {
            *at = extent[i].chunk_offset[c + 1];
            if (*at - at[-1] > h->chunk_bytes_max)
                h->chunk_bytes_max = *at - at[-1];
            at++;
        }
        h->slot_bytes += e->bytes;
        h->chunk_count += e->chunk_count;
    }
}

int ps__spill_shape_init(struct ps__spill_shape *h, const struct ps_store_extent *extent,
                         uint32_t extent_count, struct ps_error *err)
{
    uint64_t chunks = 0;
    if (extent_count == 0 || extent_count > PS__SPILL_EXTENTS_MAX ||
        h->run_state_max > PS__SPILL_STATE_MAX)
        return ps_error_set(err, PS_EUSAGE, "spill store: %u extents and %llu bytes of run state",
                            extent_count, (unsigned long long)h->run_state_max);
    int rc = check_extents(extent, extent_count, &chunks, err);
    if (rc < 0)
        return rc;
    h->extent_count = extent_count;
    h->slot_bytes = h->chunk_count = h->chunk_bytes_max = 0;
    h->extent = calloc(extent_count, sizeof *h->extent);
    h->chunk_offset = calloc((size_t)(chunks + extent_count), sizeof *h->chunk_offset);
    h->extent_at = calloc(extent_count, sizeof *h->extent_at);
    h->chunk_first = calloc(extent_count, sizeof *h->chunk_first);
    if (!h->extent || !h->chunk_offset || !h->extent_at || !h->chunk_first)
        return ps_error_set(err, -ENOMEM, "spill store: out of memory");
    copy_extents(h, extent);
    uint64_t n = extent_count, gap = (uint64_t)64 << 10;
    h->layout_at = 3 * PS__SPILL_SUPER_AT;
    h->layout_bytes =
        ps_align_up(PS__SPILL_AREA_HEAD + (uint64_t)PS__SPILL_FILE_ENTRY * h->stripe.file_count +
                        PS__SPILL_EXTENT_ENTRY * n + 8 * chunks,
                    PS__SPILL_BLOCK);
    h->table_bytes_max =
        ps_align_up(PS__SPILL_AREA_HEAD + 8 * n + 16 * chunks + h->run_state_max, PS__SPILL_BLOCK);
    h->table_at[0] = ps_align_up(h->layout_at + h->layout_bytes, gap);
    h->table_at[1] = ps_align_up(h->table_at[0] + h->table_bytes_max, gap);
    h->data_at[0] = ps_align_up(h->table_at[1] + h->table_bytes_max, PS__SPILL_SUPER_AT);
    h->data_at[1] = PS__SPILL_SUPER_AT;
    return 0;
}

void ps__spill_shape_fini(struct ps__spill_shape *h)
{
    free(h->extent);
    free(h->chunk_offset);
    free(h->extent_at);
    free(h->chunk_first);
    h->extent = NULL;
    h->chunk_offset = h->extent_at = h->chunk_first = NULL;
}

uint64_t ps__spill_file_bytes(const struct ps__spill_shape *h, uint32_t file)
{
    uint64_t slots = h->mode == PS_SPILL_INPLACE ? 1 : 2;
    return h->data_at[file > 0] +
           ps_stripe_layout_file_bytes(&h->stripe, slots * h->slot_bytes, file);
}

uint64_t ps_spill_store_bytes(const struct ps_store_extent *extent, uint32_t extent_count,
                              enum ps_spill_mode mode, uint64_t run_state_max, uint32_t path_count)
{
    struct ps__spill_shape h = {.mode = mode};
    uint64_t sum = 0;
    h.run_state_max = run_state_max ? run_state_max : PS__SPILL_RUN_STATE;
    h.stripe.file_count = path_count ? path_count : 1;
    h.stripe.unit_bytes = PS__SPILL_UNIT;
    if (ps__spill_shape_init(&h, extent, extent_count, NULL) == 0) {
        for (uint32_t i = 0; i < h.stripe.file_count; i++)
            sum += ps__spill_file_bytes(&h, i);
    }
    ps__spill_shape_fini(&h);
    return sum;
}

uint64_t ps_spill_store_memory(const struct ps_store_extent *extent, uint32_t extent_count,
                               enum ps_spill_mode mode, uint64_t run_state_max, uint32_t path_count)
{
    struct ps__spill_shape h = {.mode = mode};
    uint64_t sum = 0, slots = mode == PS_SPILL_INPLACE ? 1 : 2;
    h.run_state_max = run_state_max ? run_state_max : PS__SPILL_RUN_STATE;
    h.stripe.file_count = path_count ? path_count : 1;
    h.stripe.unit_bytes = PS__SPILL_UNIT;
    if (ps__spill_shape_init(&h, extent, extent_count, NULL) == 0) {
        uint64_t n = extent_count;
        sum = sizeof(struct ps_spill_store) + 2 * PS__SPILL_BLOCK;
        sum += h.table_bytes_max > h.layout_bytes ? h.table_bytes_max : h.layout_bytes;
        sum += h.stripe.file_count * (sizeof(struct ps__spill_file) + sizeof(struct ps__spill_dir));
        sum += n * (sizeof(struct ps_store_extent) + 4 * sizeof(uint64_t));
        sum += h.chunk_count * (sizeof(uint64_t) + slots * sizeof(struct ps__spill_sum));
    }
    ps__spill_shape_fini(&h);
    return sum;
}

uint64_t ps__spill_chunk_at(const struct ps__spill_shape *h, uint32_t extent, uint32_t chunk,
                            int32_t slot)
{
    return (uint64_t)slot * h->slot_bytes + h->extent_at[extent] +
           h->extent[extent].chunk_offset[chunk];
}

uint64_t ps__spill_chunk_bytes(const struct ps__spill_shape *h, uint32_t extent, uint32_t chunk)
{
    const uint64_t *at = h->extent[extent].chunk_offset;
    return at[chunk + 1] - at[chunk];
}
