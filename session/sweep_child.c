/* A child process and what it used, measured from outside: see sweep_internal.h.
 *
 * The memory peak is the kernel's count for the process (ru_maxrss). Where a memory control group
 * can be made below this process's own, the child runs in it and the group's peak, page cache
 * included, is read too; where not (version 2 without delegation, no root), that figure stays 0. */
#include "session/sweep_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOT_RUN 127

struct group {
    char dir[700]; /* "" : none */
    int procs;     /* cgroup.procs, open for writing */
    const char *peak;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A group below `root``group` with the file `peak` in it. */
static bool group_make(struct group *g, const char *root, const char *group, const char *peak)
{
    char path[768];
    PS_IGNORE(snprintf(g->dir, sizeof g->dir, "%s%.500s/penstock-sweep-%ld", root,
                       strcmp(group, "/") ? group : "", (long)getpid()) < 0,
              "cut: then mkdir fails");
    if (mkdir(g->dir, 0755) != 0) {
        g->dir[0] = '\0';
        return false;
    }
    g->peak = peak;
    PS_IGNORE(snprintf(path, sizeof path, "%s/%s", g->dir, peak) < 0, "fits");
    bool there = access(path, R_OK) == 0;
    PS_IGNORE(snprintf(path, sizeof path, "%s/cgroup.procs", g->dir) < 0, "fits");
    g->procs = there ? open(path, O_WRONLY | O_CLOEXEC) : -1;
    if (g->procs >= 0)
        return true;
    rmdir(g->dir);
    g->dir[0] = '\0';
    return false;
}

static void group_open(struct group *g)
{
    memset(g, 0, sizeof *g);
    g->procs = -1;
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[560];
    bool made = false;
    while (f && !made && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *group = names ? strchr(names + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        if (!strcmp(names + 1, "memory"))
            made = group_make(g, "/sys/fs/cgroup/memory", group, "memory.max_usage_in_bytes");
        else if (!names[1])
            made = group_make(g, "/sys/fs/cgroup", group, "memory.peak");
    }
    if (f)
        fclose(f);
}

static uint64_t group_close(struct group *g)
{
    if (!g->dir[0])
        return 0;
    char path[768];
    unsigned long long peak = 0;
    PS_IGNORE(snprintf(path, sizeof path, "%s/%s", g->dir, g->peak) < 0, "fits");
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%llu", &peak) != 1)
        peak = 0;
    if (f)
        fclose(f);
    close(g->procs);
    rmdir(g->dir);
    return peak;
}

/* In the child: only calls that are safe between fork and exec. */
static _Noreturn void become(char *const argv[], int out, int error, int procs, pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != parent)
        _exit(NOT_RUN);
    if (procs >= 0 && write(procs, "0", 1) != 1)
        _exit(NOT_RUN);
    if (dup2(out, STDOUT_FILENO) < 0 || dup2(error, STDERR_FILENO) < 0)
        _exit(NOT_RUN);
    execv(argv[0], argv);
    _exit(NOT_RUN);
}

static int open_log(const char *path, struct ps_error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        int code = -errno;
        return ps_error_full(err, code, path, NULL, NULL, "cannot create the file: %s",
                             ps_status_text(code));
    }
    return fd;
}

static int wait_for(pid_t pid, struct ps__child *out, struct ps_error *err)
{
    int status;
    struct rusage usage;
    pid_t got;
    do
        got = wait4(pid, &status, 0, &usage);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return ps_error_set(err, -errno, "cannot wait for a run: %s", strerror(errno));
    out->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    out->peak_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    return 0;
}

int ps__child_run(struct ps__child *out, char *const argv[], const char *out_path,
                  const char *err_path, struct ps_error *err)
{
    memset(out, 0, sizeof *out);
    int error = -1, ret = 0;
    int output = open_log(out_path, err);
    if (output < 0)
        return output;
    error = open_log(err_path, err);
    if (error < 0) {
        close(output);
        return error;
    }
    struct group group;
    group_open(&group);
    double begin = now();
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0)
        become(argv, output, error, group.procs, parent);
    if (pid < 0)
        ret = ps_error_set(err, -errno, "cannot start a run: %s", strerror(errno));
    else
        ret = wait_for(pid, out, err);
    out->wall_s = now() - begin;
    out->peak_group_bytes = group_close(&group);
    close(output);
    close(error);
    if (ret == 0 && out->exit_code == NOT_RUN)
        ret = ps_error_full(err, -ENOEXEC, argv[0], NULL, NULL, "cannot run the program");
    return ret;
}
