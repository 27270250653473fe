/* The io_uring engine.
 *
 * Design. One ring of `depth` entries, so that neither the submission nor the completion queue can
 * overflow; no SQPOLL and no IOPOLL (they gained nothing where measured, or are refused). Files are
 * registered in a sparse table, the arena in pieces of at most 1 GiB (the kernel's limit for one
 * buffer); either is done without, and said so, when the kernel or RLIMIT_MEMLOCK does not allow
 * it. io_uring_enter may refuse to take what is queued (EAGAIN, EBUSY): the entries stay in the
 * queue and every kick and reap offers them again. */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

#include "offload/storage_internal.h"

#define PIECE_BYTES ((uint64_t)1 << 30)
enum { PIECES_MAX = 1024, INTERRUPTED_MAX = 64 };

struct uring_engine {
    struct ps__engine e;
    struct io_uring ring;
    struct ps_log log;
    int *fd; /* file_max */
    uint32_t file_max;
    bool files_registered;
    const char *arena; /* registered memory; NULL: none */
    uint64_t arena_bytes;
    uint32_t in_flight; /* issued and not reaped */
};

static struct uring_engine *uring_of(struct ps__engine *e)
{
    return (struct uring_engine *)(void *)e;
}

/* Index of the registered piece that holds all of the request, or -1. */
static int piece_of(const struct uring_engine *u, const struct ps__io *io)
{
    if (!u->arena)
        return -1;
    uint64_t at = (uint64_t)((uintptr_t)io->memory - (uintptr_t)u->arena);
    if ((uintptr_t)io->memory < (uintptr_t)u->arena || at >= u->arena_bytes ||
        io->bytes > u->arena_bytes - at)
        return -1;
    uint64_t first = at / PIECE_BYTES, last = (at + io->bytes - 1) / PIECE_BYTES;
    return first == last ? (int)first : -1;
}

static bool uring_issue(struct ps__engine *e, const struct ps__io *io)
{
    struct uring_engine *u = uring_of(e);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe)
        return false;
    int fd = u->files_registered ? (int)io->file : u->fd[io->file];
    int piece = io->kind == PS__IO_FLUSH ? -1 : piece_of(u, io);
    if (io->kind == PS__IO_FLUSH)
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    else if (io->kind == PS__IO_WRITE && piece >= 0)
        io_uring_prep_write_fixed(sqe, fd, io->memory, io->bytes, io->offset, piece);
    else if (io->kind == PS__IO_WRITE)
        io_uring_prep_write(sqe, fd, io->memory, io->bytes, io->offset);
    else if (piece >= 0)
        io_uring_prep_read_fixed(sqe, fd, io->memory, io->bytes, io->offset, piece);
    else
        io_uring_prep_read(sqe, fd, io->memory, io->bytes, io->offset);
    if (u->files_registered)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, io->slot);
    u->in_flight++;
    return true;
}

