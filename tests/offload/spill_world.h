/* A disk that can lose power: storages that write to memory and record what they did, so that a
 * test can ask what the disk would hold after a crash at any moment.
 *
 * A write is durable once a flush of its file has returned; before that each of its 512-byte
 * sectors may have reached the disk or not, whatever came before or after it. */
#ifndef PS_TESTS_OFFLOAD_SPILL_WORLD_H
#define PS_TESTS_OFFLOAD_SPILL_WORLD_H

#include "tests/offload/spill_check.h"

enum { WORLD_FILES = 2, WORLD_EVENTS = 4096, SECTOR = 512 };

enum event_kind { EVENT_WRITE, EVENT_FLUSH, EVENT_ACK };

struct event {
    enum event_kind kind;
    int file;
    uint64_t at, bytes, step; /* step: of an ack */
    unsigned char *data;
};

struct world {
    char path[WORLD_FILES][64];
    unsigned char *image[WORLD_FILES]; /* what a reader sees now */
    unsigned char *start[WORLD_FILES]; /* what was durable when recording began */
    uint64_t size[WORLD_FILES];
    int files;
    struct event event[WORLD_EVENTS];
    int events;
    bool lies;   /* a flush does nothing: the negative control */
    int fail_at; /* the operation of this number (1, ...) fails; 0: none */
    int fail_op; /* enum event_kind it counts */
    int ops;     /* of that kind so far */
    int after;   /* writes and flushes after the failure */
    bool failed;
};

static struct world world;

struct world_storage {
    struct ps_storage st;
    int file[WORLD_FILES];
    int files, failed;
    uint64_t ticket;
};

