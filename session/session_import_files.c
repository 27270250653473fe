/* Finding and making the import of a run's model: see session_import.h. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "runtime/base/file.h"
#include "session/session_import_internal.h"

/* A line of progress so often. */
#define PROGRESS_S 10.0

int ps__import_keep_checksums(const struct ps_session *s, struct ps_error *err)
{
    if (!s->import || !s->import->in_use || !s->checksum_path)
        return 0;
    return ps_unit_checksums_save(&s->import->staged, ps_trainer_files(s->trainer),
                                  s->checksum_path, err);
}

bool ps__import_makes_nothing(const struct ps_session *s)
{
    return s->opt->command == PS_CMD_PLAN || s->opt->dry_run;
}

bool ps__import_find_directory(struct ps_session_import *im, const struct ps_options *o)
{
    if (ps_options_list_item(o->nvme_path, 0, im->dir, sizeof im->dir))
        return true;
    return !o->nvme_path && o->output && ps_path_join(im->dir, sizeof im->dir, o->output, "spill");
}

int ps__import_name_table(struct ps_session_import *im, const struct ps_st_set *files)
{
    char name[64];
    uint64_t key = 0;
    for (size_t i = 0; i < ps_st_set_file_count(files); i++) {
        const struct ps_st_file *f = ps_st_set_file(files, i);
        char path[PATH_MAX] = "";
        struct stat st;
        if (fstat(ps_st_fd(f), &st) < 0)
            return -errno;
        if (!realpath(ps_st_path(f), path))
            path[0] = '\0';
        int64_t id[7] = {(int64_t)st.st_dev, (int64_t)st.st_ino, (int64_t)st.st_size,
                         st.st_mtim.tv_sec,  st.st_mtim.tv_nsec, st.st_ctim.tv_sec,
                         st.st_ctim.tv_nsec};
        key = XXH3_64bits_withSeed(path, strlen(path), key);
        key = XXH3_64bits_withSeed(id, sizeof id, key);
    }
    snprintf(name, sizeof name, "penstock-model-%016" PRIx64 ".checksums", key);
    return ps_path_join(im->table, sizeof im->table, im->dir, name) ? 0 : -ENAMETOOLONG;
}

static bool all_known(const struct ps_unit_sources *plan)
{
    for (uint64_t i = 0; i < plan->checksum_count; i++)
        if (plan->checksum[i] == 0)
            return false;
    return true;
}

int ps__import_load_checksums(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    const struct ps_st_set *files = ps_trainer_files(s->trainer);
    char why[256] = "";
    int ret = 0;
    if (s->opt->resume && s->checksum_path && access(s->checksum_path, F_OK) == 0)
        ret = ps_unit_checksums_load(&im->staged, files, s->checksum_path, why, err);
    if (ret == 0 && why[0])
        ps_log(&s->log, PS_LOG_WARN, "the model is not the one that this run began with: %s", why);
    if (ret < 0 || all_known(&im->staged))
        return ret < 0 ? ret : 0;
    ret = ps_unit_checksums_load(&im->staged, files, im->table, why, err);
    return ret < 0 ? ret : 0;
}

/* Some import is there, of this model or another. */
static bool any_import(const char *dir)
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    bool found = false;
    while (d && !found && (e = readdir(d)))
        found = strncmp(e->d_name, "penstock-import-", 16) == 0 && strlen(e->d_name) == 16 + 32;
    if (d)
        closedir(d);
    return found;
}

/* The table only saves reading the model once more. */
static void save_table(const struct ps_session *s)
{
    struct ps_error why = {0};
    const struct ps_session_import *im = s->import;
    if (ps_unit_checksums_save(&im->staged, ps_trainer_files(s->trainer), im->table, &why) < 0)
        ps_log(&s->log, PS_LOG_WARN, "import: %s cannot be written: %s", im->table, why.message);
}

