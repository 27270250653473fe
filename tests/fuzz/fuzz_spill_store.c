/* Fuzz target: superblock, layout and table of a spill store whose checksums are right, whatever
 * they say. The input is edits of a valid store: area, offset (2 bytes), value, four bytes each. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "offload/spill_store_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BLOCK = 4096, AREAS = 3 };

static const uint8_t run[16] = {1, 2, 3};
static uint8_t template[AREAS][2 * BLOCK];
static uint64_t bytes_of[AREAS];

static void init_shape(struct ps__spill_shape *h)
{
    static const uint64_t ends[] = {0, 8192, 12288, 28672};
    static const struct ps_store_extent extent[] = {{"layer.0.weights", 28672, ends, 3},
                                                    {"nothing", 0, NULL, 0},
                                                    {"layer.0.state", 8192, ends, 1}};
    memset(h, 0, sizeof *h);
    memcpy(h->run, run, sizeof run);
    h->stripe.file_count = 2;
    h->stripe.unit_bytes = PS__SPILL_UNIT;
    h->run_state_max = 64;
    if (ps__spill_shape_init(h, extent, 3, NULL) != 0)
        abort();
}

static void free_store(struct ps_spill_store *s)
{
    ps__spill_shape_fini(&s->shape);
    free(s->file);
    free(s->committed);
    free(s->latest);
    free(s->sum[0]);
    free(s->sum[1]);
    free(s->table);
}

static void make_template(void)
{
    struct ps_spill_store s = {0};
    struct ps__spill_super b = {.generation = 3, .file_count = 2, .extent_count = 3};
    init_shape(&s.shape);
    if (ps__spill_alloc_tables(&s, NULL) != 0)
        abort();
    memcpy(b.run, run, sizeof run);
    b.unit_bytes = s.shape.stripe.unit_bytes;
    b.run_state_max = s.shape.run_state_max;
    b.layout_at = s.shape.layout_at;
    b.layout_bytes = bytes_of[1] = s.shape.layout_bytes;
    b.table_at = s.shape.table_at[0];
    for (uint32_t i = 0; i < 2; i++)
        s.file[i].bytes = ps__spill_file_bytes(&s.shape, i);
    ps__spill_layout_encode(template[1], &s.shape, s.file);
    s.latest[0] = 1;
    b.table_bytes = bytes_of[2] = ps__spill_table_encode(&s, 3, "state", 5);
    memcpy(template[2], s.table, (size_t)bytes_of[2]);
    ps__spill_super_encode(template[0], &b);
    bytes_of[0] = BLOCK;
    free_store(&s);
}

static void read_tables(struct ps_spill_store *s, const struct ps__spill_super *b,
                        uint8_t area[AREAS][2 * BLOCK])
{
    struct ps_error err = {0};
    int rc = ps__spill_layout_decode(&s->shape, s->file, area[1], bytes_of[1], &err);
    if (rc == 0)
        rc = ps__spill_alloc_tables(s, &err);
    if (rc == 0 && s->shape.table_bytes_max >= bytes_of[2]) {
        memcpy(s->table, area[2], (size_t)bytes_of[2]);
        rc = ps__spill_table_decode(s, b->generation, bytes_of[2], &err);
        if (rc == 0 && s->run_state_at + s->run_state_bytes > bytes_of[2])
            abort();
    }
    if (rc != 0 && (rc != err.code || !err.message[0]))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t area[AREAS][2 * BLOCK];
    struct ps__spill_super b;
    if (bytes_of[0] == 0)
        make_template();
    memcpy(area, template, sizeof area);
    for (; size >= 4; data += 4, size -= 4) {
        unsigned a = data[0] % AREAS, at = data[1] | (unsigned)data[2] << 8;
        area[a][at % bytes_of[a]] = data[3];
    }
    uint64_t sum = XXH3_64bits(area[0], BLOCK - 8);
    for (int i = 0; i < 8; i++)
        area[0][BLOCK - 8 + i] = (uint8_t)(sum >> (8 * i));
    if (ps__spill_super_decode(&b, area[0], 0, run) != PS__SUPER_OK || b.run_state_max > (uint64_t)1
                                                                                             << 20)
        return 0;
    struct ps_spill_store s = {0};
    memcpy(s.shape.run, b.run, sizeof run);
    s.shape.mode = b.mode == PS_SPILL_INPLACE ? PS_SPILL_INPLACE : PS_SPILL_SHADOW;
    s.shape.stripe.file_count = b.file_count;
    s.shape.stripe.unit_bytes = b.unit_bytes;
    s.shape.run_state_max = b.run_state_max;
    if (ps__spill_alloc_files(&s, NULL) == 0)
        read_tables(&s, &b, area);
    free_store(&s);
    return 0;
}
