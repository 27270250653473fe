/* The plan of a session: budgets, hardware profile, the planner's choice. See session_internal.h.
 *
 * Budgets are those of the user: of the whole process on the host, of the device, of the disk. What
 * the planner may use for buffers is what is left when the process itself (heap, stacks, libraries,
 * data rows) is taken off. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/file.h"
#include "session/host_disk.h"
#include "runtime/train/schedule_json.h"
#include "session/host_memory.h"
#include "session/session_internal.h"

/* Heap, stacks and libraries beside the arena, not yet touched when the plan is made. */
#define PROCESS_SLACK_BYTES ((uint64_t)24 << 20)
/* By so much the resident size of one process may differ from that of the next. */
#define BUDGET_MARGIN_BYTES ((uint64_t)1 << 20)
#define ARENA_ALIGN ((uint64_t)2 << 20)
/* More rows than this never share a pass of evaluation or generation. */
#define EVAL_GROUP_MAX 64
/* Of a card's free memory, without --gpu-mem. */
#define CARD_SHARE 0.95

int ps__profile_find(const struct ps_options *o, struct ps_profile *out, const char **where,
                     struct ps_error *err)
{
    *where = "measured on this machine";
    if (o->hardware) {
        *where = o->hardware;
        return ps_profile_load(out, o->hardware, err);
    }
    char path[4096];
    const char *config = getenv("XDG_CONFIG_HOME");
    const char *home = getenv("HOME");
    int n = config && config[0] ? snprintf(path, sizeof path, "%s/penstock/hardware.json", config)
                                : snprintf(path, sizeof path, "%s/.config/penstock/hardware.json",
                                           home ? home : "");
    if (n > 0 && n < (int)sizeof path && access(path, R_OK) == 0)
        return ps_profile_load(out, path, err);
    *where = "built-in, conservative: run `penstock bench` for figures of this machine";
    ps_profile_conservative(out);
    return 0;
}

static uint64_t budget_left(int64_t budget, uint64_t taken)
{
    uint64_t have = (uint64_t)budget;
    return have > taken ? (have - taken) / ARENA_ALIGN * ARENA_ALIGN : 0;
}

/* Free space where a directory is, or will be made; UINT64_MAX when that is not known. */
static uint64_t free_at(const char *dir)
{
    char path[4096];
    struct ps_host_disk disk;
    int n = snprintf(path, sizeof path, "%s", dir);
    while (n > 0 && n < (int)sizeof path && access(path, F_OK) != 0) {
        char *slash = strrchr(path, '/');
        if (!slash)
            snprintf(path, sizeof path, ".");
        else
            slash[slash == path] = '\0';
    }
    return ps_host_disk(&disk, path, NULL) == 0 ? disk.free_bytes : UINT64_MAX;
}

/* --nvme-mem, else what is free: the least of the directories, as striping takes the same of each.
 * A plan for another machine, or one that names no place, has no limit. */
static uint64_t disk_budget(const struct ps_options *o)
{
    char dir[4096];
    uint64_t least = UINT64_MAX;
    size_t count = 0;
    if (o->nvme_mem >= 0)
        return (uint64_t)o->nvme_mem;
    if (o->command == PS_CMD_PLAN && o->hardware)
        return UINT64_MAX;
    for (; ps_options_list_item(o->nvme_path, count, dir, sizeof dir); count++) {
        uint64_t free_bytes = free_at(dir);
        least = free_bytes < least ? free_bytes : least;
    }
    if (count == 0 && o->output)
        return free_at(o->output);
    return least < UINT64_MAX / 64 ? least * count : UINT64_MAX;
}

/* What the RAM back end holds beside the arena: a copy of each file that weights are read from. */
static uint64_t ram_copies(const struct ps_session *s)
{
    const struct ps_options *o = s->opt;
    if (!o->storage || strcmp(o->storage, "ram") != 0 || !ps_trainer_shape(s->trainer)->frozen ||
        (o->strategy && strcmp(o->strategy, "resident") == 0))
        return 0;
    if (ps__import_needs(s).disk_bytes > 0)
        return ps__import_needs(s).disk_bytes;
    const struct ps_st_set *files = ps_trainer_files(s->trainer);
    if (!files)
        return ps_trainer_params(s->trainer)->elements *
               ps_dtype_size((enum ps_dtype)s->trainer_options.dtype);
    uint64_t bytes = 0;
    for (size_t i = 0; i < ps_st_set_file_count(files); i++) {
        struct stat st;
        if (stat(ps_st_path(ps_st_set_file(files, i)), &st) == 0)
            bytes += (uint64_t)st.st_size;
    }
    return bytes;
}

