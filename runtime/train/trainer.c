/* The training core, creation and access: see trainer.h. */
#include "runtime/train/trainer.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/checked.h"
#include "runtime/train/trainer_internal.h"

#define ARENA_ALIGN ((size_t)2 << 20)

int ps_trainer_create(struct ps_trainer **out, const struct ps_trainer_options *opt,
                      struct ps_error *err)
{
    struct ps_trainer *t = calloc(1, sizeof *t);
    if (!t)
        return ps_error_set(err, -ENOMEM, "out of memory");
    t->opt = *opt;
    t->loaded = PS_SEGMENT_COUNT;
    t->norm_before = -1;
    t->settled = true;
    if (!t->opt.device)
        t->opt.device = &ps_device_cpu;
    int ret = ps_model_config_load(&t->cfg, opt->model_dir, err);
    if (ret < 0)
        goto fail;
    ret = ps_param_table_create(&t->params, &t->cfg);
    if (ret < 0) {
        ps_error_set(err, ret, "out of memory");
        goto fail;
    }
    ret = opt->plan_only ? 0 : ps_st_set_open(&t->files, opt->model_dir, err);
    if (ret < 0)
        goto fail;
    ret = ps_pool_create(&t->pool, opt->thread_count);
    if (ret < 0) {
        ps_error_full(err, ret, NULL, "threads", "lower --threads", "cannot start %d threads: %s",
                      opt->thread_count, ps_status_text(ret));
        goto fail;
    }
    t->cx = (struct ps_compute){.k = opt->cuda ? opt->cuda->kernels : &ps_kernels_cpu,
                                .pool = t->pool,
                                .isa = opt->isa,
                                .dtype = opt->dtype,
                                .math = opt->dtype == PS_DTYPE_BF16 ? PS_GEMM_BF16 : PS_GEMM_F32};
    ret = ps__trainer_plan(t, err);
    if (ret < 0)
        goto fail;
    *out = t;
    return 0;

fail:
    ps_trainer_destroy(t);
    return ret;
}

static void drop_layout(struct ps_trainer *t)
{
    for (int i = 0; i < PS_SEGMENT_COUNT; i++)
        ps_schedule_fini(&t->segment[i]);
    ps_step_map_fini(&t->map);
    ps_step_layout_fini(&t->layout);
    t->has_layout = false;
}

int ps_trainer_set_layout(struct ps_trainer *t, const struct ps_step_layout *layout,
                          struct ps_error *err)
{
    assert(!t->committed);
    drop_layout(t);
    int ret = ps_step_layout_copy(&t->layout, layout, &t->shape);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    t->layout.clip = t->opt.max_grad_norm > 0 ? t->opt.clip_mode : PS_CLIP_NONE;
    ret = ps_step_map_create(&t->map, &t->shape, &t->layout, err);
    for (int i = 0; ret == 0 && i < PS_SEGMENT_COUNT; i++) {
        bool training = i != PS_SEGMENT_EVAL && i != PS_SEGMENT_PROLOGUE_EVAL;
        if (training && !t->shape.trains)
            ps_schedule_init(&t->segment[i], ps_segment_name((enum ps_segment)i));
        else
            ret = ps_step_build(&t->segment[i], (enum ps_segment)i, &t->shape, &t->layout, &t->map,
                                err);
    }
    /* Imported schedules are held to this too. */
    const struct ps_schedule *s = t->segment;
    if (ret == 0 && t->shape.trains)
        ret = ps_step_check(&s[PS_SEGMENT_TRAIN], &s[PS_SEGMENT_PROLOGUE_TRAIN], PS_SEGMENT_TRAIN,
                            &t->shape, &t->layout, &t->map, err);
    t->has_layout = ret == 0;
    return ret;
}

/* Room in an arena for the buffers of a tier; offsets by buffer. */
static size_t arena_bytes(const struct ps_trainer *t, enum ps_tier tier, size_t *offset)
{
    size_t at = 0;
    for (int b = 0; b < PS_BUF_COUNT; b++) {
        if (t->map.tier[b] != tier)
            continue;
        offset[b] = at;
        at += (size_t)ps__page_up(t->map.bytes[b]);
    }
    return ps_align_up(at, ARENA_ALIGN);
}

