/* The two halves of a storage back end, shared by offload/storage_*.c alone.
 *
 * The *core* (storage_core.c) fills ps_storage_ops once for all: it cuts transfers into requests,
 * keeps at most `depth` of them in flight, judges every result, continues, re-reads, watches the
 * clock. An *engine* moves one request: it is handed at most `depth` at a time and returns raw
 * results as a kernel does (bytes moved, or -errno). The fault engine sits between them, so that an
 * injected result takes the same path as a real one.
 *
 *   transfers  --cut-->  requests  --issue-->  engine  --reap-->  results  --judge-->  done | again
 *
 * One thread at a time uses all of it; only the thread engine has threads of its own. */
#ifndef PS_OFFLOAD_STORAGE_INTERNAL_H
#define PS_OFFLOAD_STORAGE_INTERNAL_H

#include "offload/storage_backends.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PS__STORAGE_DEPTH_MAX 1024U

enum ps__io_kind { PS__IO_READ, PS__IO_WRITE, PS__IO_FLUSH };

/* One request as the engine sees it. `slot` (0 .. depth-1) comes back with the result. */
struct ps__io {
    uint32_t slot;
    uint32_t file;
    enum ps__io_kind kind;
    uint32_t bytes;
    uint64_t offset;
    void *memory;
    uint64_t ticket; /* of the transfer; 0: flush */
};

struct ps__io_done {
    uint32_t slot;
    int32_t res; /* bytes moved, or -errno */
};

struct ps__file {
    int fd; /* -1: the engine does not use files */
    bool writable;
    bool direct;   /* opened with O_DIRECT and not refused since */
    bool proven;   /* a direct request has succeeded */
    uint64_t size; /* when it was added */
    char *path;
};

struct ps__engine;

struct ps__engine_ops {
    const char *name;
    bool opens_files; /* the core opens files before add_file */
    bool direct;      /* ... with O_DIRECT where possible */
    /* File `idx` (ascending from 0) is f; keeps no pointer to it. May allocate. */
    int (*add_file)(struct ps__engine *e, uint32_t idx, const struct ps__file *f,
                    struct ps_error *err);
    /* Queue a request; copies what it needs. false: no room now, the core offers it again. */
    bool (*issue)(struct ps__engine *e, const struct ps__io *io);
    /* Hand what was queued to the kernel. Transient refusals are remembered and tried again by kick
     * and reap. Returns 0 or a fatal -errno. */
    int (*kick)(struct ps__engine *e);
    /* Up to `max` results. Waits at most timeout_s seconds for the first (0: does not wait).
     * Returns how many, or a fatal -errno. */
    int (*reap)(struct ps__engine *e, struct ps__io_done *out, uint32_t max, double timeout_s);
    /* Release everything. Requests still in flight (after a timeout only) are cancelled or
     * abandoned, but never waited for longer than a second. */
    void (*destroy)(struct ps__engine *e);
};

struct ps__engine {
    const struct ps__engine_ops *ops;
};

/* Options with defaults filled in; -EINVAL when out of range. */
int ps__storage_options(struct ps_storage_options *out, const struct ps_storage_options *opt,
                        struct ps_error *err) PS_WARN_UNUSED;

/* Wrap an engine. Takes ownership of it on success; `opt` has its defaults filled in. */
int ps__core_create(struct ps_storage **out, struct ps__engine *engine,
                    const struct ps_storage_options *opt, const char *name,
                    struct ps_error *err) PS_WARN_UNUSED;

/* Engines by themselves, for the fault engine. `opt` has its defaults filled in. */
int ps__engine_uring(struct ps__engine **out, const struct ps_storage_options *opt,
                     struct ps_error *err) PS_WARN_UNUSED;
int ps__engine_threads(struct ps__engine **out, const struct ps_storage_options *opt,
                       struct ps_error *err) PS_WARN_UNUSED;
int ps__engine_ram(struct ps__engine **out, const struct ps_storage_options *opt,
                   struct ps_error *err) PS_WARN_UNUSED;
int ps__engine_null(struct ps__engine **out, const struct ps_storage_options *opt,
                    struct ps_error *err) PS_WARN_UNUSED;

typedef int (*ps__engine_fn)(struct ps__engine **out, const struct ps_storage_options *opt,
                             struct ps_error *err);

/* Engine by name or by choice, as ps_storage_open_auto. */
int ps__engine_auto(struct ps__engine **out, const char *name, const struct ps_storage_options *opt,
                    char *why, struct ps_error *err) PS_WARN_UNUSED;

/* Open a regular file for the core (storage_file.c): direct when asked for and possible, then
 * f->direct is set. Symlinks are followed for reading and refused for writing. */
int ps__file_open(struct ps__file *f, const char *path, bool writable, bool direct,
                  struct ps_error *err) PS_WARN_UNUSED;
void ps__file_close(struct ps__file *f);
/* From now on buffered: the file system refused a direct request. */
int ps__file_make_buffered(struct ps__file *f) PS_WARN_UNUSED;

double ps__now_s(void);
void ps__sleep_s(double s);

#ifdef __cplusplus
}
#endif
#endif
