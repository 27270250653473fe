/* The storage core: transfers in, requests to an engine, every result judged.
 *
 * Design. Requests, not transfers, are the unit of everything: a request that came back short, or
 * with an error that may pass, keeps its slot and is issued again. Nothing here blocks but
 * core_step, nothing is allocated after open and add_file, and no wait is endless: without a
 * completion for warn_s the in-flight table is logged, after abort_s the storage is dead.
 *
 * Invariants.
 * 1. request_busy = pending + in_flight <= depth; the engine holds exactly in_flight requests.
 * 2. Transfers are cut in the order of their tickets: all before ticket_cut are cut or have failed.
 * 3. A transfer is reported only when none of its requests is in the engine, so that its memory is
 * the caller's again (but for -ETIMEDOUT, when the kernel still has it). */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "offload/storage_core_internal.h"

static struct ps__core *core_of(struct ps_storage *st)
{
    return (struct ps__core *)(void *)st;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static bool transfer_finished(const struct ps__transfer *t)
{
    return t->in_flight == 0 && (t->code != 0 || t->cut == t->end);
}

static void request_issue(struct ps__core *c, uint32_t slot, double now)
{
    struct ps__request *r = &c->request[slot];
    struct ps__transfer *t = &c->transfer[r->transfer];
    struct ps__io io = {
        .slot = slot,
        .file = r->file,
        .kind = r->kind,
        .bytes = r->len - r->done,
        .offset = t->x.offset + r->rel + r->done,
        .memory = t->x.memory ? (char *)t->x.memory + r->rel + r->done : NULL,
        .ticket = t->ticket,
    };
    r->direct = c->file[r->file].direct;
    if (!c->engine->ops->issue(c->engine, &io))
        return;
    r->state = PS__REQUEST_IN_FLIGHT;
    r->issued_s = now;
    c->pending--;
    c->in_flight++;
    c->counters.requests++;
}

static uint32_t request_take(struct ps__core *c, uint32_t transfer, enum ps__io_kind kind)
{
    uint32_t slot = 0;
    while (c->request[slot].state != PS__REQUEST_FREE)
        slot++;
    assert(slot < c->opt.depth);
    if (c->request_busy == 0) { /* the clock of the watchdog starts */
        c->progress_s = ps__now_s();
        c->warned = false;
    }
    struct ps__request *r = &c->request[slot];
    memset(r, 0, sizeof *r);
    r->state = PS__REQUEST_PENDING;
    r->kind = kind;
    r->transfer = transfer;
    r->file = c->transfer[transfer].x.file;
    c->transfer[transfer].in_flight++;
    c->request_busy++;
    c->pending++;
    return slot;
}

static void request_cut(struct ps__core *c, struct ps__transfer *t, double now)
{
    uint32_t slot =
        request_take(c, (uint32_t)(t - c->transfer), t->x.write ? PS__IO_WRITE : PS__IO_READ);
    struct ps__request *r = &c->request[slot];
    r->rel = t->cut;
    r->len = (uint32_t)min_u64(c->opt.chunk_bytes, t->end - t->cut);
    uint64_t left = t->x.expect > t->cut ? t->x.expect - t->cut : 0;
    r->expect = (uint32_t)min_u64(r->len, left);
    t->cut += r->len;
    request_issue(c, slot, now);
}

/* Issue what waits: repeated requests first, then new ones, up to the depth. */
static int core_pump(struct ps__core *c)
{
    double now = ps__now_s();
    for (uint32_t i = 0; c->pending > 0 && i < c->opt.depth; i++) {
        const struct ps__request *r = &c->request[i];
        if (r->state == PS__REQUEST_PENDING && now >= r->not_before_s)
            request_issue(c, i, now);
    }
    while (c->request_busy < c->opt.depth && c->ticket_cut <= c->ticket_last) {
        struct ps__transfer *t = &c->transfer[(c->ticket_cut - 1) % c->opt.transfer_max];
        if (t->ticket != c->ticket_cut || t->code != 0 || t->cut == t->end)
            c->ticket_cut++;
        else
            request_cut(c, t, now);
    }
    return c->engine->ops->kick(c->engine);
}

static void core_die(struct ps__core *c, int code)
{
    c->dead = code;
    c->dead_in_flight = c->in_flight;
}

/* Take up to `depth` results, waiting at most timeout_s for the first. */
static int core_reap(struct ps__core *c, double timeout_s)
{
    int n = c->engine->ops->reap(c->engine, c->done, c->opt.depth, timeout_s);
    if (n < 0)
        return n;
    if (n == 0)
        return 0;
    double now = ps__now_s();
    for (int i = 0; i < n; i++) {
        assert(c->done[i].slot < c->opt.depth);
        struct ps__request *r = &c->request[c->done[i].slot];
        assert(r->state == PS__REQUEST_IN_FLIGHT);
        c->in_flight--;
        if (ps__core_judge(c, r, c->done[i].res, now)) {
            c->progress_s = now;
            c->warned = false;
        }
    }
    return n;
}

/* The watchdog: called when nothing has come back. */
static void core_watch(struct ps__core *c)
{
    double now = ps__now_s();
    double idle = now - c->progress_s;
    if (idle >= c->opt.warn_s && !c->warned) {
        c->warned = true;
        ps_log(&c->log, PS_LOG_WARN,
               "storage: no completion for %.3g s, %u requests in flight; giving up after %.3g s",
               idle, c->request_busy, c->opt.abort_s);
        ps__core_report_in_flight(c, now);
    }
    if (idle >= c->opt.abort_s)
        core_die(c, -ETIMEDOUT);
}

/* One turn: issue, then take what has come back, waiting for it if `block`. */
static int core_step(struct ps__core *c, bool block)
{
    if (c->dead)
        return c->dead;
    int rc = core_pump(c);
    double timeout = 0;
    if (rc == 0 && block && c->request_busy > 0) {
        double idle = ps__now_s() - c->progress_s;
        timeout = (c->warned || idle >= c->opt.warn_s ? c->opt.abort_s : c->opt.warn_s) - idle;
        double longest = c->pending > 0 ? 1e-3 : 1.0;
        timeout = timeout > longest ? longest : timeout < 1e-4 ? 1e-4 : timeout;
        if (c->in_flight == 0) { /* all wait for their time to be tried again */
            ps__sleep_s(timeout);
            timeout = 0;
        }
    }
    if (rc == 0)
        rc = core_reap(c, timeout);
    int taken = rc;
    if (taken > 0) /* before the caller turns to what has come: the disk shall not wait for it */
        rc = core_pump(c);
    if (rc < 0) {
        core_die(c, rc);
        ps_log(&c->log, PS_LOG_ERROR, "storage (%s): %s", c->engine->ops->name, ps_status_text(rc));
        return rc;
    }
    if (taken == 0 && block && c->request_busy > 0)
        core_watch(c);
    return c->dead;
}

/* Until everything submitted is finished. */
static int core_drain(struct ps__core *c)
{
    int rc = 0;
    while (rc == 0 && (c->request_busy > 0 || c->ticket_cut <= c->ticket_last))
        rc = core_step(c, true);
    return rc;
}

static int core_add_file(struct ps_storage *st, const char *path, bool writable, bool *direct,
                         struct ps_error *err)
{
    struct ps__core *c = core_of(st);
    if (c->file_count == c->opt.file_max)
        return ps_error_full(err, -EMFILE, path, NULL, NULL, "more than %u files in one storage",
                             c->opt.file_max);
    struct ps__file *f = &c->file[c->file_count];
    const struct ps__engine_ops *ops = c->engine->ops;
    memset(f, 0, sizeof *f);
    f->fd = -1;
    f->writable = writable;
    int rc = 0;
    if (ops->opens_files) {
        rc = ps__file_open(f, path, writable, ops->direct, err);
        if (rc < 0)
            return rc;
    } else if (!(f->path = strdup(path))) {
        return ps_error_full(err, -ENOMEM, path, NULL, NULL, "out of memory");
    }
    rc = ops->add_file(c->engine, c->file_count, f, err);
    if (rc < 0) {
        ps__file_close(f);
        return rc;
    }
    if (ops->direct && !f->direct && !c->buffered_warned) {
        ps_log(&c->log, PS_LOG_WARN,
               "%s: the file system refuses direct transfers; using buffered ones", path);
        c->buffered_warned = true;
    }
    if (direct)
        *direct = f->direct;
    return (int)c->file_count++;
}

static int check_transfer(const struct ps__core *c, const struct ps_transfer *x,
                          struct ps_error *err)
{
    if (x->file >= c->file_count)
        return ps_error_set(err, -EINVAL, "storage: no file %u", x->file);
    const struct ps__file *f = &c->file[x->file];
    const char *what = NULL;
    if (x->offset % PS_STORAGE_ALIGN != 0 || x->bytes % PS_STORAGE_ALIGN != 0 ||
        (uintptr_t)x->memory % PS_STORAGE_ALIGN != 0)
        what = "memory, offset or length is not aligned to 4096";
    else if (x->offset > (uint64_t)INT64_MAX || x->bytes > (uint64_t)INT64_MAX - x->offset)
        what = "offset and length overflow";
    else if (x->expect > x->bytes || (x->write && x->expect != x->bytes))
        what = "expected length does not fit the length";
    else if (x->write && !f->writable)
        what = "the file was added for reading";
    else if (!x->memory && x->bytes > 0)
        what = "no memory";
    if (!what)
        return 0;
    return ps_error_full(err, -EINVAL, f->path, NULL, NULL,
                         "transfer of %llu bytes at offset %llu: %s", (unsigned long long)x->bytes,
                         (unsigned long long)x->offset, what);
}

static int core_submit(struct ps_storage *st, const struct ps_transfer *x, uint64_t *ticket,
                       struct ps_error *err)
{
    struct ps__core *c = core_of(st);
    int rc = check_transfer(c, x, err);
    if (rc < 0)
        return rc;
    rc = core_step(c, false);
    if (rc < 0)
        return ps__core_dead_error(c, x->file, err);
    struct ps__transfer *t = &c->transfer[c->ticket_last % c->opt.transfer_max];
    if (t->live && (!transfer_finished(t) || t->code != 0))
        return ps_error_full(err, -EAGAIN, c->file[x->file].path, NULL, NULL,
                             "%u transfers are queued", c->opt.transfer_max);
    if (x->write && c->write_code != 0)
        return ps__core_write_error(c, err);
    memset(t, 0, sizeof *t);
    t->x = *x;
    t->ticket = ++c->ticket_last;
    t->live = true;
    uint64_t blocks = (x->expect + PS_STORAGE_ALIGN - 1) / PS_STORAGE_ALIGN;
    t->end = min_u64(x->bytes, blocks * PS_STORAGE_ALIGN);
    *ticket = t->ticket;
    rc = core_pump(c);
    if (rc < 0) {
        core_die(c, rc);
        return ps__core_dead_error(c, x->file, err);
    }
    return 0;
}

static int core_wait(struct ps_storage *st, uint64_t ticket, struct ps_error *err)
{
    struct ps__core *c = core_of(st);
    if (ticket == 0 || ticket > c->ticket_last)
        return ps_error_set(err, -EINVAL, "storage: no transfer %llu", (unsigned long long)ticket);
    struct ps__transfer *t = &c->transfer[(ticket - 1) % c->opt.transfer_max];
    if (t->ticket != ticket)
        return 0; /* it had succeeded when its slot was reused */
    while (!transfer_finished(t)) {
        if (core_step(c, true) < 0)
            return ps__core_dead_error(c, t->x.file, err);
    }
    t->live = false;
    return t->code == 0 ? 0 : ps__core_transfer_error(c, t, false, err);
}

static int core_flush(struct ps_storage *st, uint32_t file, struct ps_error *err)
{
    struct ps__core *c = core_of(st);
    if (file >= c->file_count)
        return ps_error_set(err, -EINVAL, "storage: no file %u", file);
    if (core_drain(c) < 0)
        return ps__core_dead_error(c, file, err);
    if (c->write_code != 0)
        return ps__core_write_error(c, err);
    struct ps__transfer *t = &c->transfer[c->opt.transfer_max];
    memset(t, 0, sizeof *t);
    t->x.file = file;
    request_take(c, c->opt.transfer_max, PS__IO_FLUSH);
    while (t->in_flight > 0) {
        if (core_step(c, true) < 0)
            return ps__core_dead_error(c, file, err);
    }
    return t->code == 0 ? 0 : ps__core_transfer_error(c, t, true, err);
}

static void core_counters(const struct ps_storage *st, struct ps_storage_counters *out)
{
    *out = ((const struct ps__core *)(const void *)st)->counters;
}

static void core_close(struct ps_storage *st)
{
    if (!st)
        return;
    struct ps__core *c = core_of(st);
    c->ticket_cut = c->ticket_last + 1; /* what has not begun never does */
    PS_IGNORE(core_drain(c) < 0, "nobody waits for these transfers any more");
    assert(c->dead != 0 || c->in_flight == 0);
    c->engine->ops->destroy(c->engine);
    for (uint32_t i = 0; i < c->file_count; i++)
        ps__file_close(&c->file[i]);
    free(c->file);
    free(c->transfer);
    free(c->request);
    free(c->done);
    free(c);
}

int ps__storage_options(struct ps_storage_options *out, const struct ps_storage_options *opt,
                        struct ps_error *err)
{
    struct ps_storage_options o;
    memset(&o, 0, sizeof o);
    if (opt)
        o = *opt;
    o.depth = o.depth ? o.depth : 8;
    o.chunk_bytes = o.chunk_bytes ? o.chunk_bytes : 4U << 20;
    o.transfer_max = o.transfer_max ? o.transfer_max : 4096;
    o.file_max = o.file_max ? o.file_max : 256;
    o.warn_s = o.warn_s > 0 ? o.warn_s : 30;
    o.abort_s = o.abort_s > 0 ? o.abort_s : 120;
    if (o.depth > PS__STORAGE_DEPTH_MAX)
        return ps_error_set(err, -EINVAL, "storage: depth %u is over %u", o.depth,
                            PS__STORAGE_DEPTH_MAX);
    if (o.chunk_bytes % PS_STORAGE_ALIGN != 0 || o.chunk_bytes > 1U << 30)
        return ps_error_set(err, -EINVAL,
                            "storage: chunk of %u bytes is no multiple of 4096 up to 1 GiB",
                            o.chunk_bytes);
    *out = o;
    return 0;
}

int ps__core_create(struct ps_storage **out, struct ps__engine *engine,
                    const struct ps_storage_options *opt, const char *name, struct ps_error *err)
{
    struct ps__core *c = calloc(1, sizeof *c);
    if (!c)
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    c->opt = *opt;
    if (opt->log)
        c->log = *opt->log;
    c->file = calloc(opt->file_max, sizeof *c->file);
    c->transfer = calloc((size_t)opt->transfer_max + 1, sizeof *c->transfer);
    c->request = calloc(opt->depth, sizeof *c->request);
    c->done = calloc(opt->depth, sizeof *c->done);
    if (!c->file || !c->transfer || !c->request || !c->done) {
        free(c->file);
        free(c->transfer);
        free(c->request);
        free(c->done);
        free(c);
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    }
    c->ops = (struct ps_storage_ops){
        .name = name,
        .add_file = core_add_file,
        .submit = core_submit,
        .wait = core_wait,
        .flush = core_flush,
        .counters = core_counters,
        .close = core_close,
    };
    c->st.ops = &c->ops;
    c->engine = engine;
    c->ticket_cut = 1;
    *out = &c->st;
    return 0;
}
