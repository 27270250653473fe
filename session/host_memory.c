/* Free host memory: see host_memory.h. */
#include "session/host_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/status.h"

/* First number of a file, or -1 ("max" included). */
static int64_t read_number(const char *path)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return -1;
    long long v;
    int got = fscanf(f, "%lld", &v);
    fclose(f);
    return got == 1 && v >= 0 ? (int64_t)v : -1;
}

/* A line "NAME   value kB" or "name value" of a file, times `unit`; -1 if absent. */
static int64_t read_field(const char *path, const char *name, int64_t unit)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return -1;
    char line[256];
    size_t n = strlen(name);
    int64_t out = -1;
    while (out < 0 && fgets(line, sizeof line, f)) {
        if (strncmp(line, name, n))
            continue;
        long long v;
        if (sscanf(line + n, "%lld", &v) == 1 && v >= 0)
            out = (int64_t)v * unit;
    }
    fclose(f);
    return out;
}

/* What a control group and its ancestors leave; page cache that can be dropped counts as free. */
static int64_t group_free(const char *root, const char *group, const char *limit_name,
                          const char *usage_name)
{
    char dir[512];
    int n = snprintf(dir, sizeof dir, "%s%s", root, group);
    if (n < 0 || (size_t)n >= sizeof dir)
        return -1;
    int64_t least = -1;
    for (;;) {
        char path[640];
        PS_IGNORE(snprintf(path, sizeof path, "%s/%s", dir, limit_name) < 0, "fits");
        int64_t limit = read_number(path);
        PS_IGNORE(snprintf(path, sizeof path, "%s/%s", dir, usage_name) < 0, "fits");
        int64_t usage = read_number(path);
        if (limit >= 0 && limit < INT64_MAX / 4 && usage >= 0) {
            PS_IGNORE(snprintf(path, sizeof path, "%s/memory.stat", dir) < 0, "fits");
            int64_t cache = read_field(path, "inactive_file ", 1);
            int64_t left = limit - usage + (cache > 0 ? cache : 0);
            left = left < 0 ? 0 : left > limit ? limit : left;
            least = least < 0 || left < least ? left : least;
        }
        char *slash = strrchr(dir, '/');
        if (!slash || (size_t)(slash - dir) < strlen(root))
            break;
        *slash = '\0';
    }
    return least;
}

/* Lines of /proc/self/cgroup: "0::/path" (version 2), "4:memory:/path" (version 1). */
static int64_t groups_free(void)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f)
        return -1;
    char line[512];
    int64_t least = -1;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *group = names ? strchr(names + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        names++;
        if (!strcmp(group, "/"))
            group = "";
        int64_t left = -1;
        if (!names[0])
            left = group_free("/sys/fs/cgroup", group, "memory.max", "memory.current");
        else if (!strcmp(names, "memory"))
            left = group_free("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes",
                              "memory.usage_in_bytes");
        if (left >= 0 && (least < 0 || left < least))
            least = left;
    }
    fclose(f);
    return least;
}

int64_t ps_host_memory_free(void)
{
    int64_t free_bytes = read_field("/proc/meminfo", "MemAvailable:", 1024);
    int64_t left = groups_free();
    return left >= 0 && (free_bytes < 0 || left < free_bytes) ? left : free_bytes;
}
