/* The benchmark: what is measured, and what becomes of it. See bench.h. */
#include "session/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "session/bench_internal.h"
#include "session/host_cores.h"
#include "session/host_machine.h"
#include "session/host_memory.h"

static const char *const part_names[] = {"gemm", "copy", "disk", "cpu-optim", "interference", NULL};

const char *const *ps_bench_part_names(void)
{
    return part_names;
}

unsigned ps_bench_part_find(const char *name)
{
    for (unsigned i = 0; part_names[i]; i++)
        if (!strcmp(name, part_names[i]))
            return 1u << i;
    return strcmp(name, "all") ? 0 : PS_BENCH_ALL;
}

/* Figures to start from: those of an older profile of this machine, else the careful ones. */
static void start_profile(struct ps_bench_report *out)
{
    char machine[sizeof out->profile.machine];
    ps_host_machine(machine, sizeof machine);
    struct ps_profile *p = &out->profile;
    struct ps_error ignored = {0};
    out->kept = ps_profile_load(p, out->output, &ignored) == 0 && !strcmp(p->machine, machine);
    if (!out->kept)
        ps_profile_conservative(p);
    p->version = 1;
    memcpy(p->machine, machine, sizeof p->machine);
    PS_IGNORE(snprintf(p->device, sizeof p->device, "cpu") < 0, "fits");
    p->host_memory = ps_host_memory_total();
    p->device_memory = 0;
    p->copy_h2d = p->copy_d2h = 0;
}

static int choose_output(struct ps_bench_report *out, const char *output, struct ps_error *err)
{
    if (!output)
        return ps_host_profile_path(out->output, sizeof out->output, err);
    int n = snprintf(out->output, sizeof out->output, "%s", output);
    if (n < 0 || (size_t)n >= sizeof out->output)
        return ps_error_full(err, -ENAMETOOLONG, NULL, "output", NULL, "the path is too long");
    return 0;
}

/* Make the directory of the profile, and see that a file can be made there: before a minute of
 * measuring, not after. */
static int try_output(const char *path, struct ps_error *err)
{
    char dir[4096];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    if (n > 0) {
        memcpy(dir, path, n);
        dir[n] = '\0';
        int ret = ps_file_make_dirs(dir, err);
        if (ret)
            return ret;
    }
    char temp[PS_FILE_TEMP_MAX];
    int fd;
    int ret = ps_file_temp_open(path, temp, &fd, err);
    if (ret)
        return ps_error_advice(err, ret, "choose another file with --output");
    ps_file_temp_discard(fd, temp);
    return 0;
}

static int run_parts(struct ps__bench *b, unsigned parts, struct ps_error *err)
{
    int ret = 0;
    if (parts & PS_BENCH_COPY)
        ret = ps__bench_copying(b, err);
    if (ret == 0 && (parts & PS_BENCH_GEMM))
        ret = ps__bench_gemm(b, err);
    if (ret == 0 && (parts & PS_BENCH_CPU_OPTIM))
        ret = ps__bench_optim(b, err);
    if (ret == 0 && (parts & PS_BENCH_DISK))
        ret = ps__bench_disks(b, err);
    if (ret == 0 && (parts & PS_BENCH_INTERFERENCE))
        ret = ps__bench_interference(b, err);
    return ret;
}

static int check_options(const struct ps_bench_options *o, struct ps_error *err)
{
    if (o->path_count > PS_PROFILE_DISK_MAX)
        return ps_error_full(err, PS_EUSAGE, NULL, "nvme-path", NULL,
                             "at most %d directories can be measured", PS_PROFILE_DISK_MAX);
    if (o->quick && !o->output)
        return ps_error_full(err, PS_EUSAGE, NULL, "output", "name a file with --output",
                             "`--quick` measures too roughly for the profile that plans use");
    return 0;
}

int ps_bench_run(struct ps_bench_report *out, const struct ps_bench_options *options,
                 struct ps_error *err)
{
    struct ps_bench_options opt = *options;
    opt.parts = opt.parts ? opt.parts : PS_BENCH_ALL;
    memset(out, 0, sizeof *out);
    int ret = check_options(&opt, err);
    if (ret == 0)
        ret = choose_output(out, opt.output, err);
    if (ret == 0)
        ret = try_output(out->output, err);
    if (ret)
        return ret;
    start_profile(out);
    int64_t free_bytes = ps_host_memory_free();
    struct ps__bench b = {
        .opt = &opt,
        .out = out,
        .isa = ps_isa_detect(),
        .threads = opt.threads > 0 ? opt.threads : ps_host_core_count(),
        .memory_bytes = free_bytes > 0 ? (uint64_t)free_bytes / 3 : (uint64_t)1 << 30,
        .quick = opt.quick,
    };
    out->parts = opt.parts;
    out->profile.threads = b.threads;
    PS_IGNORE(snprintf(out->isa, sizeof out->isa, "%s", ps_isa_name(b.isa)) < 0, "fits");
    double begin = ps__bench_now();
    ret = ps_pool_create(&b.pool, b.threads);
    if (ret == 0)
        ret = ps_pool_create(&b.other, b.threads);
    if (ret)
        ret = ps_error_set(err, ret, "cannot start %d threads: %s", b.threads, ps_status_text(ret));
    if (ret == 0)
        ret = run_parts(&b, opt.parts, err);
    if (b.file_open)
        ps__bench_file_close(&b.file);
    ps_pool_destroy(b.other);
    ps_pool_destroy(b.pool);
    out->seconds = ps__bench_now() - begin;
    return ret ? ret : ps_profile_save(&out->profile, out->output, err);
}
