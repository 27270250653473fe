/* Run a program and write what the kernel says that it read and wrote on disks.
 *
 *   run_io FILE PROGRAM [ARG ...]     FILE receives /proc/PID/io of the ended program: lines as
 *                                     "read_bytes: 4096"; exits with the program's exit code */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

/* The dead process is kept until it has been waited for, and with it its counters. */
static int copy_counters(pid_t pid, const char *to)
{
    char path[64];
    char text[1024];
    snprintf(path, sizeof path, "/proc/%d/io", (int)pid);
    FILE *in = fopen(path, "r");
    size_t n = in ? fread(text, 1, sizeof text, in) : 0;
    if (in)
        fclose(in);
    FILE *out = n > 0 ? fopen(to, "w") : NULL;
    if (!out)
        return -1;
    size_t written = fwrite(text, 1, n, out);
    return fclose(out) == 0 && written == n ? 0 : -1;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: run_io FILE PROGRAM [ARG ...]\n");
        return 2;
    }
    pid_t pid = fork();
    if (pid < 0)
        return 2;
    if (pid == 0) {
        execvp(argv[2], argv + 2);
        perror(argv[2]);
        _exit(127);
    }
    siginfo_t info;
    int status = 0;
    if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) < 0 || copy_counters(pid, argv[1]) < 0) {
        perror("run_io");
        waitpid(pid, &status, 0);
        return 2;
    }
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
