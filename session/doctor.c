/* Looking at the machine: see doctor.h. */
#include "session/doctor.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "offload/profile.h"
#include "runtime/base/isa.h"
#include "runtime/base/json.h"
#include "session/doctor_internal.h"
#include "session/host_machine.h"

#define STALE_DAYS 180

struct ps_doctor_check *ps__doctor_add(struct ps_doctor_report *r, const char *name,
                                       enum ps_doctor_state state, const char *found, ...)
{
    if (r->count < PS_DOCTOR_CHECK_MAX)
        r->count++;
    struct ps_doctor_check *c = &r->check[r->count - 1];
    c->name = name;
    c->state = state;
    c->advice[0] = '\0';
    va_list args;
    va_start(args, found);
    PS_IGNORE(vsnprintf(c->found, sizeof c->found, found, args) < 0, "cut if need be");
    va_end(args);
    return c;
}

void ps__doctor_advise(struct ps_doctor_check *c, const char *advice, ...)
{
    va_list args;
    va_start(args, advice);
    PS_IGNORE(vsnprintf(c->advice, sizeof c->advice, advice, args) < 0, "cut if need be");
    va_end(args);
}

const char *ps__doctor_bytes(char *buf, size_t size, uint64_t bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t u = 0;
    for (; v >= 1024 && u + 1 < sizeof unit / sizeof unit[0]; u++)
        v /= 1024;
    PS_IGNORE(snprintf(buf, size, u && v < 100 ? "%.1f %s" : "%.0f %s", v, unit[u]) < 0, "fits");
    return buf;
}

bool ps__doctor_line(const char *path, char *buf, size_t size)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool got = fgets(buf, (int)size, f) != NULL;
    fclose(f);
    if (got)
        buf[strcspn(buf, "\n")] = '\0';
    return got;
}

static void check_cpu(struct ps_doctor_report *r)
{
    char machine[256];
    ps_host_machine(machine, sizeof machine);
    bool slow = ps_isa_detect() == PS_ISA_PORTABLE;
    struct ps_doctor_check *c =
        ps__doctor_add(r, "cpu", slow ? PS_DOCTOR_WARN : PS_DOCTOR_OK, "%s", machine);
    if (slow)
        ps__doctor_advise(c, "this processor has no AVX2 (or its system hides it): expect a tenth "
                             "of the speed");
}

static void check_profile(struct ps_doctor_report *r, const char *given)
{
    static const char name[] = "hardware_profile";
    static const char measure[] =
        "run `penstock bench --nvme-path DIR`: until then plans use careful guesses";
    char path[PATH_MAX];
    struct ps_error err = {0};
    if (given ? snprintf(path, sizeof path, "%s", given) < 0
              : ps_host_profile_path(path, sizeof path, &err) != 0) {
        ps__doctor_advise(ps__doctor_add(r, name, PS_DOCTOR_WARN, "none: %s", err.message),
                          "set HOME, or pass the file with --hardware");
        return;
    }
    struct stat st;
    if (stat(path, &st) != 0) {
        ps__doctor_advise(ps__doctor_add(r, name, PS_DOCTOR_WARN, "none at %s", path), "%s",
                          measure);
        return;
    }
    struct ps_profile *p = malloc(sizeof *p);
    char machine[sizeof p->machine];
    int ret = p ? ps_profile_load(p, path, &err) : ps_error_set(&err, -ENOMEM, "out of memory");
    double days = difftime(time(NULL), st.st_mtime) / 86400;
    if (ret)
        ps__doctor_advise(
            ps__doctor_add(r, name, PS_DOCTOR_WARN, "%s cannot be used: %s", path, err.message),
            "run `penstock bench` to write it anew");
    else if (strcmp(p->machine, ps_host_machine(machine, sizeof machine)) != 0)
        ps__doctor_advise(ps__doctor_add(r, name, PS_DOCTOR_WARN, "%s is of another machine: %s",
                                         path, p->machine),
                          "run `penstock bench` on this one");
    else if (days > STALE_DAYS)
        ps__doctor_advise(
            ps__doctor_add(r, name, PS_DOCTOR_WARN, "%s is %.0f days old", path, days),
            "run `penstock bench` again");
    else
        ps__doctor_add(r, name, PS_DOCTOR_OK, "%s", path);
    free(p);
}

int ps_doctor(struct ps_doctor_report *out, const struct ps_doctor_options *opt,
              struct ps_error *err)
{
    memset(out, 0, sizeof *out);
    if (opt->path_count > PS_DOCTOR_PATH_MAX)
        return ps_error_full(err, PS_EUSAGE, NULL, "nvme-path", NULL,
                             "at most %d directories can be examined", PS_DOCTOR_PATH_MAX);
    check_cpu(out);
    ps__doctor_gpu(out);
    ps__doctor_memory(out);
    ps__doctor_uring(out);
    for (size_t i = 0; i < opt->path_count; i++)
        ps__doctor_path(out, opt->paths[i], true);
    if (opt->path_count == 0)
        ps__doctor_path(out, ".", false);
    check_profile(out, opt->hardware);
    out->ok = true;
    for (size_t i = 0; i < out->count; i++)
        out->ok = out->ok && out->check[i].state != PS_DOCTOR_BAD;
    return 0;
}

/* ---- printing ------------------------------------------------------------------------------- */

static void print_text(FILE *to, const struct ps_doctor_report *r)
{
    static const char *const mark[] = {"ok  ", "warn", "BAD "};
    size_t count[3] = {0};
    for (size_t i = 0; i < r->count; i++) {
        const struct ps_doctor_check *c = &r->check[i];
        fprintf(to, "%s  %-17s %s\n", mark[c->state], c->name, c->found);
        if (c->advice[0])
            fprintf(to, "%25s%s\n", "", c->advice);
        count[c->state]++;
    }
    if (count[PS_DOCTOR_BAD] > 0)
        fprintf(to, "\n%zu of %zu prevent running\n", count[PS_DOCTOR_BAD], r->count);
    else if (count[PS_DOCTOR_WARN] > 0)
        fprintf(to, "\nPenstock runs here; %zu of %zu could be better\n", count[PS_DOCTOR_WARN],
                r->count);
    else
        fprintf(to, "\nall is well\n");
}

static json_t *to_json(const struct ps_doctor_report *r)
{
    json_t *checks = json_array();
    for (size_t i = 0; checks && i < r->count; i++) {
        const struct ps_doctor_check *c = &r->check[i];
        /* a path may be no UTF-8: then what was found is left out */
        json_t *found = json_string(c->found);
        if (json_array_append_new(checks, json_pack("{s:s,s:b,s:o,s:s}", "name", c->name, "ok",
                                                    (int)(c->state == PS_DOCTOR_OK), "found",
                                                    found ? found : json_string("(not UTF-8)"),
                                                    "advice", c->advice))) {
            json_decref(checks);
            return NULL;
        }
    }
    return checks ? json_pack("{s:b,s:o}", "ok", (int)r->ok, "checks", checks) : NULL;
}

int ps_doctor_print(const struct ps_doctor_report *r, bool json, char **text, struct ps_error *err)
{
    *text = NULL;
    if (json) {
        json_t *o = to_json(r);
        *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
        json_decref(o);
        return *text ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    }
    size_t size;
    FILE *to = open_memstream(text, &size);
    if (!to)
        return ps_error_set(err, -ENOMEM, "out of memory");
    print_text(to, r);
    if (fclose(to)) {
        free(*text);
        *text = NULL;
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}
