/* The null engine: every request completes at once at full length and memory is left alone. */
#include <errno.h>
#include <stdlib.h>

#include "offload/storage_internal.h"

struct null_engine {
    struct ps__engine e;
    struct ps__io_done *done; /* depth */
    uint32_t count;
};

static struct null_engine *null_of(struct ps__engine *e)
{
    return (struct null_engine *)(void *)e;
}

static int null_add_file(struct ps__engine *e, uint32_t idx, const struct ps__file *f,
                         struct ps_error *err)
{
    (void)e;
    (void)idx;
    (void)f;
    (void)err;
    return 0;
}

static bool null_issue(struct ps__engine *e, const struct ps__io *io)
{
    struct null_engine *n = null_of(e);
    n->done[n->count++] = (struct ps__io_done){io->slot, (int32_t)io->bytes};
    return true;
}

static int null_kick(struct ps__engine *e)
{
    (void)e;
    return 0;
}

static int null_reap(struct ps__engine *e, struct ps__io_done *out, uint32_t max, double timeout_s)
{
    struct null_engine *n = null_of(e);
    (void)timeout_s;
    uint32_t taken = 0;
    while (n->count > 0 && taken < max)
        out[taken++] = n->done[--n->count];
    return (int)taken;
}

static void null_destroy(struct ps__engine *e)
{
    struct null_engine *n = null_of(e);
    free(n->done);
    free(n);
}

static const struct ps__engine_ops null_ops = {
    .name = "null",
    .add_file = null_add_file,
    .issue = null_issue,
    .kick = null_kick,
    .reap = null_reap,
    .destroy = null_destroy,
};

int ps__engine_null(struct ps__engine **out, const struct ps_storage_options *opt,
                    struct ps_error *err)
{
    struct null_engine *n = calloc(1, sizeof *n);
    if (!n || !(n->done = calloc(opt->depth, sizeof *n->done))) {
        free(n);
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    }
    n->e.ops = &null_ops;
    *out = &n->e;
    return 0;
}
