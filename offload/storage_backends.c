/* The registry of storage back ends, and the choice among them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "offload/storage_internal.h"

/* One engine under the core, as a back end. */
static int open_engine(struct ps_storage **out, ps__engine_fn make, const char *name,
                       const struct ps_storage_options *opt, struct ps_error *err)
{
    struct ps_storage_options o;
    struct ps__engine *engine = NULL;
    int rc = ps__storage_options(&o, opt, err);
    if (rc == 0)
        rc = make(&engine, &o, err);
    if (rc < 0)
        return rc;
    rc = ps__core_create(out, engine, &o, name, err);
    if (rc < 0)
        engine->ops->destroy(engine);
    return rc;
}

int ps_storage_open_uring(struct ps_storage **out, const struct ps_storage_options *opt,
                          struct ps_error *err)
{
    return open_engine(out, ps__engine_uring, "io_uring", opt, err);
}

int ps_storage_open_threads(struct ps_storage **out, const struct ps_storage_options *opt,
                            struct ps_error *err)
{
    return open_engine(out, ps__engine_threads, "threads", opt, err);
}

int ps_storage_open_ram(struct ps_storage **out, const struct ps_storage_options *opt,
                        struct ps_error *err)
{
    return open_engine(out, ps__engine_ram, "ram", opt, err);
}

int ps_storage_open_null(struct ps_storage **out, const struct ps_storage_options *opt,
                         struct ps_error *err)
{
    return open_engine(out, ps__engine_null, "null", opt, err);
}

static const struct ps_storage_backend backend[] = {
    {"io_uring", "direct I/O through an io_uring", ps_storage_open_uring},
    {"threads", "direct I/O with pread and pwrite on threads", ps_storage_open_threads},
    {"ram", "files loaded into memory beforehand", ps_storage_open_ram},
    {"null", "no transfers at all: measures the machinery", ps_storage_open_null},
};

static const ps__engine_fn engine_fn[] = {
    ps__engine_uring,
    ps__engine_threads,
    ps__engine_ram,
    ps__engine_null,
};

enum { BACKENDS = sizeof backend / sizeof backend[0] };

const struct ps_storage_backend *ps_storage_backends(size_t *count)
{
    *count = BACKENDS;
    return backend;
}

static int find(const char *name)
{
    for (int i = 0; i < BACKENDS; i++) {
        if (strcmp(backend[i].name, name) == 0)
            return i;
    }
    return -1;
}

ps_storage_open_fn ps_storage_find(const char *name)
{
    int i = find(name);
    return i < 0 ? NULL : backend[i].open;
}

static bool is_refusal(int code)
{
    return code == -ENOSYS || code == -EPERM || code == -EACCES || code == -ENOMEM;
}

int ps__engine_auto(struct ps__engine **out, const char *name, const struct ps_storage_options *opt,
                    char *why, struct ps_error *err)
{
    enum { WHY_BYTES = 128 };
    if (name && strcmp(name, "auto") != 0) {
        int i = find(name);
        if (i < 0)
            return ps_error_full(err, PS_EUSAGE, NULL, NULL,
                                 "choose auto, io_uring, threads, ram or null",
                                 "no storage back end is called %s", name);
        if (why)
            snprintf(why, WHY_BYTES, "%s, as asked for", name);
        return engine_fn[i](out, opt, err);
    }
    struct ps_error refused = {0};
    int rc = ps__engine_uring(out, opt, &refused);
    if (rc == 0) {
        if (why)
            snprintf(why, WHY_BYTES, "io_uring");
        return 0;
    }
    if (!is_refusal(rc)) {
        if (err)
            *err = refused;
        return rc;
    }
    if (why)
        snprintf(why, WHY_BYTES, "threads, because io_uring is refused: %s", ps_status_text(rc));
    ps_log(opt->log, PS_LOG_WARN, "storage: %s; using pread and pwrite on threads",
           refused.message);
    return ps__engine_threads(out, opt, err);
}

int ps_storage_open_auto(struct ps_storage **out, const char *name,
                         const struct ps_storage_options *opt, char *why, struct ps_error *err)
{
    struct ps_storage_options o;
    struct ps__engine *engine = NULL;
    int rc = ps__storage_options(&o, opt, err);
    if (rc == 0)
        rc = ps__engine_auto(&engine, name, &o, why, err);
    if (rc < 0)
        return rc;
    rc = ps__core_create(out, engine, &o, engine->ops->name, err);
    if (rc < 0)
        engine->ops->destroy(engine);
    return rc;
}