static int uring_kick(struct ps__engine *e)
{
    struct uring_engine *u = uring_of(e);
    for (int interrupted = 0; io_uring_sq_ready(&u->ring) > 0;) {
        int rc = io_uring_submit(&u->ring);
        if (rc == -EINTR && interrupted++ < INTERRUPTED_MAX)
            continue;
        if (rc == -EINTR)
            return 0;
        if (rc == -EAGAIN || rc == -EBUSY || rc == 0)
            return 0; /* they stay in the queue; offered again after a completion */
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Wait for one completion. 0, or -EAGAIN for none in time, or a fatal error. */
static int uring_wait(struct uring_engine *u, double timeout_s)
{
    struct io_uring_cqe *cqe = NULL;
    if (io_uring_sq_ready(&u->ring) > 0 && timeout_s > 1e-3)
        timeout_s = 1e-3; /* the kernel was busy: ask again soon */
    struct __kernel_timespec ts = {.tv_sec = (long long)timeout_s};
    ts.tv_nsec = (long long)((timeout_s - (double)ts.tv_sec) * 1e9);
    int rc = io_uring_wait_cqe_timeout(&u->ring, &cqe, &ts);
    if (rc == -EAGAIN || rc == -EBUSY || rc == -EINTR)
        ps__sleep_s(timeout_s < 1e-3 ? timeout_s
                                     : 1e-3); /* the kernel refuses for now: no spinning */
    return rc == -ETIME || rc == -EINTR || rc == -EBUSY ? -EAGAIN : rc;
}

static int uring_reap(struct ps__engine *e, struct ps__io_done *out, uint32_t max, double timeout_s)
{
    struct uring_engine *u = uring_of(e);
    uint32_t n = 0;
    int rc = uring_kick(e);
    while (rc == 0 && n < max) {
        struct io_uring_cqe *cqe = NULL;
        rc = io_uring_peek_cqe(&u->ring, &cqe);
        if (rc == 0 && cqe) {
            out[n++] = (struct ps__io_done){(uint32_t)io_uring_cqe_get_data64(cqe), cqe->res};
            io_uring_cqe_seen(&u->ring, cqe);
            u->in_flight--;
            continue;
        }
        if (rc != -EAGAIN && rc != -EINTR && rc != -EBUSY)
            break;
        rc = 0;
        if (n > 0 || timeout_s <= 0)
            break;
        rc = uring_wait(u, timeout_s);
        timeout_s = 0;
        if (rc == -EAGAIN)
            rc = 0;
    }
    return n > 0 || rc == 0 ? (int)n : rc;
}

/* After a timeout only: ask the kernel to cancel, give it a moment. The ring's end cancels the
 * rest; the kernel keeps the pages of what still runs. */
static void uring_abandon(struct uring_engine *u)
{
    double until = ps__now_s() + 0.5;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (sqe) {
        io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
        io_uring_sqe_set_data64(sqe, UINT64_MAX);
        u->in_flight++;
    }
    struct ps__io_done done;
    while (u->in_flight > 0 && ps__now_s() < until) {
        if (uring_reap(&u->e, &done, 1, 0.05) < 0)
            break;
    }
}

static void uring_destroy(struct ps__engine *e)
{
    struct uring_engine *u = uring_of(e);
    if (u->in_flight > 0)
        uring_abandon(u);
    io_uring_queue_exit(&u->ring);
    free(u->fd);
    free(u);
}

static int uring_add_file(struct ps__engine *e, uint32_t idx, const struct ps__file *f,
                          struct ps_error *err)
{
    struct uring_engine *u = uring_of(e);
    u->fd[idx] = f->fd;
    if (!u->files_registered)
        return 0;
    int fd = f->fd;
    int rc = io_uring_register_files_update(&u->ring, idx, &fd, 1);
    if (rc == 1)
        return 0;
    if (idx == 0) { /* nothing uses the table yet: do without */
        ps_log(&u->log, PS_LOG_INFO, "io_uring: files are not registered: %s",
               ps_status_text(rc < 0 ? rc : -EINVAL));
        u->files_registered = false;
        return 0;
    }
    return ps_error_full(err, rc < 0 ? rc : -EINVAL, f->path, NULL, NULL,
                         "io_uring: the file cannot be registered: %s",
                         ps_status_text(rc < 0 ? rc : -EINVAL));
}

static const struct ps__engine_ops uring_ops = {
    .name = "io_uring",
    .opens_files = true,
    .direct = true,
    .add_file = uring_add_file,
    .issue = uring_issue,
    .kick = uring_kick,
    .reap = uring_reap,
    .destroy = uring_destroy,
};

static void register_files(struct uring_engine *u)
{
    int rc = io_uring_register_files_sparse(&u->ring, u->file_max);
    if (rc == -EINVAL) { /* before Linux 5.19: a table of -1 */
        for (uint32_t i = 0; i < u->file_max; i++)
            u->fd[i] = -1;
        rc = io_uring_register_files(&u->ring, u->fd, u->file_max);
    }
    u->files_registered = rc == 0;
    if (rc != 0)
        ps_log(&u->log, PS_LOG_INFO, "io_uring: files are not registered: %s", ps_status_text(rc));
}

static void register_arena(struct uring_engine *u, void *arena, uint64_t bytes)
{
    uint64_t pieces = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    struct iovec *piece = pieces <= PIECES_MAX ? calloc((size_t)pieces, sizeof *piece) : NULL;
    if (!piece) {
        ps_log(&u->log, PS_LOG_WARN, "io_uring: buffers are not registered: too many pieces");
        return;
    }
    for (uint64_t i = 0; i < pieces; i++) {
        uint64_t left = bytes - i * PIECE_BYTES;
        piece[i].iov_base = (char *)arena + i * PIECE_BYTES;
        piece[i].iov_len = (size_t)(left < PIECE_BYTES ? left : PIECE_BYTES);
    }
    int rc = io_uring_register_buffers(&u->ring, piece, (unsigned)pieces);
    free(piece);
    if (rc == 0) {
        u->arena = arena;
        u->arena_bytes = bytes;
        return;
    }
    ps_log(&u->log, PS_LOG_WARN,
           "io_uring: buffers are not registered (%s%s): transfers work without, at some cost in "
           "processor time",
           ps_status_text(rc), rc == -ENOMEM ? "; RLIMIT_MEMLOCK, see ulimit -l" : "");
}

/* The ring, smaller if memory is short. */
static int make_ring(struct uring_engine *u, uint32_t depth)
{
    struct io_uring_params p;
    int rc;
    do {
        memset(&p, 0, sizeof p);
        rc = io_uring_queue_init_params(depth, &u->ring, &p);
    } while (rc == -EINTR);
    if (rc < 0)
        return rc;
    if (!(p.features & IORING_FEAT_NODROP) || !(p.features & IORING_FEAT_EXT_ARG)) {
        io_uring_queue_exit(&u->ring);
        return -ENOSYS; /* Linux before 5.11: results could be lost, waits could not end */
    }
    PS_IGNORE(io_uring_ring_dontfork(&u->ring) < 0, "a child that never touches the ring is safe");
    return 0;
}

int ps__engine_uring(struct ps__engine **out, const struct ps_storage_options *opt,
                     struct ps_error *err)
{
    struct uring_engine *u = calloc(1, sizeof *u);
    if (!u || !(u->fd = calloc(opt->file_max, sizeof *u->fd))) {
        free(u);
        return ps_error_set(err, -ENOMEM, "storage: out of memory");
    }
    u->e.ops = &uring_ops;
    u->file_max = opt->file_max;
    if (opt->log)
        u->log = *opt->log;
    int rc = make_ring(u, opt->depth);
    if (rc < 0) {
        free(u->fd);
        free(u);
        return ps_error_full(
            err, rc, NULL, NULL,
            "use the back end threads, or allow io_uring (sysctl "
            "kernel.io_uring_disabled, the container's seccomp profile, ulimit -l)",
            "io_uring cannot be used: %s", ps_status_text(rc));
    }
    register_files(u);
    if (opt->arena && opt->arena_bytes > 0)
        register_arena(u, opt->arena, opt->arena_bytes);
    *out = &u->e;
    return 0;
}