/* Of a card: what is free beside this and other processes, and what this one holds already. A
 * budget counts what driver and libraries take for themselves, now and later, and cannot be more
 * than that. */
static void set_card_budget(struct ps_session *s, struct ps_planner_request *r)
{
    const struct ps_options *o = s->opt;
    const struct ps_cuda_info *card = &s->cuda;
    uint64_t held = card->reserved_bytes - card->later_bytes;
    s->device_budget = held + (uint64_t)((double)card->free_bytes * CARD_SHARE);
    s->device_limited = o->command != PS_CMD_PLAN && o->gpu_mem >= 0 &&
                        (uint64_t)o->gpu_mem > held + card->free_bytes;
    if (s->device_limited)
        s->device_budget = held + card->free_bytes;
    else if (o->gpu_mem >= 0)
        s->device_budget = (uint64_t)o->gpu_mem;
    if (s->device_limited)
        ps_log(&s->log, PS_LOG_WARN,
               "of --gpu-mem %.0f MiB only %.0f MiB can be had: %.0f MiB of the card are in use",
               (double)o->gpu_mem / 1048576.0, (double)s->device_budget / 1048576.0,
               (double)(card->total_bytes - card->free_bytes) / 1048576.0);
    r->device_budget = budget_left((int64_t)s->device_budget, card->reserved_bytes);
}

static void set_budgets(struct ps_session *s, struct ps_planner_request *r)
{
    const struct ps_options *o = s->opt;
    struct ps__import_needs import = ps__import_needs(s);
    s->ram_copy_bytes = ram_copies(s);
    s->process_bytes =
        ps__rss_bytes(s) + PROCESS_SLACK_BYTES + import.host_bytes + s->ram_copy_bytes;
    s->process_bytes += ps__store_buffer_bytes(s);
    s->host_budget = (uint64_t)o->host_mem;
    if (o->host_mem < 0) {
        int64_t left = ps_host_memory_free();
        s->host_budget =
            left < 0 ? UINT64_MAX / 4 : (uint64_t)((double)left * 0.8) + ps__rss_bytes(s);
    }
    uint64_t host = budget_left((int64_t)s->host_budget, s->process_bytes);
    r->disk_budget = disk_budget(o);
    r->store_bytes = ps__store_bytes(s);
    if (o->nvme_mem < 0 && o->resume && ps__store_named(s) && r->disk_budget < UINT64_MAX / 4)
        r->disk_budget += r->store_bytes; /* it is there, and not free any more */
    if (o->nvme_mem >= 0)                 /* else it is not free any more */
        r->disk_budget -= import.disk_bytes < r->disk_budget ? import.disk_bytes : r->disk_budget;
    s->device_budget = 0;
    if (!r->discrete) {
        r->device_budget = host;
        r->host_budget = UINT64_MAX;
        return;
    }
    r->host_budget = host;
    if (s->cuda.total_bytes > 0) {
        set_card_budget(s, r);
        return;
    }
    s->device_budget = o->gpu_mem < 0 ? s->host_budget / 2 : (uint64_t)o->gpu_mem;
    r->device_budget = budget_left((int64_t)s->device_budget, 0);
}

static int32_t eval_max(const struct ps_session *s)
{
    if (s->opt->command == PS_CMD_EXPORT)
        return 1;
    if (s->opt->command == PS_CMD_GENERATE) {
        int prompts = s->opt->prompt_count;
        return prompts < 1 ? 1 : prompts < EVAL_GROUP_MAX ? prompts : EVAL_GROUP_MAX;
    }
    uint64_t rows = s->eval_data.row_count;
    if (s->opt->command == PS_CMD_PLAN && !s->opt->data)
        return EVAL_GROUP_MAX; /* as if there were enough */
    return rows < 1 ? 1 : rows < EVAL_GROUP_MAX ? (int32_t)rows : EVAL_GROUP_MAX;
}

/* Of the options, what the planner is asked for. */
static void set_wishes(const struct ps_session *s, struct ps_planner_request *r)
{
    const struct ps_options *o = s->opt;
    r->strategy = o->strategy ? o->strategy : "auto";
    r->prefetch_depth = o->prefetch_depth;
    r->offload_weights = o->offload_weights;
    r->ablate = o->ablate;
    static const int wish[] = {[PS_ACT_AUTO] = -1,
                               [PS_ACT_KEEP] = PS_TIER_HOST,
                               [PS_ACT_RECOMPUTE] = PS_PLAN_RECOMPUTE,
                               [PS_ACT_DEVICE] = PS_TIER_DEVICE,
                               [PS_ACT_DISK] = PS_TIER_DISK};
    r->offload_activations = wish[o->offload_activations];
    r->offload_optimizer = o->offload_optimizer;
    r->write_limit = o->nvme_write_limit > 0 ? (uint64_t)o->nvme_write_limit : 0;
    r->clip = s->trainer_options.clip_mode;
    r->clip_share = o->expected_clipping;
    if (o->command != PS_CMD_TRAIN && o->command != PS_CMD_PLAN)
        r->offload_activations = -1;
}

