/* The tasks that move bytes, and the loading of what is pinned: see trainer.h.
 *
 * A disk task's requests are queued by `start` and waited for by `finish`; both run on the lane's
 * own thread, which alone uses the lane's storage. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "runtime/kernels/rope.h"
#include "runtime/model/weights.h"
#include "runtime/train/trainer_internal.h"

#define CONVERT_PIECE_BYTES ((size_t)1 << 18)
/* Pieces that a boundary may be cut into are no smaller than this. */
#define SPILL_PIECE_MIN ((uint64_t)1 << 20)

/* --- the lanes' storage --- */

static int open_lane(struct ps_trainer *t, enum ps_lane lane, struct ps_error *err)
{
    if (!t->opt.io.open)
        return ps_error_full(err, PS_EUSAGE, NULL, "strategy", "use --strategy resident",
                             "this run has no storage to stream from");
    bool near = !t->opt.device->discrete;
    enum ps_step_buffer first = PS_BUF_BATCH;
    struct ps_storage_options o = {.depth = t->opt.io.depth,
                                   .chunk_bytes = t->opt.io.chunk_bytes,
                                   .arena = near ? t->buffer[first] : t->buffer[PS_BUF_BATCH_HOST],
                                   .arena_bytes =
                                       near ? ps_step_map_tier_bytes(&t->map, PS_TIER_DEVICE)
                                            : ps_step_map_tier_bytes(&t->map, PS_TIER_HOST),
                                   .log = t->opt.log};
    return t->opt.io.open(t->opt.io.arg, &t->storage[lane], &o, err);
}

static bool reads_weights(const struct ps_trainer *t)
{
    for (uint32_t i = 0; i < t->shape.source->unit_count; i++)
        if (t->map.stream_idx[i] >= 0)
            return true;
    return false;
}

static int open_weights(struct ps_trainer *t, struct ps_error *err)
{
    const struct ps_unit_codec *codec = t->codec;
    int ret = open_lane(t, PS_LANE_DISK_WEIGHTS, err);
    struct ps_storage *st = t->storage[PS_LANE_DISK_WEIGHTS];
    if (ret >= 0 && codec)
        ret = st->ops->add_file(st, codec->path, false, NULL, err);
    for (size_t i = 0; ret >= 0 && !codec && i < ps_st_set_file_count(t->files); i++)
        ret = st->ops->add_file(st, ps_st_path(ps_st_set_file(t->files, i)), false, NULL, err);
    if (ret < 0)
        return ret;
    t->unit_seen = calloc(t->source.unit_count + 1, sizeof *t->unit_seen);
    size_t piece = (size_t)ps__page_up(codec ? codec->piece_bytes : CONVERT_PIECE_BYTES);
    t->convert_piece = aligned_alloc(PS_STORAGE_ALIGN, piece);
    if (!t->unit_seen || !t->convert_piece)
        return ps_error_set(err, -ENOMEM, "out of memory");
    t->piece_pinned = t->opt.cuda && t->opt.cuda->pin(t->convert_piece, piece, NULL) == 0;
    if (codec || !t->opt.io.checksum_path || access(t->opt.io.checksum_path, F_OK) != 0)
        return 0;
    char why[256] = "";
    ret = ps_unit_checksums_load(&t->source, t->files, t->opt.io.checksum_path, why, err);
    if (ret == 0 && why[0])
        ps_log(t->opt.log, PS_LOG_WARN, "the model is not the one that this run began with: %s",
               why);
    return ret < 0 ? ret : 0;
}

