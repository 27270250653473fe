/* What the spill store's tests share: a small store, a step that writes it, the state that each
 * step must leave. Every extent's bytes are a function of the step that wrote them, so that "the
 * state of step N" can be told from any other. */
#ifndef PS_TESTS_OFFLOAD_SPILL_CHECK_H
#define PS_TESTS_OFFLOAD_SPILL_CHECK_H

#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "offload/spill_store.h"
#include "tests/offload/storage_check.h"

#define UUID "01234567-89ab-4def-8123-456789abcdef"
#define OTHER_UUID "01234567-89ab-4def-8123-456789abcdee"
#define STORE "p0/penstock-" UUID

enum { EXTENTS = 5, CHUNKS_MAX = 4, CHUNK_MAX = 64 << 10, PIECES = 8 };

static const uint64_t ends_a[] = {0, 8192, 12288, 28672}, ends_b[] = {0, 65536, 131072, 135168};
static const uint64_t ends_c[] = {0, 4096}, ends_d[] = {0, 16384, 32768, 49152, 65536};
static const struct ps_store_extent extents[EXTENTS] = {
    {"layer.0.weights", 28672, ends_a, 3},
    {"layer.0.state", 135168, ends_b, 3},
    {"nothing", 0, NULL, 0},
    {"embed.weights", 4096, ends_c, 1},
    {"embed.state", 65536, ends_d, 4},
};

static const char *const one_path[] = {"p0"};
static const char *const two_paths[] = {"p0", "p1"};

static inline struct ps_spill_store_options spill_options(uint32_t paths)
{
    for (uint32_t i = 0; i < paths; i++)
        assert_true(mkdir(two_paths[i], 0700) == 0 || errno == EEXIST);
    return (struct ps_spill_store_options){.path = two_paths,
                                           .path_count = paths,
                                           .run_uuid = UUID,
                                           .config_hash = 77,
                                           .extent = extents,
                                           .extent_count = EXTENTS,
                                           .run_state_max = 256,
                                           .unit_bytes = 20480,
                                           .open = ps_storage_open_threads};
}

/* Whether step `step` writes the extent: the first all of them, later ones not always. */
static inline bool step_writes(uint64_t step, uint32_t extent)
{
    return step == 1 || (step + extent) % 4 != 0;
}

/* The newest step up to `step` that wrote the extent. */
static inline uint64_t step_of(uint64_t step, uint32_t extent)
{
    while (!step_writes(step, extent))
        step--;
    return step;
}

static inline void fill_chunk(uint64_t *memory, uint64_t bytes, uint64_t step, uint32_t extent,
                              uint32_t chunk)
{
    uint64_t x = step * 0x9e3779b97f4a7c15ULL + extent * 1000003ULL + chunk * 7919ULL;
    for (uint64_t i = 0; i < bytes / 8; i++)
        memory[i] = x += 0xbf58476d1ce4e5b9ULL;
}

static inline bool chunk_is(const uint64_t *memory, uint64_t bytes, uint64_t step, uint32_t extent,
                            uint32_t chunk)
{
    uint64_t x = step * 0x9e3779b97f4a7c15ULL + extent * 1000003ULL + chunk * 7919ULL;
    for (uint64_t i = 0; i < bytes / 8; i++) {
        if (memory[i] != (x += 0xbf58476d1ce4e5b9ULL))
            return false;
    }
    return true;
}

static inline uint64_t chunk_bytes(uint32_t e, uint32_t c)
{
    return extents[e].chunk_offset[c + 1] - extents[e].chunk_offset[c];
}

/* A store with a lane of its own. */
struct spill_run {
    struct ps_spill_store *store;
    struct ps_state_store *state;
    struct ps_storage *lane;
    void *memory; /* CHUNK_MAX */
};

/* Move one chunk through the lane. */
static inline int lane_move(struct spill_run *r, bool write, uint32_t e, uint32_t c,
                            enum ps_store_copy copy, struct ps_error *err)
{
    struct ps_transfer x[PIECES];
    const struct ps_state_store_ops *ops = r->state->ops;
    int n = write ? ops->map_write(r->state, e, c, r->memory, x, PIECES)
                  : ops->map_read(r->state, e, c, copy, r->memory, x, PIECES);
    int rc = 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        uint64_t ticket = 0;
        rc = r->lane->ops->submit(r->lane, &x[i], &ticket, err);
        if (rc == 0)
            rc = r->lane->ops->wait(r->lane, ticket, err);
    }
    return rc;
}

static inline int write_chunk(struct spill_run *r, uint64_t step, uint32_t e, uint32_t c,
                              struct ps_error *err)
{
    fill_chunk(r->memory, chunk_bytes(e, c), step, e, c);
    r->state->ops->seal(r->state, e, c, r->memory);
    return lane_move(r, true, e, c, PS_COPY_LATEST, err);
}

