/* Run a program to which the kernel refuses something, as on other machines and in containers.
 *
 *   without io_uring|huge_pages PROGRAM [ARG ...]
 *
 * io_uring: io_uring_setup fails with EPERM. huge_pages: no transparent huge pages. Exits as the
 * program does, 125 where the kernel cannot be told. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int refuse_io_uring(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv)
{
    int ret = -1;
    if (argc > 2 && strcmp(argv[1], "io_uring") == 0)
        ret = refuse_io_uring();
    else if (argc > 2 && strcmp(argv[1], "huge_pages") == 0)
        ret = prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    else
        fprintf(stderr, "usage: without io_uring|huge_pages PROGRAM [ARG ...]\n");
    if (ret < 0) {
        perror("without");
        return 125;
    }
    execvp(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
