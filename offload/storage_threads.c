/* The thread engine: pread, pwrite and fdatasync on a small pool, for kernels that refuse io_uring.
 *
 * Design. A ring of jobs under one mutex: requests are 1 to 4 MiB, so that the lock costs nothing
 * beside them. Threads block all signals: those of the program are for its own threads, and SIGXFSZ
 * of a write past RLIMIT_FSIZE stays pending here while pwrite returns EFBIG.
 *
 * A thread that hangs in the kernel cannot be stopped. When the engine is destroyed while one does
 * (only after the watchdog has given up), the engine's memory and its threads are left behind. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "offload/storage_internal.h"

enum { THREADS_MAX = 8 };

struct thread_engine {
    struct ps__engine e;
    pthread_mutex_t mutex;
    pthread_cond_t has_job;    /* a job was queued, or stop */
    pthread_cond_t has_result; /* a job is done, or a thread has ended */
    uint32_t depth;
    pthread_t thread[THREADS_MAX];
    uint32_t thread_count; /* constant after init */

    /* All below guarded by mutex. */
    int *fd;            /* file_max */
    struct ps__io *job; /* ring of depth */
    uint32_t job_first, job_count;
    struct ps__io_done *done; /* depth */
    uint32_t done_count;
    uint32_t running; /* threads that have not ended */
    bool stop;
};

static struct thread_engine *threads_of(struct ps__engine *e)
{
    return (struct thread_engine *)(void *)e;
}

