/* The fault engine: hands requests to another engine and falsifies what comes back.
 *
 *   issue -> shadow (HELD: never sent | SENT: in the inner engine) -> READY (due at due_s) ->
 * reaped
 *
 * Invariant: at most `depth` shadows, one for each slot of the core. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "offload/storage_fault.h"
#include "offload/storage_internal.h"

enum shadow_state { SHADOW_FREE, SHADOW_HUNG, SHADOW_SENT, SHADOW_READY };

struct shadow {
    enum shadow_state state;
    struct ps__io io;
    const struct ps_storage_fault_item *fault; /* NULL: none */
    int32_t res;
    double due_s;
    double delay_s;
};

struct range {
    bool set;
    uint32_t file;
    uint64_t offset, end, ticket;
};

struct fault_engine {
    struct ps__engine e;
    struct ps__engine_ops ops; /* as the inner engine's, but for the name */
    struct ps__engine *inner;
    struct ps_storage_fault fault;
    struct range sticky[PS_STORAGE_FAULT_ITEMS]; /* where an `always` item first struck */
    uint64_t request_count[PS_FAULT_ANY + 1];    /* by enum ps_fault_op */
    uint64_t transfer_count[PS_FAULT_ANY + 1];
    uint64_t ticket_last;     /* newest transfer seen */
    struct shadow *shadow;    /* depth */
    struct ps__io_done *done; /* depth */
    uint32_t depth;
    uint32_t sent;  /* shadows SENT */
    uint32_t ready; /* shadows READY */
    uint64_t random;
};

static struct fault_engine *fault_of(struct ps__engine *e)
{
    return (struct fault_engine *)(void *)e;
}