static int open_arenas(struct ps_trainer *t, struct ps_error *err)
{
    size_t offset[PS_BUF_COUNT] = {0};
    size_t near = arena_bytes(t, PS_TIER_DEVICE, offset);
    size_t host = arena_bytes(t, PS_TIER_HOST, offset);
    int ret = t->opt.device->open(&t->near, near, err);
    if (ret == 0 && host > 0)
        ret = ps_device_cpu.open(&t->host, host, err);
    if (ret < 0)
        return ps_error_field(err, ret, t->near ? "host-mem" : "gpu-mem");
    struct ps_device *on_host = t->opt.device->discrete ? t->host : t->near;
    if (on_host && t->map.stream_count > 0 && on_host->ops->pages(on_host))
        ps_log(t->opt.log, PS_LOG_INFO, "the host arena lies on %s", on_host->ops->pages(on_host));
    for (int b = 0; b < PS_BUF_COUNT; b++) {
        struct ps_device *d = t->map.tier[b] == PS_TIER_DEVICE ? t->near : t->host;
        if (t->map.tier[b] != PS_TIER_DISK && t->map.bytes[b] > 0)
            t->buffer[b] = (unsigned char *)d->ops->map(d, d->ops->base(d)) + offset[b];
    }
    return 0;
}

static int open_executor(struct ps_trainer *t, struct ps_error *err)
{
    struct ps_executor_options o = {.ctx = t,
                                    .serial = t->opt.serial,
                                    .delay_seed = t->opt.delay_seed,
                                    .delay_max_ns = t->opt.delay_max_ns,
                                    .vclock = t->opt.vclock};
    memcpy(o.throttle, t->opt.throttle, sizeof o.throttle);
    ps__trainer_task_ops(o.ops);
    ps__trainer_io_ops(o.ops);
    ps__trainer_update_ops(o.ops);
    ps__trainer_zeroth_ops(o.ops);
    o.queue_ops = t->opt.cuda ? t->opt.cuda->queues : NULL;
    int ret = o.queue_ops ? o.queue_ops->open(&t->queues, t->near, &t->cx, PS_EXECUTOR_MARKS,
                                              ps__trainer_trains(t), err)
                          : 0;
    o.queues = t->queues;
    if (ret == 0)
        ret = ps_executor_create(&t->ex, &o, err);
    for (int i = 0; ret >= 0 && i < PS_SEGMENT_COUNT; i++) {
        ret = ps_executor_bind(t->ex, &t->segment[i]);
        t->handle[i] = ret;
        if (ret < 0)
            ps_error_set(err, ret, "cannot start the lanes: %s", ps_status_text(ret));
    }
    return ret < 0 ? ret : 0;
}

/* Streams and products of the CUDA device; page-locked host memory. */
static int open_cuda(struct ps_trainer *t, struct ps_error *err)
{
    t->cx.fault = &t->fault;
    int ret = t->opt.cuda->compute_open(&t->cx, err);
    if (ret < 0 || !t->host)
        return ret;
    struct ps_error why = {0};
    if (t->opt.cuda->pin(t->host->ops->base(t->host), (size_t)ps_trainer_bytes(t, PS_TIER_HOST),
                         &why) < 0)
        ps_log(t->opt.log, PS_LOG_WARN,
               "the host memory cannot be page-locked (%s): copies will be slower", why.message);
    else
        t->pinned = true;
    if (t->pinned && t->opt.io.open)
        ps_log(t->opt.log, PS_LOG_INFO, "%" PRIu64 " MiB of host memory are page-locked",
               ps_trainer_bytes(t, PS_TIER_HOST) >> 20);
    return 0;
}

