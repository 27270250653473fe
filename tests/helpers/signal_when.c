/* Run a program and signal it when a file has so many lines.
 *
 *   signal_when FILE LINES SIGNAL PROGRAM [ARG ...]     SIGNAL is a number: 2, 9, 15, 10
 *
 * The program starts with default signal handling (a shell's background job would ignore SIGINT).
 * Exits with the program's exit code, or 128 + signal if it died of one; 125 if the program ended
 * before the signal, 124 if the file did not grow, or the program did not end, within 60 s. */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long count_lines(const char *path)
{
    FILE *f = fopen(path, "r");
    if (f == NULL)
        return 0;
    long n = 0;
    for (int c = fgetc(f); c != EOF; c = fgetc(f))
        n += c == '\n';
    fclose(f);
    return n;
}

static void nap(void)
{
    struct timespec ts = {.tv_nsec = 2000000};
    nanosleep(&ts, NULL);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: signal_when FILE LINES SIGNAL PROGRAM [ARG ...]\n");
        return 2;
    }
    long lines = strtol(argv[2], NULL, 10);
    int number = (int)strtol(argv[3], NULL, 10), status = 0;
    pid_t pid = fork();
    if (pid < 0)
        return 2;
    if (pid == 0) {
        signal(SIGINT, SIG_DFL);
        signal(SIGQUIT, SIG_DFL);
        execvp(argv[4], argv + 4);
        perror(argv[4]);
        _exit(127);
    }
    time_t start = time(NULL);
    bool sent = false;
    for (;;) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            break;
        if (!sent && count_lines(argv[1]) >= lines) {
            kill(pid, number);
            sent = true;
        }
        if (time(NULL) - start > 60) {
            fprintf(stderr, "signal_when: time is up, signal %s\n", sent ? "sent" : "not sent");
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return 124;
        }
        nap();
    }
    if (!sent) {
        fprintf(stderr, "signal_when: the program ended first\n");
        return 125;
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
