/* Run a program and strike at the N-th of its system calls that touch files, counted over all its
 * threads and all its files: kill it there, or let the call fail.
 *
 *   at_call ACTION N SET LOG PROGRAM [ARG ...]
 *
 *   ACTION  kill          SIGKILL before the call is made
 *           eio, enospc, erofs, edquot
 *                         the call is not made and fails so; with a + at the end (enospc+) that
 *                         call and each later one of the set
 *   N       1, 2, ...; 0: none, only counted
 *   SET     what counts:  writes    write, pwrite64, pwritev(2), fallocate, ftruncate
 *                         flushes   fsync, fdatasync
 *                         names     rename, mkdir, unlink, rmdir and their *at, open with O_CREAT
 *                         all       all of these, pread64 and io_uring_enter
 *   LOG     receives a line for each call of the set: "N NAME PATH", the struck ones with a *
 * before it; made before the program starts
 *
 * Standard input, output and errors do not count. Exits as the program does, 137 where it was
 * killed; 125: the kernel does not let us, 126: any other trouble.
 *
 * Design: seccomp's user notifications (Linux 5.5) stop the calling thread and leave the decision
 * to this process. Unlike a tracer's counters, which are one for each thread, the count is one for
 * the process, and only calls of the set cost time. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WRITES = 1, FLUSHES = 2, NAMES = 4, OTHER = 8 };

/* What says which file: the number of the argument, a descriptor or a path. */
static const struct call {
    const char *name;
    long nr;
    int set;
    int fd, path; /* numbers of arguments, -1: none */
} calls[] = {
    {"write", SYS_write, WRITES, 0, -1},
    {"pwrite64", SYS_pwrite64, WRITES, 0, -1},
    {"pwritev", SYS_pwritev, WRITES, 0, -1},
    {"pwritev2", SYS_pwritev2, WRITES, 0, -1},
    {"fallocate", SYS_fallocate, WRITES, 0, -1},
    {"ftruncate", SYS_ftruncate, WRITES, 0, -1},
    {"fsync", SYS_fsync, FLUSHES, 0, -1},
    {"fdatasync", SYS_fdatasync, FLUSHES, 0, -1},
    {"renameat", SYS_renameat, NAMES, -1, 3},
    {"renameat2", SYS_renameat2, NAMES, -1, 3},
    {"mkdirat", SYS_mkdirat, NAMES, -1, 1},
    {"unlinkat", SYS_unlinkat, NAMES, -1, 1},
    {"openat", SYS_openat, NAMES, -1, 1},
#ifdef SYS_rename /* not on machines that have only the *at */
    {"rename", SYS_rename, NAMES, -1, 1},
    {"mkdir", SYS_mkdir, NAMES, -1, 0},
    {"unlink", SYS_unlink, NAMES, -1, 0},
    {"rmdir", SYS_rmdir, NAMES, -1, 0},
#endif
    {"pread64", SYS_pread64, OTHER, 0, -1},
    {"io_uring_enter", SYS_io_uring_enter, OTHER, 0, -1},
};
#define CALLS (sizeof calls / sizeof calls[0])

/* Low halves of the arguments: descriptors and flags are ints. */
#define ARG(i) ((uint32_t)offsetof(struct seccomp_data, args) + 8U * (i))

static int install(int set)
{
    struct sock_filter code[8 * CALLS + 2];
    unsigned short n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                             (uint32_t)offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < CALLS; i++) {
        if (!(calls[i].set & set))
            continue;
        bool open = calls[i].nr == SYS_openat;
        bool fd = calls[i].fd >= 0;
        uint8_t rest = (uint8_t)(fd || open ? 4 : 1);
        code[n++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i].nr, 0, rest);
        if (fd) { /* standard ones pass */
            code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARG(0));
            code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 2, 1, 0);
            code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        } else if (open) {
            code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARG(2));
            code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT, 1, 0);
            code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        }
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = n, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
                        &program);
}

static int send_fd(int socket, int fd)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } u;
    char byte = 0;
    struct iovec v = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u};
    memset(&u, 0, sizeof u);
    u.head.cmsg_level = SOL_SOCKET;
    u.head.cmsg_type = SCM_RIGHTS;
    u.head.cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(&u.head), &fd, sizeof fd);
    return sendmsg(socket, &m, 0) == 1 ? 0 : -1;
}

static int receive_fd(int socket)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } u;
    char byte;
    struct iovec v = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u};
    int fd;
    if (recvmsg(socket, &m, 0) != 1 || m.msg_controllen < CMSG_LEN(sizeof fd))
        return -1;
    memcpy(&fd, CMSG_DATA(&u.head), sizeof fd);
    return fd;
}

struct rule {
    bool kill, onwards;
    int error;
    unsigned long n, count;
    FILE *log;
    pid_t pid;
};

