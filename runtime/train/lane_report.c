/* What the lanes did: see lane_report.h. */
#include "runtime/train/lane_report.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct text {
    char *buf;
    size_t size, len;
};

static void PS_PRINTF(2, 3) add(struct text *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(t->buf + t->len, t->size - t->len, fmt, ap);
    va_end(ap);
    assert(n >= 0);
    size_t room = t->size - t->len - 1;
    t->len += (size_t)n < room ? (size_t)n : room;
}

/* Seconds from integers: the same in every locale. */
static void add_seconds(struct text *t, const char *key, uint64_t ns)
{
    uint64_t us = ns / 1000;
    add(t, "\"%s\":%" PRIu64 ".%06" PRIu64, key, us / 1000000, us % 1000000);
}

const char *ps_lane_report_json(const struct ps_lane_stats stats[PS_LANE_COUNT],
                                char buf[PS_LANE_JSON_BYTES])
{
    struct text t = {buf, PS_LANE_JSON_BYTES, 0};
    add(&t, "\"lanes\":{");
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        const struct ps_lane_stats *s = &stats[l];
        if (s->tasks == 0 && l != PS_LANE_COMPUTE)
            continue;
        add(&t, "%s\"%s\":{", l ? "," : "", ps_lane_name((enum ps_lane)l));
        add_seconds(&t, "busy_s", s->busy_ns);
        add(&t, ",\"stall_on\":{");
        bool first = true;
        for (int on = 0; on < PS_LANE_COUNT; on++) {
            if (s->stall_ns[on] == 0)
                continue;
            if (!first)
                add(&t, ",");
            add_seconds(&t, ps_lane_name((enum ps_lane)on), s->stall_ns[on]);
            first = false;
        }
        add(&t, "}}");
    }
    add(&t, "}");
    assert(t.len + 1 < t.size); /* nothing was cut off: the largest numbers fit */
    return buf;
}

void ps_lane_stats_add(struct ps_lane_stats total[PS_LANE_COUNT],
                       const struct ps_lane_stats part[PS_LANE_COUNT])
{
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        total[l].busy_ns += part[l].busy_ns;
        total[l].bytes += part[l].bytes;
        total[l].tasks += part[l].tasks;
        for (int on = 0; on < PS_LANE_COUNT; on++)
            total[l].stall_ns[on] += part[l].stall_ns[on];
    }
}

double ps_lane_stall_s(const struct ps_lane_stats *lane)
{
    double s = 0;
    for (int on = 0; on < PS_LANE_COUNT; on++)
        s += 1e-9 * (double)lane->stall_ns[on];
    return s;
}

enum ps_lane ps_lane_bottleneck(const struct ps_lane_stats stats[PS_LANE_COUNT])
{
    int most = 0;
    for (int l = 1; l < PS_LANE_COUNT; l++)
        if (stats[l].busy_ns > stats[most].busy_ns)
            most = l;
    return (enum ps_lane)most;
}

static const char *bytes_text(char *buf, size_t size, double bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    for (; bytes >= 1024 && u < 4; u++)
        bytes /= 1024;
    PS_IGNORE(snprintf(buf, size, u ? "%.2f %s" : "%.0f %s", bytes, unit[u]) < 0, "fits");
    return buf;
}

static void add_step(struct text *t, const struct ps_lane_report *r)
{
    double step = r->seconds / (double)r->steps;
    add(t, "step      %.3g s measured over %" PRIu64 " step%s", step, r->steps,
        r->steps == 1 ? "" : "s");
    if (r->predicted_step_s > 0)
        add(t, ", %.3g s predicted (measured is %+.1f%%)", r->predicted_step_s,
            100 * (step / r->predicted_step_s - 1));
    add(t, "\n");
}

static void add_lane(struct text *t, const struct ps_lane_report *r, int l)
{
    const struct ps_lane_stats *s = &r->stats[l];
    char volume[32];
    double busy = 1e-9 * (double)s->busy_ns;
    add(t, "  %-12s busy %9.4g s/step %5.1f%%", ps_lane_name((enum ps_lane)l),
        busy / (double)r->steps, r->seconds > 0 ? 100 * busy / r->seconds : 0);
    if (r->predicted_busy_s)
        add(t, "  predicted %9.4g s", r->predicted_busy_s[l]);
    if (s->bytes) {
        add(t, "  %s/step", bytes_text(volume, sizeof volume, (double)s->bytes / (double)r->steps));
        if (busy > 0)
            add(t, " at %s/s", bytes_text(volume, sizeof volume, (double)s->bytes / busy));
    }
    add(t, "\n");
}

static void add_stalls(struct text *t, const struct ps_lane_report *r)
{
    const struct ps_lane_stats *c = &r->stats[PS_LANE_COMPUTE];
    double stall = ps_lane_stall_s(c);
    add(t, "stalls    compute waited %.3g s/step", stall / (double)r->steps);
    if (r->seconds > 0)
        add(t, " (%.1f%%)", 100 * stall / r->seconds);
    bool first = true;
    for (int on = 0; on < PS_LANE_COUNT; on++) {
        if (c->stall_ns[on] == 0)
            continue;
        add(t, "%s %.3g s for %s", first ? ":" : ",",
            1e-9 * (double)c->stall_ns[on] / (double)r->steps, ps_lane_name((enum ps_lane)on));
        first = false;
    }
    enum ps_lane most = ps_lane_bottleneck(r->stats);
    double busy = 1e-9 * (double)r->stats[most].busy_ns;
    add(t, "\nbottleneck %s", ps_lane_name(most));
    if (r->seconds > 0)
        add(t, ", busy %.1f%% of the time", 100 * busy / r->seconds);
    add(t, "\n");
}

static void add_traffic(struct text *t, const struct ps_lane_report *r)
{
    uint64_t any = r->disk_read_bytes | r->disk_write_bytes | r->predicted_read_bytes |
                   r->predicted_write_bytes;
    if (!any)
        return;
    char volume[32];
    double steps = (double)r->steps;
    add(t, "disk      read %s/step",
        bytes_text(volume, sizeof volume, (double)r->disk_read_bytes / steps));
    if (r->predicted_read_bytes)
        add(t, " (%s predicted)",
            bytes_text(volume, sizeof volume, (double)r->predicted_read_bytes));
    add(t, ", written %s/step",
        bytes_text(volume, sizeof volume, (double)r->disk_write_bytes / steps));
    if (r->predicted_write_bytes)
        add(t, " (%s predicted)",
            bytes_text(volume, sizeof volume, (double)r->predicted_write_bytes));
    add(t, "\n");
}

const char *ps_lane_report_text(const struct ps_lane_report *r, char buf[PS_LANE_TEXT_BYTES])
{
    struct text t = {buf, PS_LANE_TEXT_BYTES, 0};
    buf[0] = '\0';
    if (r->steps == 0)
        return buf;
    add_step(&t, r);
    for (int l = 0; l < PS_LANE_COUNT; l++)
        if (r->stats[l].tasks > 0)
            add_lane(&t, r, l);
    add_stalls(&t, r);
    add_traffic(&t, r);
    return buf;
}
