/* What a result of a request means: done, go on behind it, do it again, or the end of its transfer.
 */
#include <errno.h>
#include <sys/stat.h>

#include "offload/storage_core_internal.h"

enum { REREADS_MAX = 2, STALLS_MAX = 3 };

static void request_free(struct ps__core *c, struct ps__request *r)
{
    c->transfer[r->transfer].in_flight--;
    r->state = PS__REQUEST_FREE;
    c->request_busy--;
}

static void request_fail(struct ps__core *c, struct ps__request *r, int code)
{
    struct ps__transfer *t = &c->transfer[r->transfer];
    if (t->code == 0) {
        t->code = code;
        t->fail_offset = t->x.offset + r->rel + r->done;
    }
    if (r->kind != PS__IO_READ && c->write_code == 0 && code != -ENOSPC && code != -EDQUOT) {
        c->write_code = code;
        c->write_file = r->file;
        c->write_offset = r->kind == PS__IO_FLUSH ? UINT64_MAX : t->fail_offset;
    }
    request_free(c, r);
}

static void request_again(struct ps__core *c, struct ps__request *r, double not_before)
{
    if (c->transfer[r->transfer].code != 0) { /* another request of it has failed: no more */
        request_free(c, r);
        return;
    }
    r->state = PS__REQUEST_PENDING;
    r->not_before_s = not_before;
    c->pending++;
}

/* Fewer bytes than asked for, and not because the file was planned to end there: go on behind them
 * when alignment allows, else do the whole piece anew. */
static void judge_short(struct ps__core *c, struct ps__request *r, uint32_t moved)
{
    const struct ps__transfer *t = &c->transfer[r->transfer];
    uint64_t align = r->direct ? PS_STORAGE_ALIGN : 1;
    c->counters.short_transfers++;
    r->done += moved;
    if ((t->x.offset + r->rel + r->done) % align != 0)
        r->done = 0;
    if (r->done > r->furthest) {
        r->furthest = r->done;
        r->stalls = 0;
    } else if (++r->stalls >= STALLS_MAX) {
        struct stat sb;
        uint64_t planned = t->x.offset + r->rel + r->expect;
        int fd = c->file[r->file].fd;
        bool ended = r->kind == PS__IO_READ && fd >= 0 && fstat(fd, &sb) == 0 &&
                     (uint64_t)sb.st_size < planned;
        request_fail(c, r, ended ? PS_EFORMAT : -EIO);
        return;
    }
    request_again(c, r, 0);
}

static void judge_moved(struct ps__core *c, struct ps__request *r, uint32_t moved)
{
    if (r->direct)
        c->file[r->file].proven = true;
    r->again = 0;
    if (r->kind == PS__IO_FLUSH) {
        request_free(c, r);
        return;
    }
    if (r->kind == PS__IO_WRITE)
        c->counters.write_bytes += moved;
    else
        c->counters.read_bytes += moved;
    if (r->done + moved >= r->expect)
        request_free(c, r);
    else if (moved == 0 && r->kind == PS__IO_READ)
        request_fail(c, r, PS_EFORMAT);
    else
        judge_short(c, r, moved);
}

static bool is_read_error(int code)
{
    return code == -EIO || code == -EREMOTEIO || code == -ENODATA || code == -EILSEQ;
}

/* Returns whether the result counts as life for the watchdog. */
static bool judge_failed(struct ps__core *c, struct ps__request *r, int code, double now)
{
    struct ps__file *f = &c->file[r->file];
    if (code == -EINTR || code == -EAGAIN || code == -EBUSY) {
        uint32_t shift = r->again < 7 ? r->again : 7;
        r->again++;
        c->counters.retries++;
        request_again(c, r, code == -EINTR ? 0 : now + 1e-3 * (double)(1U << shift));
        return false;
    }
    if (code == -EINVAL && r->direct && !f->proven && r->kind != PS__IO_FLUSH) {
        if (f->direct && ps__file_make_buffered(f) == 0 && !c->buffered_warned) {
            ps_log(&c->log, PS_LOG_WARN,
                   "%s: the file system refuses direct transfers; using buffered ones", f->path);
            c->buffered_warned = true;
        }
        request_again(c, r, 0);
        return true;
    }
    if (r->kind == PS__IO_READ && is_read_error(code) && r->rereads < REREADS_MAX) {
        r->rereads++;
        c->counters.retries++;
        const struct ps__transfer *t = &c->transfer[r->transfer];
        ps_log(&c->log, PS_LOG_WARN, "%s: read at offset %llu: %s; reading again (%u of %d)",
               f->path, (unsigned long long)(t->x.offset + r->rel + r->done), ps_status_text(code),
               r->rereads, REREADS_MAX);
        request_again(c, r, 0);
        return true;
    }
    request_fail(c, r, code);
    return true;
}

bool ps__core_judge(struct ps__core *c, struct ps__request *r, int32_t res, double now_s)
{
    if (res < 0)
        return judge_failed(c, r, res, now_s);
    judge_moved(c, r, (uint32_t)res);
    return true;
}
