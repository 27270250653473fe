/* How a session's trainer reaches its files: storage back ends, spill files, injected faults. */
#include "session/session_io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "offload/storage_backends.h"
#include "offload/storage_fault.h"
#include "offload/stripe.h"
#include "runtime/base/file.h"

/* --delay-seed: every request is late by up to so much. */
#define JITTER_US 300

/* Lanes that use the spill file: one writes, one reads. */
#define SPILL_LANES 2

struct ps_session_io {
    const struct ps_options *opt;
    const struct ps_log *log;
    const char *name; /* back end */
    char fault[256];  /* PENSTOCK_FAULT, or "" */
    char used[128];   /* back end in use, and why */
    char dir[PS_STRIPE_PATHS_MAX][1024];
    struct ps_stripe *stripe;
    int attached; /* lanes that have its files open */
    bool own_dir; /* OUTPUT/spill: removed at the end when it is empty */
};

int ps_session_io_create(struct ps_session_io **out, const struct ps_options *opt,
                         const struct ps_log *log, struct ps_error *err)
{
    struct ps_session_io *io = calloc(1, sizeof *io);
    if (!io)
        return ps_error_set(err, -ENOMEM, "out of memory");
    io->opt = opt;
    io->log = log;
    io->name = opt->storage ? opt->storage : "auto";
    const char *fault = getenv("PENSTOCK_FAULT");
    if (fault && snprintf(io->fault, sizeof io->fault, "%s", fault) >= (int)sizeof io->fault) {
        free(io);
        return ps_error_set(err, PS_EUSAGE, "PENSTOCK_FAULT is too long");
    }
    *out = io;
    return 0;
}

void ps_session_io_destroy(struct ps_session_io *io)
{
    if (!io)
        return;
    ps_stripe_close(io->stripe);
    if (io->own_dir)
        PS_IGNORE(rmdir(io->dir[0]), "what is not empty, or not there, stays as it is");
    free(io);
}

const char *ps_session_io_used(const struct ps_session_io *io)
{
    return io->used;
}

/* Seconds, 0: not set or not a number. */
static double environment_s(const char *name)
{
    const char *text = getenv(name);
    char *end;
    double s = text ? strtod(text, &end) : 0;
    return text && *end == '\0' && s > 0 && s < 1e6 ? s : 0;
}

static int open_storage(void *arg, struct ps_storage **out, const struct ps_storage_options *given,
                        struct ps_error *err)
{
    struct ps_session_io *io = arg;
    struct ps_storage_options o = *given;
    o.warn_s = environment_s("PENSTOCK_IO_WARN_S");
    o.abort_s = environment_s("PENSTOCK_IO_ABORT_S");
    struct ps_storage_fault fault = {0};
    int ret = io->fault[0] ? ps_storage_fault_parse(&fault, io->fault, err) : 0;
    if (ret < 0)
        return ret;
    if (io->opt->delay_seed && !io->fault[0]) {
        fault.seed = io->opt->delay_seed;
        fault.jitter_us = JITTER_US;
        fault.reorder = true;
    } else if (!io->fault[0]) {
        return ps_storage_open_auto(out, io->name, &o, io->used, err);
    }
    return ps_storage_open_fault(out, io->name, &fault, &o, io->used, err);
}

/* Directories of the spill files: --nvme-path, or OUTPUT/spill. */
int ps_session_io_paths(struct ps_session_io *io, const char **path, uint32_t *count,
                        struct ps_error *err)
{
    *count = 0;
    while (io->opt->nvme_path && *count < PS_STRIPE_PATHS_MAX &&
           ps_options_list_item(io->opt->nvme_path, *count, io->dir[*count], sizeof io->dir[0])) {
        path[*count] = io->dir[*count];
        (*count)++;
    }
    if (*count > 0)
        return 0;
    if (!io->opt->output || !ps_path_join(io->dir[0], sizeof io->dir[0], io->opt->output, "spill"))
        return ps_error_full(err, PS_EUSAGE, NULL, "nvme-path", "give --nvme-path DIR",
                             "there is no directory for the spill file");
    int ret = ps_file_make_dirs(io->dir[0], err);
    if (ret < 0)
        return ret;
    io->own_dir = true;
    path[0] = io->dir[0];
    *count = 1;
    return 0;
}

static int spill_create(void *arg, uint64_t bytes, struct ps_error *err)
{
    struct ps_session_io *io = arg;
    const char *path[PS_STRIPE_PATHS_MAX];
    struct ps_stripe_options o = {.path = path, .bytes = bytes, .log = io->log};
    int ret = ps_session_io_paths(io, path, &o.path_count, err);
    if (ret == 0)
        ret = ps_stripe_open(&io->stripe, &o, err);
    if (ret == -ENOENT && err)
        err->code = ret = PS_EUSAGE; /* a directory that the user named and that is not there */
    return ret;
}

static int spill_attach(void *arg, struct ps_storage *st, struct ps_error *err)
{
    struct ps_session_io *io = arg;
    uint32_t base;
    int ret = ps_stripe_add_files(io->stripe, st, &base, err);
    if (ret == 0 && ++io->attached == SPILL_LANES)
        ps_stripe_unlink(io->stripe); /* a kill frees the space at once */
    return ret;
}

static int spill_map(void *arg, uint64_t offset, uint64_t bytes, struct ps_transfer *out, int max)
{
    struct ps_session_io *io = arg;
    struct ps_stripe_layout l = ps_stripe_get_layout(io->stripe);
    if (ps_stripe_map_max(&l, bytes) > (uint32_t)max)
        return -EOVERFLOW;
    return (int)ps_stripe_map(&l, 0, false, offset, bytes, NULL, out);
}

static const char *spill_path(void *arg, uint32_t file)
{
    struct ps_session_io *io = arg;
    return ps_stripe_file_path(io->stripe, file);
}

void ps_session_io_fill(struct ps_session_io *io, struct ps_trainer_io *out)
{
    *out = (struct ps_trainer_io){.open = open_storage,
                                  .arg = io,
                                  .depth = (uint32_t)io->opt->queue_depth,
                                  .spill_create = spill_create,
                                  .spill_attach = spill_attach,
                                  .spill_map = spill_map,
                                  .spill_path = spill_path,
                                  .moves_nothing = strcmp(io->name, "null") == 0};
}