/* What streamed updates need beside the arenas. */
static int open_updates(struct ps_trainer *t, struct ps_error *err)
{
    size_t units = (size_t)t->cfg.n_layer + 2;
    t->tensor_coef = calloc(t->trainable_count + 1, sizeof *t->tensor_coef);
    t->unit_updated = calloc(units, sizeof *t->unit_updated);
    t->grad_sum = calloc(t->granule_begin[units] + (size_t)1, sizeof *t->grad_sum);
    t->run_state = calloc(1, PS_TRAINER_RUN_STATE_MAX);
    bool ok = t->tensor_coef && t->unit_updated && t->grad_sum && t->run_state;
    int ret = ok && (ps__trainer_streams(t) || t->shape.zeroth)
                  ? ps_pool_create(&t->optim_pool, t->opt.thread_count)
                  : 0;
    if (!ok || ret < 0)
        return ps_error_set(err, ret < 0 ? ret : -ENOMEM, "out of memory");
    return ps__trainer_open_far(t, err);
}

int ps_trainer_commit(struct ps_trainer *t, struct ps_error *err)
{
    assert(!t->committed && t->has_layout && !t->opt.plan_only);
    assert(!t->codec || t->codec->path);
    int ret = open_arenas(t, err);
    if (ret == 0)
        ret = ps__trainer_bind(t, err);
    if (ret == 0 && t->opt.cuda)
        ret = open_cuda(t, err);
    if (ret == 0)
        ret = ps__trainer_clear_states(t, err);
    if (ret == 0)
        ret = open_updates(t, err);
    if (ret == 0)
        ret = ps__trainer_io_open(t, err);
    if (ret == 0)
        ret = ps__trainer_load_pinned(t, err);
    if (ret < 0)
        return ret;
    ret = ps__trainer_init_adapter(t, err);
    if (ret == 0)
        ret = ps__trainer_store_load(t, err);
    if (ret == 0 && t->shape.zeroth && !ps__trainer_streams(t))
        ret = ps_trainer_pull(t, err); /* the host's copy is what is perturbed */
    if (ret == 0)
        ret = open_executor(t, err);
    t->committed = ret == 0;
    return ret;
}

void ps_trainer_destroy(struct ps_trainer *t)
{
    if (!t)
        return;
    ps_executor_destroy(t->ex);
    ps__trainer_io_close(t);
    ps__trainer_store_close(t);
    ps_pool_destroy(t->optim_pool);
    free(t->far_workspace);
    if (t->queues)
        t->opt.cuda->queues->close(t->queues);
    if (t->pinned)
        t->opt.cuda->unpin(t->host->ops->base(t->host));
    if (t->opt.cuda && t->cx.stream)
        t->opt.cuda->compute_close(&t->cx);
    if (t->host)
        t->host->ops->close(t->host);
    if (t->near)
        t->near->ops->close(t->near);
    drop_layout(t);
    ps_unit_sources_fini(&t->source);
    ps_pool_destroy(t->pool);
    ps_st_set_close(t->files);
    ps_param_table_fini(&t->params);
    free(t->weight);
    free(t->remainder);
    free(t->grad);
    free(t->param_offset);
    free(t->block);
    ps__trainer_free_adapter(t);
    free(t->trainable);
    free(t->trainable_device);
    free(t->unit_bytes);
    free(t->batch);
    free(t->batch_host);
    free(t->extra);
    free(t->extra_host);
    free(t->partial_host);
    free(t->row_host);
    free(t->home);
    free(t->trainable_param);
    free(t->granule);
    free(t->ahead_step);
    free(t->slice);
    free(t->granule_begin);
    free(t->state_image_bytes);
    free(t->chunk_offset);
    free(t->extent);
    free(t->store_source.unit);
    free(t->store_tensor);
    free(t->grad_sum);
    free(t->unit_updated);
    free(t->run_state);
    free(t->tensor_coef);
    free(t->n_past);
    free(t);
}

const struct ps_st_set *ps_trainer_files(const struct ps_trainer *t)
{
    return t->files;
}

void ps_trainer_set_codec(struct ps_trainer *t, const struct ps_unit_codec *codec)
{
    assert(!t->committed && (!codec || codec->source->unit_count == t->source.unit_count));
    drop_layout(t);
    t->codec = codec;
    t->shape.source = codec                         ? codec->source
                      : t->opt.mode == PS_MODE_FULL ? &t->store_source
                                                    : &t->source;
}