int ps__trainer_io_open(struct ps_trainer *t, struct ps_error *err)
{
    bool frozen = !ps__trainer_streams(t);
    uint64_t spill = t->map.bytes[PS_BUF_DISK_X] + t->map.bytes[PS_BUF_DISK_GRAD] +
                     t->map.bytes[PS_BUF_DISK_SAVED];
    int ret = frozen && reads_weights(t) ? open_weights(t, err) : 0;
    if (ret >= 0)
        ret = ps__trainer_store_open(t, err);
    if (ret < 0 || spill == 0)
        return ret;
    ret = t->opt.io.spill_create ? t->opt.io.spill_create(t->opt.io.arg, spill, err)
                                 : ps_error_set(err, PS_EUSAGE, "this run has no spill file");
    t->spill_sum =
        calloc(2 * (size_t)t->shape.n_layer * (size_t)t->layout.group, sizeof *t->spill_sum);
    if (ret >= 0 && !t->spill_sum)
        return ps_error_set(err, -ENOMEM, "out of memory");
    static const enum ps_lane lane[] = {PS_LANE_DISK_STATE, PS_LANE_DISK_WRITE};
    uint64_t largest =
        t->map.x_stride > t->map.grad_ring_bytes ? t->map.x_stride : t->map.grad_ring_bytes;
    if (t->map.saved_slot_bytes > largest)
        largest = t->map.saved_slot_bytes;
    t->cut_max = (int)(largest / SPILL_PIECE_MIN) + 2;
    for (int i = 0; ret >= 0 && i < 2; i++) {
        t->cut[lane[i]] = calloc((size_t)t->cut_max, sizeof *t->cut[0]);
        if (!t->cut[lane[i]])
            return ps_error_set(err, -ENOMEM, "out of memory");
        ret = open_lane(t, lane[i], err);
        if (ret >= 0)
            ret = t->opt.io.spill_attach(t->opt.io.arg, t->storage[lane[i]], err);
    }
    return ret < 0 ? ret : 0;
}

void ps__trainer_io_close(struct ps_trainer *t)
{
    for (int l = 0; l < PS_LANE_COUNT; l++)
        if (t->storage[l])
            t->storage[l]->ops->close(t->storage[l]);
    free(t->unit_seen);
    if (t->piece_pinned)
        t->opt.cuda->unpin(t->convert_piece);
    free(t->convert_piece);
    free(t->spill_sum);
    free(t->cut[PS_LANE_DISK_STATE]);
    free(t->cut[PS_LANE_DISK_WRITE]);
}

void ps__trainer_io_bytes(const struct ps_trainer *t, uint64_t *read, uint64_t *written)
{
    *read = 0;
    *written = 0;
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        *read += atomic_load_explicit(&t->moved[l].read, memory_order_relaxed);
        *written += atomic_load_explicit(&t->moved[l].written, memory_order_relaxed);
    }
}

/* What the lane's storage has moved so far, for whoever asks from another thread. Lane thread only.
 */
static void publish_bytes(struct ps_trainer *t, enum ps_lane l)
{
    struct ps_storage *both[] = {t->storage[l], t->store_storage[l]};
    uint64_t read = 0;
    uint64_t written = 0;
    for (int i = 0; i < 2; i++) {
        struct ps_storage_counters c = {0};
        if (both[i])
            both[i]->ops->counters(both[i], &c);
        read += c.read_bytes;
        written += c.write_bytes;
    }
    atomic_store_explicit(&t->moved[l].read, read, memory_order_relaxed);
    atomic_store_explicit(&t->moved[l].written, written, memory_order_relaxed);
}

/* Remember the tickets of a task that has been started; tasks finish in the order of their start.
 */
void ps__trainer_push_tickets(struct ps_trainer *t, enum ps_lane l, struct ps_storage *st,
                              uint64_t first, uint64_t last)
{
    assert(t->in_flight_head[l] - t->in_flight_tail[l] < 4);
    uint32_t at = t->in_flight_head[l]++ % 4;
    t->in_flight[l][at].st = st;
    t->in_flight[l][at].first = first;
    t->in_flight[l][at].last = last;
}

int ps__trainer_wait_tickets(struct ps_trainer *t, enum ps_lane l, struct ps_error *err)
{
    assert(t->in_flight_tail[l] != t->in_flight_head[l]);
    uint32_t at = t->in_flight_tail[l]++ % 4;
    struct ps_storage *st = t->in_flight[l][at].st;
    for (uint64_t k = t->in_flight[l][at].first; k <= t->in_flight[l][at].last; k++) {
        int ret = st->ops->wait(st, k, err);
        if (ret < 0)
            return ret;
    }
    publish_bytes(t, l);
    return 0;
}

