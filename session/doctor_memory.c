/* Memory: how much, limits of control groups, swap, huge pages, what may be locked. See doctor.h.
 */
#include "session/doctor_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "session/host_machine.h"
#include "session/host_memory.h"

#define MIB ((uint64_t)1 << 20)
#define RAM_LEAST (256 * MIB)      /* below, not even the smallest model trains */
#define MEMLOCK_ENOUGH (256 * MIB) /* buffers in flight on any drive */
#define CAP_IPC_LOCK 14

/* A line "NAME value kB" of /proc/meminfo in bytes; -1 if absent. */
static int64_t meminfo(const char *name)
{
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f)
        return -1;
    char line[128];
    size_t n = strlen(name);
    int64_t out = -1;
    long long v;
    while (out < 0 && fgets(line, sizeof line, f))
        if (!strncmp(line, name, n) && line[n] == ':' && sscanf(line + n + 1, "%lld", &v) == 1)
            out = strstr(line, "kB") ? (int64_t)v * 1024 : (int64_t)v;
    fclose(f);
    return out;
}

static void check_ram(struct ps_doctor_report *r)
{
    char all[24], left[24];
    int64_t free_bytes = ps_host_memory_free();
    bool bad = free_bytes >= 0 && (uint64_t)free_bytes < RAM_LEAST;
    struct ps_doctor_check *c =
        ps__doctor_add(r, "ram", bad ? PS_DOCTOR_BAD : PS_DOCTOR_OK, "%s, %s free for this process",
                       ps__doctor_bytes(all, sizeof all, ps_host_memory_total()),
                       free_bytes < 0 ? "an unknown part"
                                      : ps__doctor_bytes(left, sizeof left, (uint64_t)free_bytes));
    if (bad)
        ps__doctor_advise(c, "end other programs, or raise the limit of the control group");
}

/* ---- control groups ------------------------------------------------------------------------- */

static int64_t read_limit(const char *path)
{
    char line[64];
    char *end;
    if (!ps__doctor_line(path, line, sizeof line))
        return -1;
    errno = 0;
    unsigned long long v = strtoull(line, &end, 10); /* "max" is no number */
    return end == line || errno || v >= (unsigned long long)INT64_MAX / 4 ? -1 : (int64_t)v;
}

/* The least limit of a group and its ancestors; -1: none. */
static int64_t group_limit(const char *root, const char *group, const char *file)
{
    char dir[512], path[640];
    int n = snprintf(dir, sizeof dir, "%s%s", root, strcmp(group, "/") ? group : "");
    if (n < 0 || (size_t)n >= sizeof dir)
        return -1;
    int64_t least = -1;
    for (;;) {
        PS_IGNORE(snprintf(path, sizeof path, "%s/%s", dir, file) < 0, "fits");
        int64_t limit = read_limit(path);
        if (limit >= 0 && (least < 0 || limit < least))
            least = limit;
        char *slash = strrchr(dir, '/');
        if (!slash || (size_t)(slash - dir) < strlen(root))
            return least;
        *slash = '\0';
    }
}

/* Lines of /proc/self/cgroup: "0::/path" (version 2), "4:memory:/path" (version 1). */
static void check_cgroup(struct ps_doctor_report *r)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[512], bytes[24];
    int64_t least = -1;
    int version = 0;
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *group = names ? strchr(names + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        names++;
        int64_t limit = -1;
        if (!names[0])
            limit = group_limit("/sys/fs/cgroup", group, "memory.max");
        else if (!strcmp(names, "memory"))
            limit = group_limit("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes");
        if (limit >= 0 && (least < 0 || limit < least)) {
            least = limit;
            version = names[0] ? 1 : 2;
        }
    }
    if (f)
        fclose(f);
    if (least < 0)
        ps__doctor_add(r, "cgroup", PS_DOCTOR_OK, "no memory limit");
    else
        ps__doctor_add(r, "cgroup", PS_DOCTOR_OK,
                       "memory limit %s (version %d): budgets respect it",
                       ps__doctor_bytes(bytes, sizeof bytes, (uint64_t)least), version);
}