const struct ps_step_shape *ps_trainer_shape(const struct ps_trainer *t)
{
    return &t->shape;
}

const struct ps_step_layout *ps_trainer_layout(const struct ps_trainer *t)
{
    return &t->layout;
}

const struct ps_step_map *ps_trainer_map(const struct ps_trainer *t)
{
    return &t->map;
}

const struct ps_schedule *ps_trainer_schedule(const struct ps_trainer *t, enum ps_segment segment)
{
    return &t->segment[segment];
}

uint64_t ps_trainer_bytes(const struct ps_trainer *t, enum ps_tier tier)
{
    uint64_t bytes = ps_step_map_tier_bytes(&t->map, tier);
    return tier == PS_TIER_DISK ? bytes : ps_align_up((size_t)bytes, ARENA_ALIGN);
}

void ps_trainer_set_clock(struct ps_trainer *t, struct ps_vclock *clock)
{
    assert(!t->committed);
    t->opt.vclock = clock;
}

unsigned char *ps_trainer_buffer(const struct ps_trainer *t, enum ps_step_buffer b)
{
    return t->buffer[b];
}

struct ps_executor *ps_trainer_executor(struct ps_trainer *t, enum ps_segment segment, int *handle)
{
    if (handle)
        *handle = t->handle[segment];
    return t->ex;
}

const struct ps_model_config *ps_trainer_config(const struct ps_trainer *t)
{
    return &t->cfg;
}

const struct ps_param_table *ps_trainer_params(const struct ps_trainer *t)
{
    return &t->params;
}

struct ps_pool *ps_trainer_pool(const struct ps_trainer *t)
{
    return t->pool;
}

const struct ps_adapter_config *ps_trainer_adapter_config(const struct ps_trainer *t)
{
    return &t->opt.adapter_config;
}

size_t ps_trainer_trainable_count(const struct ps_trainer *t)
{
    return t->trainable_count;
}

struct ps_trainable *ps_trainer_trainable(struct ps_trainer *t, size_t idx)
{
    assert(idx < t->trainable_count);
    return &t->trainable[idx];
}

uint64_t ps_trainer_trainable_elements(const struct ps_trainer *t)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < t->trainable_count; i++)
        sum += t->trainable[i].n;
    return sum;
}

const struct ps_adapter_site *ps_trainer_site(const struct ps_trainer *t, int32_t layer,
                                              enum ps_role role)
{
    const struct ps_adapter_site *s = &t->site_host[ps_site_idx(t->cfg.n_layer, layer, role)];
    return s->ops ? s : NULL;
}

/* Host copy of n elements of a pinned weight, in pieces when the device keeps them to itself. */
static void read_pinned(const struct ps_trainer *t, const void *mapped, enum ps_dtype dtype,
                        size_t n, float *out)
{
    if (!t->opt.device->discrete) {
        ps_dtype_convert(out, PS_DTYPE_F32, mapped, dtype, n);
        return;
    }
    unsigned char piece[4096];
    unsigned char *base = t->near->ops->base(t->near);
    const unsigned char *from =
        base + ((const unsigned char *)mapped - (unsigned char *)t->near->ops->map(t->near, base));
    size_t e = ps_dtype_size(dtype);
    for (size_t at = 0; at < n; at += sizeof piece / e) {
        size_t count = n - at < sizeof piece / e ? n - at : sizeof piece / e;
        PS_IGNORE(t->near->ops->copy_d2h(t->near, piece, from + at * e, count * e, NULL) < 0,
                  "the emulated device cannot fail");
        ps_dtype_convert(out + at, PS_DTYPE_F32, piece, dtype, count);
    }
}