/* --- weights --- */

static const struct ps_unit_source *source_of(const struct ps_trainer *t,
                                              const struct ps_task *task)
{
    return &t->shape.source
                ->unit[ps__source_number(&t->shape, task->unit, task->arg[PS_ARG_BLOCK])];
}

/* Host address of a task's raw bytes: a raw slot, or (cpu) the slot that compute uses. */
static unsigned char *raw_of(const struct ps_trainer *t, const struct ps_task *task)
{
    if (task->arg[PS_ARG_RAW] >= 0)
        return t->buffer[PS_BUF_RAW] + (size_t)task->arg[PS_ARG_RAW] * t->map.raw_slot_bytes;
    return t->buffer[PS_BUF_SLOTS] + (size_t)task->arg[PS_ARG_SLOT] * t->map.slot_bytes;
}

static int submit_unit(struct ps_trainer *t, const struct ps_unit_source *u, unsigned char *raw,
                       struct ps_error *err)
{
    struct ps_storage *st = t->storage[PS_LANE_DISK_WEIGHTS];
    uint64_t first = 1;
    uint64_t last = 0;
    for (uint32_t i = 0; i < u->extent_count; i++) {
        const struct ps_extent *e = &u->extent[i];
        struct ps_transfer x = {.file = e->file,
                                .offset = e->offset,
                                .bytes = e->bytes,
                                .expect = e->expect,
                                .memory = raw + e->raw_offset};
        int ret = st->ops->submit(st, &x, &last, err);
        if (ret < 0)
            return ret;
        if (i == 0)
            first = last;
    }
    ps__trainer_push_tickets(t, PS_LANE_DISK_WEIGHTS, st, first, last);
    return 0;
}

/* What has arrived is what the file held when it was first read. */
static int check_unit(struct ps_trainer *t, const struct ps_unit_source *u,
                      const unsigned char *raw, struct ps_error *err)
{
    if (t->codec) /* decoding finds out */
        return 0;
    for (uint32_t i = 0; i < u->extent_count; i++) {
        const struct ps_extent *e = &u->extent[i];
        const char *path = ps_st_path(ps_st_set_file(t->files, e->file));
        int ret = ps_unit_verify(&t->source, e, raw + e->raw_offset, path, err);
        if (ret < 0)
            return ret;
    }
    size_t number = (size_t)(u - t->source.unit);
    if (t->unit_seen[number])
        return 0;
    t->unit_seen[number] = true;
    return ps_unit_check_finite(u, raw, &t->params, t->opt.model_dir, err);
}

/* A unit of a model that is trained comes from the store, chunk by chunk. */
static int submit_stored(struct ps_trainer *t, const struct ps_task *task, struct ps_error *err)
{
    uint32_t extent = 2 * (uint32_t)ps_step_unit_idx(&t->shape, task->unit);
    const struct ps_store_extent *e = &t->extent[extent];
    unsigned char *raw = raw_of(t, task);
    uint64_t all_first = 1;
    uint64_t all_last = 0;
    for (uint32_t c = 0; c < e->chunk_count; c++) {
        uint64_t first;
        uint64_t last;
        int ret = ps__trainer_store_submit(t, task->lane, extent, c, false,
                                           raw + e->chunk_offset[c], &first, &last, err);
        if (ret < 0)
            return ret;
        all_first = c == 0 ? first : all_first;
        all_last = last;
    }
    ps__trainer_push_tickets(t, task->lane, t->store_storage[task->lane], all_first, all_last);
    return 0;
}

static int check_stored(struct ps_trainer *t, const struct ps_task *task, struct ps_error *err)
{
    uint32_t extent = 2 * (uint32_t)ps_step_unit_idx(&t->shape, task->unit);
    const struct ps_store_extent *e = &t->extent[extent];
    const unsigned char *raw = raw_of(t, task);
    int ret = 0;
    for (uint32_t c = 0; ret == 0 && c < e->chunk_count; c++)
        ret = t->store->ops->check(t->store, extent, c, PS_COPY_LATEST, raw + e->chunk_offset[c],
                                   err);
    return ret;
}