static inline uint64_t world_random(uint64_t *x)
{
    uint64_t z = *x += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static inline void world_clear(void)
{
    for (int i = 0; i < world.events; i++)
        free(world.event[i].data);
    world.events = 0;
}

static inline void world_free(void)
{
    world_clear();
    for (int i = 0; i < world.files; i++) {
        free(world.image[i]);
        free(world.start[i]);
    }
    memset(&world, 0, sizeof world);
}

static inline void world_load(const char *path)
{
    struct stat sb;
    int i = world.files++;
    assert_true(i < WORLD_FILES);
    assert_int_equal(stat(path, &sb), 0);
    snprintf(world.path[i], sizeof world.path[i], "%s", path);
    world.size[i] = (uint64_t)sb.st_size;
    world.image[i] = malloc((size_t)sb.st_size);
    world.start[i] = malloc((size_t)sb.st_size);
    assert_true(world.image[i] && world.start[i]);
    poke(path, 0, world.image[i], (size_t)sb.st_size, false);
    memcpy(world.start[i], world.image[i], (size_t)sb.st_size);
}

static inline void world_record(struct event e, const void *data)
{
    assert_true(world.events < WORLD_EVENTS);
    e.data = data ? malloc((size_t)e.bytes) : NULL;
    if (data) {
        assert_non_null(e.data);
        memcpy(e.data, data, (size_t)e.bytes);
    }
    world.event[world.events++] = e;
}

/* Whether this operation is the one that fails. */
static inline bool world_strikes(enum event_kind kind)
{
    if (world.failed)
        world.after++;
    if (world.fail_at == 0 || (int)kind != world.fail_op || ++world.ops != world.fail_at)
        return false;
    world.failed = true;
    return true;
}

static inline int world_add_file(struct ps_storage *st, const char *path, bool writable,
                                 bool *direct, struct ps_error *err)
{
    struct world_storage *w = (struct world_storage *)(void *)st;
    (void)writable;
    if (direct)
        *direct = true;
    for (int i = 0; i < world.files; i++) {
        if (strcmp(world.path[i], path) == 0) {
            w->file[w->files] = i;
            return w->files++;
        }
    }
    return ps_error_set(err, -ENOENT, "the world has no %s", path);
}

static inline int world_submit(struct ps_storage *st, const struct ps_transfer *x, uint64_t *ticket,
                               struct ps_error *err)
{
    struct world_storage *w = (struct world_storage *)(void *)st;
    int i = w->file[x->file];
    assert_true(x->offset + x->bytes <= world.size[i]);
    *ticket = ++w->ticket;
    if (!x->write) {
        memcpy(x->memory, world.image[i] + x->offset, (size_t)x->bytes);
        return 0;
    }
    if (world_strikes(EVENT_WRITE))
        return ps_error_full(err, -EIO, world.path[i], NULL, NULL, "a write fails");
    memcpy(world.image[i] + x->offset, x->memory, (size_t)x->bytes);
    world_record((struct event){EVENT_WRITE, i, x->offset, x->bytes, 0, NULL}, x->memory);
    return 0;
}

static inline int world_wait(struct ps_storage *st, uint64_t ticket, struct ps_error *err)
{
    (void)st;
    (void)ticket;
    (void)err;
    return 0;
}

static inline int world_flush(struct ps_storage *st, uint32_t file, struct ps_error *err)
{
    struct world_storage *w = (struct world_storage *)(void *)st;
    int i = w->file[file];
    if (world_strikes(EVENT_FLUSH))
        return ps_error_full(err, -EIO, world.path[i], NULL, NULL, "a flush fails");
    world_record((struct event){EVENT_FLUSH, i, 0, 0, 0, NULL}, NULL);
    return 0;
}

static inline void world_counters(const struct ps_storage *st, struct ps_storage_counters *out)
{
    (void)st;
    memset(out, 0, sizeof *out);
}

static inline void world_close(struct ps_storage *st)
{
    free(st);
}

static const struct ps_storage_ops world_ops = {
    .name = "world",
    .add_file = world_add_file,
    .submit = world_submit,
    .wait = world_wait,
    .flush = world_flush,
    .counters = world_counters,
    .close = world_close,
};

static inline int world_open(struct ps_storage **out, const struct ps_storage_options *opt,
                             struct ps_error *err)
{
    struct world_storage *w = calloc(1, sizeof *w);
    (void)opt;
    if (!w)
        return ps_error_set(err, -ENOMEM, "out of memory");
    w->st.ops = &world_ops;
    *out = &w->st;
    return 0;
}

static inline void world_ack(uint64_t step)
{
    world_record((struct event){EVENT_ACK, 0, 0, 0, step, NULL}, NULL);
}

/* Whether a write recorded as event i was durable when event `end` had not happened yet. */
static inline bool world_durable(int i, int end)
{
    for (int k = i + 1; k < end && !world.lies; k++) {
        if (world.event[k].kind == EVENT_FLUSH && world.event[k].file == world.event[i].file)
            return true;
    }
    return false;
}

/* What becomes of a write that was not flushed. */
enum fate { FATE_LOST, FATE_WHOLE, FATE_TORN, FATE_ANY };

static inline void world_apply(const struct event *e, uint64_t *seed, enum fate fate)
{
    uint64_t how = fate == FATE_ANY ? world_random(seed) % 4 : (uint64_t)fate;
    for (uint64_t at = 0; how != 0 && at < e->bytes; at += SECTOR) {
        if (how == 1 || (world_random(seed) & 1)) /* 2, 3: torn */
            memcpy(world.start[e->file] + e->at + at, e->data + at, SECTOR);
    }
}

/* The power fails before event `end`: the images become what a disk might hold, and recording
 * begins again. Returns the last step acknowledged before. */
static inline uint64_t world_crash_as(int end, enum fate fate, uint64_t *seed)
{
    int lost[WORLD_EVENTS], n = 0;
    uint64_t acked = 0;
    for (int i = 0; i < end; i++) {
        const struct event *e = &world.event[i];
        if (e->kind == EVENT_ACK)
            acked = e->step;
        else if (e->kind == EVENT_WRITE && world_durable(i, end))
            world_apply(e, seed, FATE_WHOLE);
        else if (e->kind == EVENT_WRITE)
            lost[n++] = i;
    }
    while (n > 0) { /* in any order */
        int k = (int)(world_random(seed) % (uint64_t)n);
        world_apply(&world.event[lost[k]], seed, fate);
        lost[k] = lost[--n];
    }
    for (int i = 0; i < world.files; i++)
        memcpy(world.image[i], world.start[i], (size_t)world.size[i]);
    world_clear();
    return acked;
}

static inline uint64_t world_crash(int end, uint64_t *seed)
{
    return world_crash_as(end, FATE_ANY, seed);
}

#endif
