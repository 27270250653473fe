/* Words for what went wrong in a transfer: file, offset, remedy. */
#include <errno.h>

#include "offload/storage_core_internal.h"

static const char *kind_word(enum ps__io_kind k)
{
    static const char *const word[] = {"read", "write", "flush"};
    return word[k];
}

void ps__core_report_in_flight(const struct ps__core *c, double now_s)
{
    enum { LINES_MAX = 64 };
    uint32_t lines = 0;
    for (uint32_t i = 0; i < c->opt.depth && lines < LINES_MAX; i++) {
        const struct ps__request *r = &c->request[i];
        if (r->state == PS__REQUEST_FREE)
            continue;
        const struct ps__transfer *t = &c->transfer[r->transfer];
        ps_log(&c->log, PS_LOG_WARN, "  in flight: %s %s offset %llu, %u bytes, for %.1f s",
               kind_word(r->kind), c->file[r->file].path,
               (unsigned long long)(t->x.offset + r->rel + r->done), r->len - r->done,
               now_s - r->issued_s);
        lines++;
    }
}

static const char *remedy(int code)
{
    switch (code) {
    case -ENOSPC:
    case -EDQUOT:
        return "free space on this disk or choose another one";
    case -EFBIG:
        return "raise RLIMIT_FSIZE (ulimit -f unlimited)";
    case -EROFS:
        return "the file system has become read-only: look into the kernel log (dmesg)";
    default:
        return "look into the kernel log (dmesg) and the disk's health (smartctl -a)";
    }
}

int ps__core_transfer_error(const struct ps__core *c, const struct ps__transfer *t, bool flush,
                            struct ps_error *err)
{
    const char *path = c->file[t->x.file].path;
    unsigned long long at = t->fail_offset;
    bool reading = !flush && !t->x.write;
    if (flush)
        return ps_error_full(err, t->code, path, NULL, remedy(t->code),
                             "making written data durable failed: %s", ps_status_text(t->code));
    if (t->code == PS_EFORMAT)
        return ps_error_full(err, t->code, path, NULL,
                             "it was changed or truncated after it was opened: restore it and "
                             "start again",
                             "file shorter than planned: it ends before offset %llu, %llu bytes "
                             "at %llu were expected",
                             (unsigned long long)(t->x.offset + t->x.expect),
                             (unsigned long long)t->x.expect, (unsigned long long)t->x.offset);
    return ps_error_full(err, t->code, path, NULL, remedy(t->code),
                         "%s at offset %llu failed: %s%s%s", reading ? "read" : "write", at,
                         ps_status_text(t->code), t->code == -EFBIG ? " (RLIMIT_FSIZE)" : "",
                         reading && t->code == -EIO ? ", also when repeated" : "");
}

int ps__core_write_error(const struct ps__core *c, struct ps_error *err)
{
    const char *path = c->file[c->write_file].path;
    if (c->write_offset == UINT64_MAX)
        return ps_error_full(err, c->write_code, path, NULL, remedy(c->write_code),
                             "making written data durable failed: %s; nothing more is written",
                             ps_status_text(c->write_code));
    return ps_error_full(err, c->write_code, path, NULL, remedy(c->write_code),
                         "write at offset %llu failed: %s; nothing more is written",
                         (unsigned long long)c->write_offset, ps_status_text(c->write_code));
}

int ps__core_dead_error(const struct ps__core *c, uint32_t file, struct ps_error *err)
{
    const char *path = file < c->file_count ? c->file[file].path : NULL;
    if (c->dead == -ETIMEDOUT)
        return ps_error_full(err, c->dead, path, NULL,
                             "the disk or its file system hangs: look into the kernel log (dmesg)",
                             "storage: no completion for %.3g s, %u requests in flight",
                             c->opt.abort_s, c->dead_in_flight);
    return ps_error_full(err, c->dead, path, NULL, NULL, "storage (%s) failed: %s",
                         c->engine->ops->name, ps_status_text(c->dead));
}