static int read_start(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    if (ps__trainer_streams(t))
        return submit_stored(t, task, err);
    return submit_unit(t, source_of(t, task), raw_of(t, task), err);
}

static int read_finish(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    int ret = ps__trainer_wait_tickets(t, PS_LANE_DISK_WEIGHTS, err);
    if (ret < 0 || t->opt.io.moves_nothing)
        return ret;
    if (ps__trainer_streams(t))
        return check_stored(t, task, err);
    return check_unit(t, source_of(t, task), raw_of(t, task), err);
}

/* The device address of an address of the device's threads. */
void *ps__trainer_device_address(const struct ps_trainer *t, const void *mapped)
{
    unsigned char *base = t->near->ops->base(t->near);
    return base +
           ((const unsigned char *)mapped - (unsigned char *)t->near->ops->map(t->near, base));
}

/* Copies of a task: on a device with queues they are queued, and done when the task ends. */
int ps__trainer_to_device(struct ps_trainer *t, void *mapped, const void *host, size_t bytes,
                          struct ps_error *err)
{
    const struct ps_device_ops *ops = t->near->ops;
    return (t->queues ? ops->queue_h2d : ops->copy_h2d)(
        t->near, ps__trainer_device_address(t, mapped), host, bytes, err);
}

int ps__trainer_to_host(struct ps_trainer *t, void *host, const void *mapped, size_t bytes,
                        struct ps_error *err)
{
    const struct ps_device_ops *ops = t->near->ops;
    return (t->queues ? ops->queue_d2h : ops->copy_d2h)(
        t->near, host, ps__trainer_device_address(t, mapped), bytes, err);
}

