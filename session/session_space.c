/* Room on the disk, before anything is written: the spill store with all its slots, spill files and
 * imports, and in the output directory the result and the checkpoints that are kept. See
 * session_internal.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "offload/spill_store.h"
#include "session/host_disk.h"
#include "session/session_internal.h"

#define PATH_BYTES 4096
#define GIB 1073741824.0
#define DAY_S 86400.0
/* `auto`: not more often than this, and with no more than this share of the time. */
#define AUTO_INTERVAL_S 60.0
#define AUTO_SHARE 0.02

static uint32_t path_count(const struct ps_options *o)
{
    char dir[PATH_BYTES];
    uint32_t count = 0;
    while (ps_options_list_item(o->nvme_path, count, dir, sizeof dir))
        count++;
    return count ? count : 1;
}

uint64_t ps__store_bytes(const struct ps_session *s)
{
    uint32_t count;
    const struct ps_store_extent *e = ps_trainer_store_extents(s->trainer, &count);
    bool one = s->opt->spill_mode && strcmp(s->opt->spill_mode, "inplace") == 0;
    return count > 0 ? ps_spill_store_bytes(e, count, one ? PS_SPILL_INPLACE : PS_SPILL_SHADOW, 0,
                                            path_count(s->opt))
                     : 0;
}

uint64_t ps__store_buffer_bytes(const struct ps_session *s)
{
    uint32_t count;
    uint64_t most[2] = {0, 0}; /* of weights, of states */
    const struct ps_store_extent *e = ps_trainer_store_extents(s->trainer, &count);
    for (uint32_t i = 0; ps_trainer_shape(s->trainer)->trains && i < count; i++)
        for (uint32_t c = 0; c < e[i].chunk_count; c++) {
            uint64_t bytes = e[i].chunk_offset[c + 1] - e[i].chunk_offset[c];
            most[i % 2] = bytes > most[i % 2] ? bytes : most[i % 2];
        }
    return most[0] + most[1];
}

/* The directory itself, or where it will be made. */
static bool existing(const char *dir, char path[PATH_BYTES])
{
    int n = snprintf(path, PATH_BYTES, "%s", dir);
    while (n > 0 && n < PATH_BYTES && access(path, F_OK) != 0) {
        char *slash = strrchr(path, '/');
        if (!slash)
            snprintf(path, PATH_BYTES, ".");
        else
            slash[slash == path] = '\0';
    }
    return n > 0 && n < PATH_BYTES;
}

static uint64_t sum(const uint64_t *bytes, int32_t units)
{
    uint64_t total = 0;
    for (int32_t i = 0; bytes && i < units; i++)
        total += bytes[i];
    return total;
}

/* The result, and the checkpoints that lie beside it at a time: a new one is whole before the
 * oldest goes. */
static uint64_t output_bytes(const struct ps_session *s)
{
    const struct ps_step_shape *p = ps_trainer_shape(s->trainer);
    int32_t units = p->n_layer + 2;
    uint64_t result = sum(p->frozen ? p->adapter_bytes : p->pinned_bytes, units);
    uint64_t kept = s->opt->save_steps > 0 ? (uint64_t)s->opt->save_total_limit + 1 : 0;
    return result + kept * (result + sum(p->state_bytes, units));
}

int ps__space_check(struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    char out[PATH_BYTES];
    char nvme[PATH_BYTES];
    char dir[PATH_BYTES];
    struct stat a;
    struct stat b;
    struct ps_host_disk disk;
    bool planned_here = o->command == PS_CMD_PLAN && !o->hardware;
    if ((o->command != PS_CMD_TRAIN && !planned_here) || !o->output || o->resume)
        return 0;
    if (!existing(o->output, out) || ps_host_disk(&disk, out, NULL) < 0)
        return 0;
    uint64_t need = output_bytes(s);
    bool listed = ps_options_list_item(o->nvme_path, 0, dir, sizeof dir);
    bool same = !listed || (existing(dir, nvme) && stat(out, &a) == 0 && stat(nvme, &b) == 0 &&
                            a.st_dev == b.st_dev);
    uint64_t spill = same ? s->disk_need : 0;
    s->output_need = need;
    if (need + spill <= disk.free_bytes)
        return 0;
    return ps_error_full(err, PS_ENOFIT, out, "output",
                         "free space there, lower --save-total-limit, or put --nvme-path on "
                         "another disk",
                         "%.1f GiB are free, but the result and the checkpoints that are kept take "
                         "%.1f GiB, and what is spilled and imported there %.1f GiB",
                         (double)disk.free_bytes / GIB, (double)need / GIB, (double)spill / GIB);
}

uint64_t ps__commit_bytes(const struct ps_session *s)
{
    uint32_t count;
    uint64_t bytes = 0;
    const struct ps_store_extent *e = ps_trainer_store_extents(s->trainer, &count);
    for (uint32_t i = 0; i < count; i++)
        bytes += e[i].bytes;
    return bytes;
}

double ps__auto_interval_s(const struct ps_session *s, double took_s)
{
    double limit = (double)s->opt->nvme_write_limit;
    double least = fmax(AUTO_INTERVAL_S, took_s / AUTO_SHARE);
    return limit > 0 ? fmax(least, (double)ps__commit_bytes(s) * DAY_S / limit) : least;
}

void ps__commit_interval(const struct ps_session *s, uint64_t *steps, double *seconds)
{
    const char *text = s->opt->commit_interval;
    char *end;
    *steps = 0;
    *seconds = 0;
    if (!text || strcmp(text, "auto") == 0)
        return;
    unsigned long long n = strtoull(text, &end, 10);
    if (*end == 's')
        *seconds = (double)n;
    else
        *steps = n;
}