/* A streamed weight comes from its file. */
static int read_streamed(const struct ps_trainer *t, int32_t param_idx, size_t begin, size_t n,
                         float *out, struct ps_error *err)
{
    const struct ps_st_file *file;
    const struct ps_st_tensor *x = ps_st_set_find(t->files, t->params.param[param_idx].name, &file);
    unsigned char piece[4096];
    enum ps_dtype dtype = (enum ps_dtype)x->dtype;
    size_t e = ps_dtype_size(dtype);
    for (size_t at = 0; at < n; at += sizeof piece / e) {
        size_t count = n - at < sizeof piece / e ? n - at : sizeof piece / e;
        int ret = ps_st_read(file, x, (begin + at) * e, count * e, piece, err);
        if (ret < 0)
            return ret;
        ps_dtype_convert(out + at, PS_DTYPE_F32, piece, dtype, count);
        for (size_t i = 0; i < count && t->weight[param_idx].dtype == PS_DTYPE_BF16; i++)
            out[at + i] = ps_bf16_to_f32(ps_f32_to_bf16(out[at + i]));
    }
    return 0;
}

/* The exact value of a parameter whose updates are streamed, wherever its parts lie. */
static int read_trained(const struct ps_trainer *t, int32_t param_idx, size_t begin, size_t n,
                        float *out, struct ps_error *err)
{
    struct ps_trainer *own = (struct ps_trainer *)(uintptr_t)t; /* bounce buffers */
    size_t idx = SIZE_MAX;
    for (size_t k = 0; k < t->trainable_count && idx == SIZE_MAX; k++)
        if (t->trainable_param[k] == param_idx)
            idx = k;
    if (idx == SIZE_MAX)
        return read_streamed(t, param_idx, begin, n, out, err);
    const struct ps_trainable *x = &t->trainable[idx];
    size_t e = ps_dtype_size(x->dtype);
    unsigned char *weight = malloc(n * (e + sizeof(uint16_t)) + 1);
    if (!weight)
        return ps_error_set(err, -ENOMEM, "out of memory");
    uint16_t *rest = (uint16_t *)(void *)(weight + n * e);
    int ret = ps_trainer_part_read(own, idx, PS_PART_WEIGHT, begin, n, weight, err);
    if (ret == 0 && ps__trainer_has_remainder(x))
        ret = ps_trainer_part_read(own, idx, PS_PART_REMAINDER, begin, n, rest, err);
    if (ret == 0 && ps__trainer_has_remainder(x))
        for (size_t i = 0; i < n; i++)
            out[i] = t->opt.master_join(((const uint16_t *)(const void *)weight)[i], rest[i]);
    else if (ret == 0)
        ps_dtype_convert(out, PS_DTYPE_F32, weight, x->dtype, n);
    free(weight);
    return ret;
}

int ps_trainer_param_read(const struct ps_trainer *t, int32_t param_idx, size_t begin, size_t n,
                          float *out, struct ps_error *err)
{
    const struct ps_weight *w = &t->weight[param_idx];
    if (ps__trainer_streams(t))
        return read_trained(t, param_idx, begin, n, out, err);
    if (!w->data)
        return read_streamed(t, param_idx, begin, n, out, err);
    const struct ps_trainable *x = NULL;
    for (size_t i = 0; i < t->trainable_count && t->remainder[param_idx]; i++)
        if (t->trainable_device[i].weight == w->data)
            x = &t->trainable[i];
    if (!x) {
        const unsigned char *from =
            (const unsigned char *)w->data + begin * ps_dtype_size(w->dtype);
        read_pinned(t, from, w->dtype, n, out);
        return 0;
    }
    const uint16_t *hi = (const uint16_t *)x->weight + begin;
    for (size_t i = 0; i < n; i++)
        out[i] = t->opt.master_join(hi[i], x->remainder[begin + i]);
    return 0;
}

const struct ps_weight *ps_trainer_param(const struct ps_trainer *t, int32_t param_idx)
{
    return &t->weight[param_idx];
}

uint64_t ps_trainer_updates(const struct ps_trainer *t)
{
    return t->updates;
}

void ps_trainer_set_updates(struct ps_trainer *t, uint64_t updates)
{
    t->updates = updates;
}

bool ps__trainer_trains(const struct ps_trainer *t)
{
    return t->opt.mode != PS_MODE_NONE;
}