static const struct call *call_of(long nr)
{
    for (size_t i = 0; i < CALLS; i++) {
        if (calls[i].nr == nr)
            return &calls[i];
    }
    return NULL;
}

/* The file that a call is about; "?" where it cannot be told. */
static void path_of(const struct seccomp_notif *q, const struct call *c, char out[4096])
{
    char name[64];
    ssize_t n = -1;
    if (c->fd >= 0) {
        snprintf(name, sizeof name, "/proc/%u/fd/%d", q->pid, (int)q->data.args[c->fd]);
        n = readlink(name, out, 4095);
    } else {
        snprintf(name, sizeof name, "/proc/%u/mem", q->pid);
        int fd = open(name, O_RDONLY | O_CLOEXEC);
        uint64_t at = q->data.args[c->path];
        size_t room = 4096 - at % 4096; /* no page further than the name reaches */
        n = fd < 0 ? -1 : pread(fd, out, room < 4095 ? room : 4095, (off_t)at);
        if (fd >= 0)
            close(fd);
    }
    if (n < 0)
        strcpy(out, "?");
    else
        out[n] = '\0';
}

static void decide(struct rule *r, const struct seccomp_notif *q, struct seccomp_notif_resp *a)
{
    char path[4096];
    const struct call *c = call_of(q->data.nr);
    r->count++;
    bool now = r->n > 0 && (r->onwards ? r->count >= r->n : r->count == r->n);
    path_of(q, c, path);
    fprintf(r->log, "%s%lu %s %s\n", now ? "*" : "", r->count, c->name, path);
    a->id = q->id;
    if (now && r->kill) {
        kill(r->pid, SIGKILL);
        return;
    }
    a->error = now ? -r->error : 0;
    a->flags = now ? 0U : (uint32_t)SECCOMP_USER_NOTIF_FLAG_CONTINUE;
}

static int serve(struct rule *r, int listener)
{
    struct pollfd p = {.fd = listener, .events = POLLIN};
    for (;;) {
        struct seccomp_notif q;
        struct seccomp_notif_resp a;
        if (poll(&p, 1, -1) < 0 && errno != EINTR)
            return -1;
        if (!(p.revents & POLLIN)) {
            if (p.revents & (POLLHUP | POLLERR))
                return 0;
            continue;
        }
        memset(&q, 0, sizeof q);
        memset(&a, 0, sizeof a);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &q) < 0) {
            if (errno == ENOENT || errno == EINTR) /* the thread is gone */
                continue;
            return -1;
        }
        decide(r, &q, &a);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &a) < 0 && errno != ENOENT)
            return -1;
    }
}

static int parse(struct rule *r, int *set, char **argv)
{
    static const struct {
        const char *name;
        int error;
    } action[] = {
        {"kill", 0}, {"eio", EIO}, {"enospc", ENOSPC}, {"erofs", EROFS}, {"edquot", EDQUOT}};
    size_t len = strlen(argv[1]);
    int found = -1;
    r->onwards = len > 0 && argv[1][len - 1] == '+';
    for (int i = 0; i < 5; i++) {
        if (strlen(action[i].name) == len - r->onwards &&
            strncmp(action[i].name, argv[1], len - r->onwards) == 0)
            found = i;
    }
    r->kill = found == 0;
    r->error = found > 0 ? action[found].error : 0;
    char *end;
    r->n = strtoul(argv[2], &end, 10);
    *set = strcmp(argv[3], "writes") == 0    ? WRITES
           : strcmp(argv[3], "flushes") == 0 ? FLUSHES
           : strcmp(argv[3], "names") == 0   ? NAMES
           : strcmp(argv[3], "all") == 0     ? WRITES | FLUSHES | NAMES | OTHER
                                             : 0;
    r->log = fopen(argv[4], "we");
    return found >= 0 && *end == '\0' && *set && r->log ? 0 : -1;
}

int main(int argc, char **argv)
{
    struct rule r = {0};
    int set = 0, pair[2];
    if (argc < 6 || parse(&r, &set, argv) < 0) {
        fprintf(stderr, "usage: at_call kill|eio|enospc|erofs|edquot[+] N writes|flushes|names|all "
                        "LOG PROGRAM [ARG ...]\n");
        return 126;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 || (r.pid = fork()) < 0) {
        perror("at_call");
        return 126;
    }
    if (r.pid == 0) {
        int listener = install(set);
        if (listener < 0 || send_fd(pair[1], listener) < 0)
            _exit(125);
        close(listener);
        execvp(argv[5], argv + 5);
        perror(argv[5]);
        _exit(127);
    }
    close(pair[1]);
    int listener = receive_fd(pair[0]);
    int status = 0;
    bool trouble = listener >= 0 && serve(&r, listener) < 0;
    if (trouble) {
        perror("at_call");
        kill(r.pid, SIGKILL);
    }
    waitpid(r.pid, &status, 0);
    fclose(r.log);
    if (trouble)
        return 126;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