static int32_t perform(int fd, const struct ps__io *io)
{
    ssize_t n;
    do {
        if (io->kind == PS__IO_READ)
            n = pread(fd, io->memory, io->bytes, (off_t)io->offset);
        else if (io->kind == PS__IO_WRITE)
            n = pwrite(fd, io->memory, io->bytes, (off_t)io->offset);
        else
            n = fdatasync(fd);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (int32_t)n;
}

static void *worker(void *arg)
{
    struct thread_engine *t = arg;
    pthread_mutex_lock(&t->mutex);
    for (;;) {
        while (t->job_count == 0 && !t->stop)
            pthread_cond_wait(&t->has_job, &t->mutex);
        if (t->stop)
            break;
        struct ps__io io = t->job[t->job_first];
        int fd = t->fd[io.file];
        t->job_first = (t->job_first + 1) % t->depth;
        t->job_count--;
        pthread_mutex_unlock(&t->mutex);
        int32_t res = perform(fd, &io);
        pthread_mutex_lock(&t->mutex);
        t->done[t->done_count++] = (struct ps__io_done){io.slot, res};
        pthread_cond_signal(&t->has_result);
    }
    t->running--;
    pthread_cond_signal(&t->has_result);
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

static int threads_add_file(struct ps__engine *e, uint32_t idx, const struct ps__file *f,
                            struct ps_error *err)
{
    struct thread_engine *t = threads_of(e);
    (void)err;
    pthread_mutex_lock(&t->mutex);
    t->fd[idx] = f->fd;
    pthread_mutex_unlock(&t->mutex);
    return 0;
}

static bool threads_issue(struct ps__engine *e, const struct ps__io *io)
{
    struct thread_engine *t = threads_of(e);
    pthread_mutex_lock(&t->mutex);
    bool room = t->job_count < t->depth;
    if (room) {
        t->job[(t->job_first + t->job_count) % t->depth] = *io;
        t->job_count++;
        pthread_cond_signal(&t->has_job);
    }
    pthread_mutex_unlock(&t->mutex);
    return room;
}

static int threads_kick(struct ps__engine *e)
{
    (void)e;
    return 0;
}

/* Wait for has_result until `deadline` (CLOCK_MONOTONIC, ps__now_s); false when it has passed. */
static bool wait_result(struct thread_engine *t, double deadline)
{
    struct timespec at = {.tv_sec = (time_t)deadline};
    at.tv_nsec = (long)((deadline - (double)at.tv_sec) * 1e9);
    return pthread_cond_timedwait(&t->has_result, &t->mutex, &at) != ETIMEDOUT;
}

static int threads_reap(struct ps__engine *e, struct ps__io_done *out, uint32_t max,
                        double timeout_s)
{
    struct thread_engine *t = threads_of(e);
    double deadline = ps__now_s() + timeout_s;
    pthread_mutex_lock(&t->mutex);
    while (t->done_count == 0 && timeout_s > 0) {
        if (!wait_result(t, deadline))
            break;
    }
    uint32_t n = t->done_count < max ? t->done_count : max;
    memcpy(out, t->done, n * sizeof *out);
    t->done_count -= n;
    memmove(t->done, t->done + n, t->done_count * sizeof *t->done);
    pthread_mutex_unlock(&t->mutex);
    return (int)n;
}

static void threads_free(struct thread_engine *t)
{
    pthread_cond_destroy(&t->has_job);
    pthread_cond_destroy(&t->has_result);
    pthread_mutex_destroy(&t->mutex);
    free(t->fd);
    free(t->job);
    free(t->done);
    free(t);
}

static void threads_destroy(struct ps__engine *e)
{
    struct thread_engine *t = threads_of(e);
    double deadline = ps__now_s() + 1.0;
    pthread_mutex_lock(&t->mutex);
    t->stop = true;
    pthread_cond_broadcast(&t->has_job);
    while (t->running > 0 && wait_result(t, deadline))
        ;
    bool stuck = t->running > 0;
    pthread_mutex_unlock(&t->mutex);
    for (uint32_t i = 0; i < t->thread_count; i++) {
        if (stuck)
            pthread_detach(t->thread[i]);
        else
            pthread_join(t->thread[i], NULL);
    }
    if (!stuck)
        threads_free(t);
}

static const struct ps__engine_ops threads_ops = {
    .name = "threads",
    .opens_files = true,
    .direct = true,
    .add_file = threads_add_file,
    .issue = threads_issue,
    .kick = threads_kick,
    .reap = threads_reap,
    .destroy = threads_destroy,
};

static int start_threads(struct thread_engine *t, uint32_t count)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    int rc = 0;
    while (rc == 0 && t->thread_count < count) {
        rc = pthread_create(&t->thread[t->thread_count], NULL, worker, t);
        if (rc == 0) {
            t->thread_count++;
            pthread_mutex_lock(&t->mutex);
            t->running++;
            pthread_mutex_unlock(&t->mutex);
        }
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return t->thread_count > 0 ? 0 : -rc; /* fewer threads serve as well */
}

static int init_sync(struct thread_engine *t)
{
    pthread_condattr_t attr;
    int rc = pthread_condattr_init(&attr);
    if (rc == 0)
        rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    if (rc == 0)
        rc = pthread_cond_init(&t->has_result, &attr);
    if (rc == 0)
        rc = pthread_cond_init(&t->has_job, NULL);
    if (rc == 0)
        rc = pthread_mutex_init(&t->mutex, NULL);
    pthread_condattr_destroy(&attr);
    return -rc;
}

int ps__engine_threads(struct ps__engine **out, const struct ps_storage_options *opt,
                       struct ps_error *err)
{
    struct thread_engine *t = calloc(1, sizeof *t);
    if (!t)
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    t->e.ops = &threads_ops;
    t->depth = opt->depth;
    int rc = init_sync(t);
    if (rc < 0) {
        free(t);
        return ps_error_set(err, rc, "storage: %s", ps_status_text(rc));
    }
    t->fd = calloc(opt->file_max, sizeof *t->fd);
    t->job = calloc(opt->depth, sizeof *t->job);
    t->done = calloc(opt->depth, sizeof *t->done);
    rc = -ENOMEM;
    if (t->fd && t->job && t->done)
        rc = start_threads(t, opt->depth < THREADS_MAX ? opt->depth : THREADS_MAX);
    if (rc < 0) {
        threads_free(t);
        return ps_error_set(err, rc, "storage: cannot start threads: %s", ps_status_text(rc));
    }
    *out = &t->e;
    return 0;
}
