/* Where the bytes of a striped file lie. */
#include <assert.h>

#include "offload/stripe.h"

uint32_t ps_stripe_map_max(const struct ps_stripe_layout *l, uint64_t bytes)
{
    if (l->file_count == 1)
        return bytes > 0;
    return bytes == 0 ? 0 : (uint32_t)((bytes + l->unit_bytes - 1) / l->unit_bytes + 1);
}

uint32_t ps_stripe_map(const struct ps_stripe_layout *l, uint32_t file_base, bool write,
                       uint64_t offset, uint64_t bytes, void *memory, struct ps_transfer *x)
{
    assert(offset % PS_STORAGE_ALIGN == 0);
    assert(bytes % PS_STORAGE_ALIGN == 0);
    uint32_t n = 0;
    char *m = memory;
    while (bytes > 0) {
        uint64_t unit = offset / l->unit_bytes, within = offset % l->unit_bytes;
        uint64_t len = l->unit_bytes - within;
        if (l->file_count == 1 || len > bytes)
            len = bytes;
        x[n++] = (struct ps_transfer){
            .file = file_base + (uint32_t)(unit % l->file_count),
            .write = write,
            .offset = unit / l->file_count * l->unit_bytes + within,
            .bytes = len,
            .expect = len,
            .memory = m,
        };
        m += len;
        offset += len;
        bytes -= len;
    }
    return n;
}

uint64_t ps_stripe_layout_file_bytes(const struct ps_stripe_layout *l, uint64_t bytes, uint32_t i)
{
    uint64_t units = bytes / l->unit_bytes, rest = bytes % l->unit_bytes;
    uint64_t odd = units % l->file_count;
    uint64_t size = (units / l->file_count + (i < odd)) * l->unit_bytes;
    return i == odd ? size + rest : size;
}