static inline int write_step(struct spill_run *r, uint64_t step, struct ps_error *err)
{
    int rc = 0;
    for (uint32_t e = 0; rc == 0 && e < EXTENTS; e++) {
        for (uint32_t c = 0; rc == 0 && step_writes(step, e) && c < extents[e].chunk_count; c++)
            rc = write_chunk(r, step, e, c, err);
        if (rc == 0 && step_writes(step, e))
            r->state->ops->note_written(r->state, e);
    }
    return rc;
}

static inline int commit_step(struct spill_run *r, uint64_t step, struct ps_error *err)
{
    char text[64];
    int n = snprintf(text, sizeof text, "{\"step\": %" PRIu64 "}", step);
    return r->state->ops->commit(r->state, text, (size_t)n, err);
}

static inline int do_step(struct spill_run *r, uint64_t step, struct ps_error *err)
{
    int rc = write_step(r, step, err);
    return rc == 0 ? commit_step(r, step, err) : rc;
}

/* Every chunk of this copy is that of `step`: 0, or the first error; 1: whole, but of another step.
 */
static inline int holds_step(struct spill_run *r, uint64_t step, enum ps_store_copy copy,
                             struct ps_error *err)
{
    for (uint32_t e = 0; e < EXTENTS; e++) {
        for (uint32_t c = 0; c < extents[e].chunk_count; c++) {
            memset(r->memory, 0xa5, CHUNK_MAX);
            int rc = lane_move(r, false, e, c, copy, err);
            if (rc == 0)
                rc = r->state->ops->check(r->state, e, c, copy, r->memory, err);
            if (rc < 0)
                return rc;
            if (!chunk_is(r->memory, chunk_bytes(e, c), step_of(step, e), e, c))
                return 1;
        }
    }
    return 0;
}

static inline int run_attach(struct spill_run *r, ps_storage_open_fn open, struct ps_error *err)
{
    struct ps_storage_options o = {.depth = 4, .transfer_max = 16, .file_max = 4};
    r->state = ps_spill_store_state(r->store);
    r->memory = aligned(CHUNK_MAX);
    int rc = open(&r->lane, &o, err);
    return rc == 0 ? r->state->ops->attach(r->state, r->lane, true, err) : rc;
}

static inline void run_close(struct spill_run *r)
{
    if (r->lane)
        r->lane->ops->close(r->lane);
    ps_spill_store_close(r->store);
    free(r->memory);
    memset(r, 0, sizeof *r);
}

static inline int run_create(struct spill_run *r, const struct ps_spill_store_options *opt,
                             struct ps_error *err)
{
    memset(r, 0, sizeof *r);
    int rc = ps_spill_store_create(&r->store, opt, err);
    return rc == 0 ? run_attach(r, opt->open, err) : rc;
}

/* *step receives the step of the run state. */
static inline int run_open(struct spill_run *r, const struct ps_spill_store_options *opt,
                           uint64_t *step, struct ps_error *err)
{
    void *state = NULL;
    size_t bytes = 0;
    memset(r, 0, sizeof *r);
    int rc = ps_spill_store_open(&r->store, opt, &state, &bytes, err);
    if (rc < 0)
        return rc;
    bool ok = sscanf(state, "{\"step\": %" SCNu64, step) == 1;
    free(state);
    return ok ? run_attach(r, opt->open, err) : -EBADMSG;
}

#define OK(call)                                                                                   \
    do {                                                                                           \
        struct ps_error ok_err = {0};                                                              \
        struct ps_error *err = &ok_err;                                                            \
        int ok_rc = (call);                                                                        \
        if (ok_rc != 0)                                                                            \
            print_error("%s: %d %s\n", #call, ok_rc, ok_err.message);                              \
        assert_int_equal(ok_rc, 0);                                                                \
    } while (0)

/* A file's bytes at an offset: read, write. */
static inline void poke(const char *path, uint64_t offset, void *memory, size_t bytes, bool write)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    ssize_t n =
        write ? pwrite(fd, memory, bytes, (off_t)offset) : pread(fd, memory, bytes, (off_t)offset);
    assert_int_equal(n, (ssize_t)bytes);
    close(fd);
}

/* A fresh store with steps 1 .. `steps` committed, closed. */
static inline void make_store(uint32_t paths, uint64_t steps)
{
    struct ps_spill_store_options opt = spill_options(paths);
    struct spill_run r;
    OK(run_create(&r, &opt, err));
    for (uint64_t i = 1; i <= steps; i++)
        OK(do_step(&r, i, err));
    run_close(&r);
}

static inline void remove_store(void)
{
    assert_int_equal(system("rm -rf p0 p1"), 0);
}

/* Whole numbers for `make test`, larger ones for `make crash`. */
static inline int count_of(int fast, int whole)
{
    const char *crash = getenv("PENSTOCK_CRASH");
    return crash && strcmp(crash, "1") == 0 ? whole : fast;
}

#endif