/* SplitMix64 (Steele, Lea, Flood 2014): order and delays only. */
static uint64_t next_random(struct fault_engine *f)
{
    uint64_t x = f->random += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static enum ps_fault_op op_of(const struct ps__io *io)
{
    return io->kind == PS__IO_READ    ? PS_FAULT_READ
           : io->kind == PS__IO_WRITE ? PS_FAULT_WRITE
                                      : PS_FAULT_FLUSH;
}

static bool touches(const struct range *r, const struct ps__io *io, bool transfers)
{
    if (!r->set || r->file != io->file)
        return false;
    if (transfers)
        return r->ticket == io->ticket;
    return io->kind == PS__IO_FLUSH || (io->offset < r->end && r->offset < io->offset + io->bytes);
}

/* Whether item i strikes this request, which has just been counted; `first` of its transfer. */
static bool strikes(struct fault_engine *f, uint32_t i, const struct ps__io *io, bool first)
{
    const struct ps_storage_fault_item *it = &f->fault.item[i];
    if (it->op != PS_FAULT_ANY && it->op != op_of(io))
        return false;
    if (it->transfers && io->kind == PS__IO_FLUSH)
        return false;
    uint64_t n = it->transfers ? f->transfer_count[it->op] : f->request_count[it->op];
    bool now = (it->n == 0 || it->n == n) && (!it->transfers || first);
    if (it->always && touches(&f->sticky[i], io, it->transfers))
        return true;
    if (now && it->always)
        f->sticky[i] =
            (struct range){true, io->file, io->offset, io->offset + io->bytes, io->ticket};
    return now;
}

static const struct ps_storage_fault_item *choose(struct fault_engine *f, const struct ps__io *io)
{
    enum ps_fault_op op = op_of(io);
    bool first = io->ticket > f->ticket_last;
    f->request_count[op]++;
    f->request_count[PS_FAULT_ANY]++;
    if (first) {
        f->ticket_last = io->ticket;
        f->transfer_count[op]++;
        f->transfer_count[PS_FAULT_ANY]++;
    }
    const struct ps_storage_fault_item *found = NULL;
    for (uint32_t i = 0; i < f->fault.item_count; i++) {
        if (strikes(f, i, io, first) && !found)
            found = &f->fault.item[i];
    }
    return found;
}

/* Bytes of `short` and `tear`: the value, or half, of the request. */
static uint32_t part_of(const struct ps_storage_fault_item *it, const struct ps__io *io)
{
    uint64_t part = it->value < 0 ? io->bytes / 2 : (uint64_t)it->value;
    if (it->value < 0 && part > PS_STORAGE_ALIGN)
        part = part / PS_STORAGE_ALIGN * PS_STORAGE_ALIGN;
    return part < io->bytes ? (uint32_t)part : io->bytes;
}

static void make_ready(struct fault_engine *f, struct shadow *s, int32_t res)
{
    s->state = SHADOW_READY;
    s->res = res;
    s->due_s = s->delay_s > 0 ? ps__now_s() + s->delay_s : 0;
    f->ready++;
}

static bool send(struct fault_engine *f, struct shadow *s, uint32_t bytes)
{
    struct ps__io io = s->io;
    io.bytes = bytes;
    if (!f->inner->ops->issue(f->inner, &io))
        return false;
    s->state = SHADOW_SENT;
    f->sent++;
    return true;
}

static bool fault_issue(struct ps__engine *e, const struct ps__io *io)
{
    struct fault_engine *f = fault_of(e);
    struct shadow *s = &f->shadow[io->slot];
    memset(s, 0, sizeof *s);
    s->io = *io;
    if (f->fault.jitter_us > 0)
        s->delay_s = 1e-6 * (double)(next_random(f) % ((uint64_t)f->fault.jitter_us + 1));
    const struct ps_storage_fault_item *it = s->fault = choose(f, io);
    uint32_t bytes = io->bytes;
    switch (it ? (int)it->action : -1) {
    case PS_FAULT_FAIL:
        make_ready(f, s, it->code);
        return true;
    case PS_FAULT_HANG:
        s->state = SHADOW_HUNG;
        return true;
    case PS_FAULT_DROP:
        make_ready(f, s, (int32_t)io->bytes);
        return true;
    case PS_FAULT_DELAY:
        s->delay_s += 1e-3 * (double)it->value;
        break;
    case PS_FAULT_SHORT: /* a direct write needs whole blocks; a read is cut when it is back */
        if (io->kind == PS__IO_WRITE)
            bytes = (uint32_t)((part_of(it, io) + PS_STORAGE_ALIGN - 1) / PS_STORAGE_ALIGN *
                               PS_STORAGE_ALIGN);
        break;
    case PS_FAULT_TEAR:
        bytes = (uint32_t)(part_of(it, io) / PS_STORAGE_ALIGN * PS_STORAGE_ALIGN);
        break;
    default:
        break;
    }
    if (bytes > io->bytes)
        bytes = io->bytes;
    if (io->kind != PS__IO_FLUSH && bytes == 0) {
        make_ready(f, s, it->action == PS_FAULT_SHORT ? 0 : (int32_t)io->bytes);
        return true;
    }
    if (!send(f, s, bytes))
        make_ready(f, s, -EAGAIN);
    return true;
}

static int fault_kick(struct ps__engine *e)
{
    struct fault_engine *f = fault_of(e);
    return f->inner->ops->kick(f->inner);
}

/* What the core is told of a request that the inner engine has done with result `res`. */
static int32_t falsify(const struct shadow *s, int32_t res)
{
    if (!s->fault || res < 0)
        return res;
    uint8_t *m = s->io.memory;
    switch (s->fault->action) {
    case PS_FAULT_SHORT: {
        uint32_t part = part_of(s->fault, &s->io);
        if (part >= (uint32_t)res)
            return res;
        if (s->io.kind == PS__IO_READ) /* nobody may rely on what a short read leaves behind */
            memset(m + part, 0xa5, (uint32_t)res - part);
        return (int32_t)part;
    }
    case PS_FAULT_TEAR:
        return (int32_t)s->io.bytes;
    case PS_FAULT_FLIP: {
        uint64_t bit = s->fault->value < 0 ? 0 : (uint64_t)s->fault->value;
        if (res > 0)
            m[bit / 8 % (uint32_t)res] ^= (uint8_t)(1U << (bit % 8));
        return res;
    }
    default:
        return res;
    }
}

/* Take results from the inner engine, waiting at most timeout_s. */
static int collect(struct fault_engine *f, double timeout_s)
{
    if (f->sent == 0) {
        ps__sleep_s(timeout_s);
        return 0;
    }
    int n = f->inner->ops->reap(f->inner, f->done, f->depth, timeout_s);
    for (int i = 0; i < n; i++) {
        struct shadow *s = &f->shadow[f->done[i].slot];
        f->sent--;
        make_ready(f, s, falsify(s, f->done[i].res));
    }
    return n < 0 ? n : 0;
}

/* Hand over those that are due, all or (reorder) a random one. *next: when the next one will be. */
static uint32_t deliver(struct fault_engine *f, struct ps__io_done *out, uint32_t max, double now,
                        double *next)
{
    uint32_t n = 0;
    uint32_t start = f->fault.reorder ? (uint32_t)(next_random(f) % f->depth) : 0;
    if (f->fault.reorder)
        max = 1;
    *next = now + 3600;
    for (uint32_t i = 0; i < f->depth && n < max; i++) {
        struct shadow *s = &f->shadow[(start + i) % f->depth];
        if (s->state != SHADOW_READY)
            continue;
        if (s->due_s > now) {
            *next = s->due_s < *next ? s->due_s : *next;
            continue;
        }
        out[n++] = (struct ps__io_done){s->io.slot, s->res};
        s->state = SHADOW_FREE;
        f->ready--;
    }
    return n;
}

static int fault_reap(struct ps__engine *e, struct ps__io_done *out, uint32_t max, double timeout_s)
{
    struct fault_engine *f = fault_of(e);
    double now = ps__now_s();
    double deadline = now + timeout_s;
    int rc = collect(f, 0);
    while (rc == 0) {
        double next = deadline;
        uint32_t n = 0;
        if (!f->fault.reorder || f->sent == 0)
            n = deliver(f, out, max, now, &next);
        if (n > 0)
            return (int)n;
        if (now >= deadline)
            break;
        double until = next < deadline ? next : deadline;
        rc = collect(f, until > now ? until - now : 0);
        now = ps__now_s();
    }
    return rc;
}

static int fault_add_file(struct ps__engine *e, uint32_t idx, const struct ps__file *file,
                          struct ps_error *err)
{
    struct fault_engine *f = fault_of(e);
    return f->inner->ops->add_file(f->inner, idx, file, err);
}

static void fault_destroy(struct ps__engine *e)
{
    struct fault_engine *f = fault_of(e);
    f->inner->ops->destroy(f->inner);
    free(f->shadow);
    free(f->done);
    free(f);
}

static int fault_engine_create(struct ps__engine **out, struct ps__engine *inner,
                               const struct ps_storage_fault *fault, uint32_t depth,
                               struct ps_error *err)
{
    struct fault_engine *f = calloc(1, sizeof *f);
    if (!f)
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    f->shadow = calloc(depth, sizeof *f->shadow);
    f->done = calloc(depth, sizeof *f->done);
    if (!f->shadow || !f->done) {
        free(f->shadow);
        free(f->done);
        free(f);
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    }
    f->ops = (struct ps__engine_ops){
        .name = "fault",
        .opens_files = inner->ops->opens_files,
        .direct = inner->ops->direct,
        .add_file = fault_add_file,
        .issue = fault_issue,
        .kick = fault_kick,
        .reap = fault_reap,
        .destroy = fault_destroy,
    };
    f->e.ops = &f->ops;
    f->inner = inner;
    f->fault = *fault;
    f->depth = depth;
    f->random = fault->seed;
    *out = &f->e;
    return 0;
}

int ps_storage_open_fault(struct ps_storage **out, const char *inner,
                          const struct ps_storage_fault *fault,
                          const struct ps_storage_options *opt, char *why, struct ps_error *err)
{
    struct ps_storage_options o;
    struct ps__engine *engine = NULL, *wrapped = NULL;
    int rc = ps__storage_options(&o, opt, err);
    if (rc == 0)
        rc = ps__engine_auto(&engine, inner, &o, why, err);
    if (rc < 0)
        return rc;
    rc = fault_engine_create(&wrapped, engine, fault, o.depth, err);
    if (rc < 0) {
        engine->ops->destroy(engine);
        return rc;
    }
    rc = ps__core_create(out, wrapped, &o, "fault", err);
    if (rc < 0)
        wrapped->ops->destroy(wrapped);
    return rc;
}