/* One tensor from host memory to the device, converted on the way in pieces. */
static int copy_tensor(struct ps_trainer *t, void *near, const struct ps_unit_tensor *x,
                       const unsigned char *raw, struct ps_error *err)
{
    size_t src = ps_dtype_size(x->src_dtype);
    size_t dst = ps_dtype_size(x->near_dtype);
    unsigned char *to = ps__trainer_device_address(t, near);
    if (x->src_dtype == x->near_dtype)
        return ps__trainer_to_device(t, near, raw, (size_t)x->elements * src, err);
    size_t piece = CONVERT_PIECE_BYTES / dst;
    for (size_t at = 0; at < x->elements; at += piece) {
        size_t n = x->elements - at < piece ? (size_t)x->elements - at : piece;
        ps_unit_convert_elements(t->convert_piece, x->near_dtype, raw + at * src, x->src_dtype, n);
        int ret = t->near->ops->copy_h2d(t->near, to + at * dst, t->convert_piece, n * dst, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* A unit to the device, decoded on the way in pieces. */
static int copy_decoded(struct ps_trainer *t, uint32_t number, void *near, const unsigned char *raw,
                        struct ps_error *err)
{
    const struct ps_unit_codec *c = t->codec;
    uint64_t bytes = c->source->unit[number].near_bytes;
    unsigned char *to = ps__trainer_device_address(t, near);
    int ret = 0;
    for (uint64_t at = 0; ret == 0 && at < bytes; at += c->piece_bytes) {
        uint64_t n = bytes - at < c->piece_bytes ? bytes - at : c->piece_bytes;
        ret = c->decode(c->arg, number, at, n, t->convert_piece, raw, err);
        if (ret == 0)
            ret = t->near->ops->copy_h2d(t->near, to + at, t->convert_piece, (size_t)n, err);
    }
    return ret;
}

static int copy_weights(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    const struct ps_unit_source *u = source_of(t, task);
    uint32_t number = (uint32_t)(u - t->shape.source->unit);
    const unsigned char *raw = task->arg[PS_ARG_RAW] >= 0
                                   ? raw_of(t, task)
                                   : t->buffer[PS_BUF_HOST_UNITS] + t->map.host_offset[number];
    unsigned char *near =
        task->arg[PS_ARG_SLOT] >= 0
            ? t->buffer[PS_BUF_SLOTS] + (size_t)task->arg[PS_ARG_SLOT] * t->map.slot_bytes
            : t->buffer[PS_BUF_PINNED] +
                  t->map.pinned_offset[ps_step_unit_idx(&t->shape, task->unit)];
    bool discrete = t->opt.device->discrete;
    if (t->codec)
        return discrete ? copy_decoded(t, number, near, raw, err)
                        : t->codec->decode(t->codec->arg, number, 0, u->near_bytes, near, raw, err);
    if (!discrete) {
        ps_unit_convert(u, near, raw);
        return 0;
    }
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && i < u->tensor_count; i++)
        ret = copy_tensor(t, near + u->tensor[i].near_offset, &u->tensor[i],
                          raw + u->tensor[i].raw_offset, err);
    return ret;
}

/* --- batches, layer boundaries and kept pieces --- */

static int copy_batch(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    if (task->micro >= t->present)
        return 0;
    return ps__trainer_to_device(t, t->batch[task->micro].ids, t->batch_host[task->micro].ids,
                                 (size_t)t->shape.batch_bytes, err);
}

/* A boundary or kept piece on its way: its near and its host buffer, its place in the spill file
 * and among the checksums. */
struct spilled {
    unsigned char *near, *host; /* NULL: the task does not use it */
    size_t bytes;
    uint64_t offset;
    uint64_t *sum;
};

static struct spilled spilled_saved(const struct ps_trainer *t, const struct ps_task *task)
{
    const struct ps_step_shape *p = &t->shape;
    const struct ps_step_layout *l = &t->layout;
    const struct ps_step_map *m = &t->map;
    int32_t near = task->arg[PS_ARG_SAVED];
    int32_t host = task->arg[PS_ARG_HOST_SAVED];
    struct spilled s = {.bytes = (size_t)ps__saved_moved_bytes(p, l, task->unit)};
    if (near >= 0)
        s.near = t->buffer[PS_BUF_SAVED] + ps__saved_place(p, l, m, task->unit, near).kept;
    if (host >= 0)
        s.host = t->buffer[PS_BUF_HOST_SAVED] + ps__saved_host_offset(p, l, m, task->unit, host);
    s.offset = m->bytes[PS_BUF_DISK_X] + m->bytes[PS_BUF_DISK_GRAD] +
               ps__saved_disk_offset(p, l, m, task->unit, task->micro);
    return s;
}

static struct spilled spilled_boundary(const struct ps_trainer *t, const struct ps_task *task)
{
    bool out = task->kind == PS_TASK_SPILL_OUT || task->kind == PS_TASK_SPILL_WRITE;
    int32_t host = task->arg[PS_ARG_HOST_X];
    int64_t place = (int64_t)t->map.x_disk_idx[task->unit] * t->layout.group + task->micro;
    return (struct spilled){
        .near = ps__trainer_x(t, task->arg[out ? PS_ARG_X_IN : PS_ARG_X_OUT]),
        .host = host < 0 ? NULL : t->buffer[PS_BUF_HOST_X] + (size_t)host * t->map.x_stride,
        .bytes = (size_t)t->map.x_stride,
        .offset = (uint64_t)place * t->map.x_stride};
}

static struct spilled spilled_by(const struct ps_trainer *t, const struct ps_task *task)
{
    bool saved = ps__moves_saved(task);
    struct spilled s = saved ? spilled_saved(t, task) : spilled_boundary(t, task);
    size_t place = (size_t)task->unit * (size_t)t->layout.group + (size_t)task->micro;
    s.sum = t->spill_sum ? &t->spill_sum[2 * place + saved] : NULL;
    return s;
}

/* What the disk reads and writes. */
static unsigned char *spilled_memory(const struct spilled *s)
{
    return s->host ? s->host : s->near;
}

static int spill_out(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    if (task->micro >= t->present)
        return 0;
    struct spilled s = spilled_by(t, task);
    return ps__trainer_to_host(t, s.host, s.near, s.bytes, err);
}

static int spill_in(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    if (task->micro >= t->present)
        return 0;
    struct spilled s = spilled_by(t, task);
    return ps__trainer_to_device(t, s.near, s.host, s.bytes, err);
}

static int map_spilled(struct ps_trainer *t, const struct spilled *s, struct ps_transfer *cut,
                       struct ps_error *err)
{
    int count = t->opt.io.spill_map(t->opt.io.arg, s->offset, s->bytes, cut, t->cut_max);
    return count < 0 ? ps_error_set(err, count, "the spill file cannot be addressed") : count;
}

static int spill_start(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    struct ps_storage *st = t->storage[task->lane];
    if (task->micro >= t->present) {
        ps__trainer_push_tickets(t, task->lane, st, 1, 0);
        return 0;
    }
    bool write = task->kind == PS_TASK_SPILL_WRITE;
    struct spilled s = spilled_by(t, task);
    unsigned char *memory = spilled_memory(&s);
    if (write)
        *s.sum = XXH3_64bits(memory, s.bytes);
    struct ps_transfer *cut = t->cut[task->lane];
    int count = map_spilled(t, &s, cut, err);
    uint64_t first = 1;
    uint64_t last = 0;
    int ret = count < 0 ? count : 0;
    for (int i = 0; ret == 0 && i < count; i++) {
        cut[i].write = write;
        cut[i].memory = memory;
        cut[i].expect = cut[i].bytes;
        memory += cut[i].bytes;
        ret = st->ops->submit(st, &cut[i], &last, err);
        if (i == 0)
            first = last;
    }
    if (ret == 0)
        ps__trainer_push_tickets(t, task->lane, st, first, last);
    return ret;
}

static int spill_finish(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    return ps__trainer_wait_tickets(ctx, task->lane, err);
}

/* What has come back is what was handed over. */
static int spill_read_finish(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    struct ps_trainer *t = ctx;
    int ret = ps__trainer_wait_tickets(t, task->lane, err);
    if (ret < 0 || task->micro >= t->present || t->opt.io.moves_nothing)
        return ret;
    struct spilled s = spilled_by(t, task);
    if (XXH3_64bits(spilled_memory(&s), s.bytes) == *s.sum)
        return 0;
    struct ps_transfer *cut = t->cut[task->lane];
    int count = map_spilled(t, &s, cut, err);
    if (count < 1)
        return count;
    const char *path =
        t->opt.io.spill_path ? t->opt.io.spill_path(t->opt.io.arg, cut[0].file) : NULL;
    return ps_error_full(err, PS_ECHECKSUM, path, NULL,
                         "the disk or the memory damaged them: look into the kernel log (dmesg) "
                         "and the disk's health (smartctl -a)",
                         "the %llu bytes read at offset %llu are not those that were written there",
                         (unsigned long long)s.bytes, (unsigned long long)cut[0].offset);
}

void ps__trainer_io_ops(struct ps_task_ops ops[PS_TASK_KIND_COUNT])
{
    ops[PS_TASK_READ_WEIGHTS].start = read_start;
    ops[PS_TASK_READ_WEIGHTS].finish = read_finish;
    ops[PS_TASK_COPY_WEIGHTS].run = copy_weights;
    ops[PS_TASK_COPY_BATCH].run = copy_batch;
    ops[PS_TASK_SPILL_OUT].run = spill_out;
    ops[PS_TASK_SPILL_IN].run = spill_in;
    ops[PS_TASK_SPILL_WRITE].start = spill_start;
    ops[PS_TASK_SPILL_WRITE].finish = spill_finish;
    ops[PS_TASK_SPILL_READ].start = spill_start;
    ops[PS_TASK_SPILL_READ].finish = spill_read_finish;
}

/* --- before the first step --- */

/* Where the pieces of one pinned tensor go on a device with memory of its own. */
struct pinned {
    struct ps_trainer *t;
    unsigned char *weight; /* NULL: only on the host */
    unsigned char *host;   /* where the host has them too, with the remainders; NULL: nowhere */
    uint16_t *remainder;
    size_t element;
    struct ps_error *err;
};

static int put_pinned(void *arg, size_t begin, size_t count, const void *values,
                      const uint16_t *remainder)
{
    const struct pinned *p = arg;
    struct ps_device *d = p->t->near;
    int ret = 0;
    if (p->weight)
        ret = d->ops->copy_h2d(d, ps__trainer_device_address(p->t, p->weight + begin * p->element),
                               values, count * p->element, p->err);
    if (p->host)
        memcpy(p->host + begin * p->element, values, count * p->element);
    if (p->host && remainder)
        memcpy(p->remainder + begin, remainder, count * sizeof *remainder);
    else if (ret == 0 && remainder)
        ret = d->ops->copy_h2d(d, ps__trainer_device_address(p->t, p->remainder + begin), remainder,
                               count * sizeof *remainder, p->err);
    return ret;
}

static int load_pinned(struct ps_trainer *t, struct ps_error *err)
{
    for (size_t i = 0; i < t->params.count; i++) {
        const struct ps_st_tensor *tensor;
        const struct ps_st_file *file;
        const struct ps_weight *w = &t->weight[i];
        int32_t unit = ps__trainer_param_unit(&t->params.param[i]);
        bool host = ps__trainer_streams(t) && t->opt.device->discrete &&
                    t->map.host_offset[ps__source_number(&t->shape, unit, 0)] != UINT64_MAX;
        if ((!w->data && !host) || ps__trainer_from_store(t))
            continue; /* the store has it */
        int ret =
            ps_weights_find(t->files, t->opt.model_dir, &t->params.param[i], &tensor, &file, err);
        if (ret == 0 && !t->opt.device->discrete) {
            ret = ps_weights_read(file, tensor, w->data, w->dtype, t->remainder[i],
                                  t->opt.master_split, err);
        } else if (ret == 0) {
            struct pinned p = {.t = t,
                               .weight = w->data,
                               .host = host ? ps__trainer_host_weights(t, unit, -1, -1) +
                                                  t->param_offset[i]
                                            : NULL,
                               .remainder = t->remainder[i],
                               .element = ps_dtype_size(w->dtype),
                               .err = err};
            ret = ps_weights_read_pieces(file, tensor, w->dtype,
                                         p.remainder ? t->opt.master_split : NULL, put_pinned, &p,
                                         err);
        }
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int load_host_units(struct ps_trainer *t, struct ps_error *err)
{
    for (uint32_t i = 0; i < t->shape.source->unit_count; i++) {
        const struct ps_unit_source *u = &t->shape.source->unit[i];
        if (t->map.host_offset[i] == UINT64_MAX || ps__trainer_streams(t))
            continue;
        unsigned char *raw = t->buffer[PS_BUF_HOST_UNITS] + t->map.host_offset[i];
        int ret = submit_unit(t, u, raw, err);
        if (ret == 0)
            ret = ps__trainer_wait_tickets(t, PS_LANE_DISK_WEIGHTS, err);
        if (ret == 0)
            ret = check_unit(t, u, raw, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* | inverse frequencies | table of cosines and sines | */
static int load_rope(struct ps_trainer *t, struct ps_error *err)
{
    size_t half = (size_t)t->cfg.head_dim / 2;
    size_t skip = (half * sizeof(float) + 63) & ~(size_t)63;
    unsigned char *rope = t->buffer[PS_BUF_ROPE];
    unsigned char *made = t->opt.device->discrete ? malloc((size_t)t->shape.rope_bytes) : rope;
    if (!made)
        return ps_error_set(err, -ENOMEM, "out of memory");
    float *inv_freq = (float *)(void *)made;
    ps_model_rope_inv_freq(&t->cfg, inv_freq);
    ps_rope_table((float *)(void *)(made + skip), inv_freq, (size_t)t->opt.position_max, half);
    if (made == rope)
        return 0;
    int ret = t->near->ops->copy_h2d(t->near, ps__trainer_device_address(t, rope), made,
                                     (size_t)t->shape.rope_bytes, err);
    free(made);
    return ret;
}

int ps__trainer_load_pinned(struct ps_trainer *t, struct ps_error *err)
{
    int ret = load_pinned(t, err);
    if (ret == 0)
        ret = load_host_units(t, err);
    for (size_t i = 0; ret == 0 && i < ps_st_set_file_count(t->files); i++)
        ret = ps_st_check_unchanged(ps_st_set_file(t->files, i), err);
    if (ret < 0)
        return ret;
    return load_rope(t, err);
}