/* Elements of the factors that tokens are multiplied by, trained or not: those of A and B, twice of
 * methods with a frozen pair. What is trained whole, and vectors, are not products. */
static double adapter_factors(const struct ps_session *s)
{
    double sum = 0;
    for (size_t i = 0; i < ps_site_count(s->cfg.n_layer); i++) {
        int32_t layer;
        enum ps_role role;
        ps_site_at(s->cfg.n_layer, i, &layer, &role);
        const struct ps_adapter_site *site = ps_trainer_site(s->trainer, layer, role);
        if (!site)
            continue;
        /* of an embedding A is looked up */
        for (int32_t k = role == PS_ROLE_EMBED ? 1 : 0; k < site->tensor_count; k++) {
            const struct ps_adapter_entry *e =
                ps_trainer_adapter_at(s->trainer, (size_t)site->entry[k]);
            double rows = (double)(e->shape[0] < site->out ? e->shape[0] : site->out);
            double cols = (double)(e->shape[1] < site->in ? e->shape[1] : site->in);
            sum += e->rank == 2 ? rows * cols : 0;
        }
    }
    return sum;
}

int ps__planner_request(struct ps_session *s, struct ps_planner_request *r,
                        struct ps_profile *profile, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    memset(r, 0, sizeof *r);
    int ret = ps__profile_find(o, profile, &s->profile_where, err);
    if (ret < 0)
        return ret;
    r->shape = ps_trainer_shape(s->trainer);
    r->profile = profile;
    r->discrete = ps_options_discrete(o);
    r->tokens = s->trainer_options.n_tok_max;
    r->micro_count = s->trainer_options.micro_max > 0 ? s->trainer_options.micro_max : 1;
    r->micro_count *= r->shape->zeroth ? 2 : 1; /* at both points */
    r->eval_max = eval_max(s);
    r->cost = (struct ps_cost_query){
        .dtype = s->trainer_options.dtype, .discrete = r->discrete, .sustained = true};
    bool full = s->trainer_options.mode == PS_MODE_FULL;
    double adapter = adapter_factors(s) / s->cfg.n_layer;
    ps_cost_query_model(&r->cost, &s->cfg, r->tokens, s->trainer_options.position_max, adapter,
                        full);
    memcpy(r->cost.throttle, o->throttle, sizeof r->cost.throttle);
    r->cost.decode_rate = ps__import_needs(s).decode_rate;
    r->cost.decode_share = ps__import_needs(s).decode_share;
    set_budgets(s, r);
    set_wishes(s, r);
    return 0;
}