int ps__import_find(struct ps_session *s, bool scan, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    const struct ps_st_set *files = ps_trainer_files(s->trainer);
    char why[256] = "";
    if (im->im || !any_import(im->dir))
        return 0;
    bool room = ps_import_build_bytes(&im->staged, s->thread_count) <= ps__import_memory_left(s);
    if (!all_known(&im->staged) && scan && room && !ps__import_makes_nothing(s)) {
        ps_log(&s->log, PS_LOG_INFO,
               "import: reading the model to compare it with the imports in %s", im->dir);
        int ret = ps_import_scan(&im->staged, files, err);
        if (ret < 0)
            return ret;
        save_table(s);
    }
    if (!all_known(&im->staged))
        return 0;
    int ret = ps_import_open(&im->im, im->dir, &im->staged, files, why, err);
    if (ret == 0 && strstr(why, "there is no import") == NULL)
        ps_log(&s->log, PS_LOG_WARN, "import: %s", why);
    return ret < 0 ? ret : 0;
}

uint64_t ps__import_near_bytes(const struct ps_unit_sources *plan)
{
    uint64_t sum = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++)
        sum += plan->unit[k].near_bytes;
    return sum;
}

uint64_t ps__import_file_bytes(const struct ps_unit_sources *plan)
{
    uint64_t sum = 0;
    for (uint32_t k = 0; k < plan->unit_count; k++)
        sum += plan->unit[k].read_bytes;
    return sum;
}

uint64_t ps__import_memory_left(const struct ps_session *s)
{
    uint64_t used = ps__rss_bytes(s);
    return s->host_budget > used ? s->host_budget - used : 0;
}

struct progress {
    const struct ps_session *s;
    double begin, last;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool tell(void *arg, uint64_t done, uint64_t total)
{
    struct progress *p = arg;
    double t = now();
    if (t - p->last >= PROGRESS_S) {
        p->last = t;
        ps_log(&p->s->log, PS_LOG_INFO, "import: %.0f%% of %.1f GiB",
               100 * (double)done / (double)total, (double)total / 1073741824.0);
    }
    return true;
}

int ps__import_check_room(const struct ps_session *s, struct ps_error *err)
{
    const struct ps_session_import *im = s->import;
    uint64_t disk =
        im->im ? ps_import_bytes(im->im) : ps_import_disk_bytes(&im->staged, im->sample.ratio);
    disk += s->chosen.disk_bytes;
    int64_t budget = s->opt->nvme_mem;
    if (budget >= 0 && disk > (uint64_t)budget)
        return ps_error_full(
            err, PS_ENOFIT, NULL, "nvme-mem", "raise the budget, or use --import never",
            "the import needs %.1f MiB of disk and the budget is %.1f MiB; the "
            "smallest sufficient budget is --nvme-mem %" PRIu64 "MiB",
            (double)disk / 1048576.0, (double)budget / 1048576.0, (disk + 1048575) >> 20);
    uint64_t host = im->im ? 0 : ps_import_build_bytes(&im->staged, s->thread_count);
    if (host > ps__import_memory_left(s))
        return ps_error_full(err, PS_ENOFIT, NULL, "host-mem",
                             "raise the budget, lower --threads, or use --import never",
                             "making an import takes %.0f MiB of memory and %.0f MiB of the "
                             "budget are left",
                             (double)host / 1048576.0,
                             (double)ps__import_memory_left(s) / 1048576.0);
    return 0;
}

int ps__import_make(struct ps_session *s, struct ps_error *err)
{
    struct ps_session_import *im = s->import;
    const struct ps_st_set *files = ps_trainer_files(s->trainer);
    struct progress p = {.s = s, .begin = now(), .last = now()};
    struct ps_import_options o = {.path = im->dir,
                                  .pool = ps_trainer_pool(s->trainer),
                                  .ratio = im->sample.ratio,
                                  .progress = tell,
                                  .arg = &p};
    int ret = ps_file_make_dirs(im->dir, err);
    if (ret == 0)
        ret = ps_import_build(&im->im, &im->staged, ps_trainer_params(s->trainer), files, &o, err);
    if (ret < 0)
        return ret;
    save_table(s);
    ps_log(&s->log, PS_LOG_INFO, "import: made in %.1f s: %s, %.1f MiB", now() - p.begin,
           ps_import_path(im->im), (double)ps_import_bytes(im->im) / 1048576.0);
    return ret;
}