static void check_swap(struct ps_doctor_report *r)
{
    char all[24], used[24];
    int64_t total = meminfo("SwapTotal"), left = meminfo("SwapFree");
    if (total <= 0 || left < 0) {
        ps__doctor_add(r, "swap", PS_DOCTOR_OK, "none");
        return;
    }
    bool busy = total - left > total / 10;
    struct ps_doctor_check *c =
        ps__doctor_add(r, "swap", busy ? PS_DOCTOR_WARN : PS_DOCTOR_OK, "%s, %s used",
                       ps__doctor_bytes(all, sizeof all, (uint64_t)total),
                       ps__doctor_bytes(used, sizeof used, (uint64_t)(total - left)));
    if (busy)
        ps__doctor_advise(c, "memory is short: a run may be swapped out and crawl; end other "
                             "programs or use a smaller --host-mem");
}

/* ---- pages ---------------------------------------------------------------------------------- */

static void check_huge_pages(struct ps_doctor_report *r)
{
    char line[96] = "", mode[32] = "unknown", bytes[24];
    if (ps__doctor_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line)) {
        const char *open = strchr(line, '[');
        if (open)
            PS_IGNORE(snprintf(mode, sizeof mode, "%.*s", (int)strcspn(open + 1, "]"), open + 1) <
                          0,
                      "cut if need be");
    }
    int64_t pages = meminfo("HugePages_Total"), size = meminfo("Hugepagesize");
    bool pool = pages > 0 && size > 0;
    bool ok = pool || !strcmp(mode, "always") || !strcmp(mode, "madvise");
    struct ps_doctor_check *c = ps__doctor_add(
        r, "huge_pages", ok ? PS_DOCTOR_OK : PS_DOCTOR_WARN, "transparent: %s; reserved: %s", mode,
        pool ? ps__doctor_bytes(bytes, sizeof bytes, (uint64_t)pages * (uint64_t)size) : "none");
    if (!ok)
        ps__doctor_advise(c,
                          "disk buffers on small pages cost up to a third of the disk's rate: "
                          "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` as root");
}

/* Has this process the capability in its effective set? */
static bool has_capability(int number)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[128];
    unsigned long long set = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "CapEff: %llx", &set) == 1)
            break;
    if (f)
        fclose(f);
    return set >> number & 1u;
}

static void check_memlock(struct ps_doctor_report *r)
{
    char bytes[24];
    struct rlimit l;
    if (getrlimit(RLIMIT_MEMLOCK, &l) != 0) {
        ps__doctor_add(r, "memlock", PS_DOCTOR_OK, "unknown");
        return;
    }
    if (l.rlim_cur == RLIM_INFINITY) {
        ps__doctor_add(r, "memlock", PS_DOCTOR_OK, "unlimited");
        return;
    }
    PS_IGNORE(ps__doctor_bytes(bytes, sizeof bytes, l.rlim_cur) == NULL, "it returns bytes");
    if (has_capability(CAP_IPC_LOCK)) {
        ps__doctor_add(r, "memlock", PS_DOCTOR_OK, "%s, does not bind this user (CAP_IPC_LOCK)",
                       bytes);
        return;
    }
    bool ok = l.rlim_cur >= MEMLOCK_ENOUGH;
    struct ps_doctor_check *c = ps__doctor_add(
        r, "memlock", ok ? PS_DOCTOR_OK : PS_DOCTOR_WARN,
        ok ? "%s"
           : "%s: "
             "io_uring gets no registered buffers, which costs processor time a request",
        bytes);
    if (!ok)
        ps__doctor_advise(c,
                          "`ulimit -l unlimited`, or a line `%s` in /etc/security/limits.conf, "
                          "or LimitMEMLOCK=infinity in the service",
                          "* - memlock unlimited");
}

void ps__doctor_memory(struct ps_doctor_report *r)
{
    check_ram(r);
    check_cgroup(r);
    check_swap(r);
    check_huge_pages(r);
    check_memlock(r);
}