/* In words and numbers of the user's budgets. */
static int no_fit(struct ps_session *s, const struct ps_planner_request *r, struct ps_error *err)
{
    const struct ps_plan *p = &s->chosen;
    uint64_t arena = (p->device_bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    uint64_t host = (p->host_bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    s->device_need = r->discrete ? arena + s->cuda.reserved_bytes : 0;
    s->host_need = s->process_bytes + (r->discrete ? host : arena);
    bool train = s->opt->command == PS_CMD_TRAIN || s->opt->command == PS_CMD_PLAN;
    bool new_lora = train && s->trainer_options.mode == PS_MODE_ADAPTER && !s->opt->adapter;
    const char *advice =
        new_lora ? "raise the budget, or lower --max-seq-len, --batch-size or --lora-r, or adapt "
                   "fewer linears (--lora-target attn)"
        : train  ? "raise the budget, or lower --max-seq-len or --batch-size"
                 : "raise the budget, or lower --max-seq-len";
    if (r->discrete && s->device_need > s->device_budget && s->device_limited)
        return ps_error_full(err, PS_ENOFIT, NULL, "gpu-mem",
                             "end what else uses the card (nvidia-smi lists it), or lower "
                             "--max-seq-len or --batch-size",
                             "this needs %.0f MiB of device memory and only %.0f MiB can be had on "
                             "this card now",
                             (double)s->device_need / 1048576.0,
                             (double)s->device_budget / 1048576.0);
    if (r->discrete && s->device_need > s->device_budget)
        return ps_error_full(err, PS_ENOFIT, NULL, "gpu-mem", advice,
                             "this needs %.0f MiB of device memory and the budget is %.0f MiB; the "
                             "smallest sufficient budget is --gpu-mem %" PRIu64 "MiB",
                             (double)s->device_need / 1048576.0,
                             (double)s->device_budget / 1048576.0,
                             (s->device_need + 1048575) >> 20);
    if (s->host_need > s->host_budget)
        return ps_error_full(err, PS_ENOFIT, NULL, "host-mem", advice,
                             "this needs %.0f MiB of host memory and the budget is %.0f MiB; the "
                             "smallest sufficient budget is --host-mem %" PRIu64 "MiB",
                             (double)s->host_need / 1048576.0, (double)s->host_budget / 1048576.0,
                             (s->host_need + BUDGET_MARGIN_BYTES + 1048575) >> 20);
    if (p->disk_bytes > r->disk_budget)
        return ps_error_full(
            err, PS_ENOFIT, NULL, "nvme-mem",
            "raise the budget, free space on the disk, or give more memory",
            "this needs %.0f MiB on the disk and %.0f MiB may be used; the smallest sufficient "
            "budget is --nvme-mem %" PRIu64 "MiB",
            (double)p->disk_bytes / 1048576.0, (double)r->disk_budget / 1048576.0,
            (p->disk_bytes + 1048575) >> 20);
    return err->code;
}

/* A plan's file that is not there is a wrong flag, not a wrong file. */
static int missing_is_usage(int ret, const char *option, struct ps_error *err)
{
    if (ret != -ENOENT && ret != -ENOTDIR && ret != -EISDIR && ret != -EACCES)
        return ret;
    err->code = PS_EUSAGE;
    return ps_error_field(err, PS_EUSAGE, option);
}

/* Such runs have the store from the beginning. */
static bool updates_streamed(const struct ps_session *s)
{
    return ps_trainer_shape(s->trainer)->trains && s->chosen.layout.update != PS_UPDATE_RESIDENT;
}

int ps__layout_choose(struct ps_session *s, struct ps_error *err)
{
    struct ps_planner_request r;
    struct ps_profile *profile = malloc(sizeof *profile);
    struct ps_step_layout placed = {0};
    if (!profile)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps__planner_request(s, &r, profile, err);
    if (ret == 0 && s->opt->placement) {
        ret = ps_placement_load(&placed, s->opt->placement, r.shape, r.discrete, err);
        ret = missing_is_usage(ret, "placement", err);
        r.placement = ret == 0 ? &placed : NULL;
    }
    if (ret == 0 && r.placement && (r.ablate & PS_ABLATE_LAYER_MAJOR) && placed.group > 1)
        ps_log(&s->log, PS_LOG_INFO, "--ablate layer-major: group 1 in place of the placement's %d",
               placed.group);
    if (ret == 0)
        ret = ps_planner_choose(&s->chosen, &r, err);
    if (ret == 0 && s->opt->serial && s->chosen.serial_s > 0) { /* what was asked for is that */
        s->chosen.tokens_per_s *= s->chosen.step_s / s->chosen.serial_s;
        s->chosen.step_s = s->chosen.serial_s;
    }
    if (ret == PS_ENOFIT)
        ret = no_fit(s, &r, err);
    ps_step_layout_fini(&placed);
    free(profile);
    if (ret < 0)
        return ret;
    ret = ps_trainer_set_layout(s->trainer, &s->chosen.layout, err);
    if (ret < 0)
        return ret;
    if (ps_trainer_map(s->trainer)->stream_count == 0) { /* nothing is read, nothing copied */
        s->process_bytes -= s->ram_copy_bytes;
        s->ram_copy_bytes = 0;
    }
    uint64_t near = ps_trainer_bytes(s->trainer, PS_TIER_DEVICE);
    s->device_need = r.discrete ? near + s->cuda.reserved_bytes : 0;
    s->host_need =
        s->process_bytes + (r.discrete ? ps_trainer_bytes(s->trainer, PS_TIER_HOST) : near);
    s->disk_need = ps_trainer_bytes(s->trainer, PS_TIER_DISK) + ps__import_needs(s).disk_bytes;
    if (updates_streamed(s))
        s->disk_need += ps__store_bytes(s);
    return ps__space_check(s, err);
}

int ps__schedule_import(struct ps_session *s, struct ps_error *err)
{
    struct ps_schedule read[PS_SEGMENT_COUNT];
    size_t count;
    const char *path = s->opt->schedule;
    if (!path)
        return 0;
    int ret = ps_schedule_import_set(read, PS_SEGMENT_COUNT, &count, path, err);
    if (ret < 0)
        return missing_is_usage(ret, "schedule", err);
    for (size_t i = 0; i < count; i++) {
        int segment = 0;
        while (strcmp(read[i].name, ps_segment_name((enum ps_segment)segment)) != 0)
            segment++;
        if (ret == 0)
            ret = ps_trainer_import_schedule(s->trainer, (enum ps_segment)segment, &read[i], path,
                                             err);
        else
            ps_schedule_fini(&read[i]);
    }
    return ret;
}

int ps__schedule_export(struct ps_session *s, const char *path, struct ps_error *err)
{
    const struct ps_schedule *all[PS_SEGMENT_COUNT];
    size_t count = 0;
    for (int i = 0; i < PS_SEGMENT_COUNT; i++) {
        const struct ps_schedule *x = ps_trainer_schedule(s->trainer, (enum ps_segment)i);
        if (x->task_count > 0)
            all[count++] = x;
    }
    return ps_schedule_export_set(all, count, path, err);
}

/* The plan's lines, by class and tier. */
void ps__layout_describe(struct ps_session *s)
{
    static const struct {
        const char *name;
        enum ps_step_buffer buffer[5];
        int count;
    } line[] = {
        {"weights", {PS_BUF_PINNED, PS_BUF_SLOTS, PS_BUF_RAW, PS_BUF_HOST_UNITS}, 4},
        {"adapter", {PS_BUF_ADAPTER}, 1},
        {"gradients", {PS_BUF_GRAD, PS_BUF_GRAD_HOST}, 2},
        {"perturbed weights", {PS_BUF_PERTURBED, PS_BUF_PERTURBED_HOST}, 2},
        {"optimizer state", {PS_BUF_STATE, PS_BUF_STATE_RING}, 2},
        {"activations", {PS_BUF_X, PS_BUF_DX, PS_BUF_SAVED, PS_BUF_HOST_X, PS_BUF_HOST_SAVED}, 5},
        {"key-value cache", {PS_BUF_CACHE, PS_BUF_LOGITS}, 2},
        {"workspace",
         {PS_BUF_SCRATCH, PS_BUF_HEAD_SCRATCH, PS_BUF_GEMM, PS_BUF_NORM, PS_BUF_WORKSPACE},
         5},
        {"batch", {PS_BUF_BATCH, PS_BUF_BATCH_HOST, PS_BUF_ROPE}, 3},
        {"host copy of the state", {PS_BUF_MIRROR}, 1},
        {"spill file", {PS_BUF_DISK_X, PS_BUF_DISK_GRAD, PS_BUF_DISK_SAVED}, 3}};
    const struct ps_step_map *m = ps_trainer_map(s->trainer);
    for (size_t i = 0; i < sizeof line / sizeof *line; i++) {
        for (int tier = 0; tier < PS_TIER_COUNT; tier++) {
            uint64_t bytes = 0;
            for (int k = 0; k < line[i].count; k++)
                if ((int)m->tier[line[i].buffer[k]] == tier)
                    bytes += m->bytes[line[i].buffer[k]];
            if (bytes == 0 || s->plan_count >= PS_PLAN_ITEM_MAX - 1)
                continue;
            bool host = tier == PS_TIER_DEVICE && !s->chosen.layout.discrete;
            s->plan[s->plan_count++] =
                (struct ps_plan_item){.name = line[i].name,
                                      .tier = host ? "host" : ps_tier_name((enum ps_tier)tier),
                                      .bytes = bytes};
        }
    }
    if (s->ram_copy_bytes > 0 && s->plan_count < PS_PLAN_ITEM_MAX - 1)
        s->plan[s->plan_count++] = (struct ps_plan_item){
            .name = "files in memory", .tier = "host", .bytes = s->ram_copy_bytes};
    if (updates_streamed(s) && s->plan_count < PS_PLAN_ITEM_MAX - 1)
        s->plan[s->plan_count++] = (struct ps_plan_item){
            .name = "spill store", .tier = "disk", .bytes = ps__store_bytes(s)};
    uint64_t import = ps__import_needs(s).disk_bytes;
    if (import > 0 && s->plan_count < PS_PLAN_ITEM_MAX - 1)
        s->plan[s->plan_count++] =
            (struct ps_plan_item){.name = "imported weights", .tier = "disk", .bytes = import};
    s->plan[s->plan_count++] = (struct ps_plan_item){
        .name = "process and data", .tier = "host", .bytes = s->process_bytes - s->ram_copy_bytes};
}
