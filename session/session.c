/* Opening and closing a session: see penstock.h.
 *
 * Order: model config, tokenizer, data, batches, then the plan against the budget, then memory and
 * weights, then adapter or checkpoint. Everything that can be wrong with the user's input is found
 * before memory is taken. */
#include "session/penstock.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "optim/adamw.h"
#include "optim/grad_clip.h"
#include "optim/optimizers.h"
#include "peft/adapter_blend.h"
#include "peft/adapter_config.h"
#include "peft/adapters.h"
#include "peft/targets.h"
#include "runtime/base/file.h"
#include "runtime/device/virtual_clock.h"
#include "runtime/train/trace.h"
#include "session/dataset_options.h"
#include "session/host_cores.h"
#include "session/options_internal.h"
#include "session/session_internal.h"

/* /proc/self/status. Called in every step: no stream, which would allocate. */
static void read_status(char *text, size_t size)
{
    size_t len = 0;
    ssize_t n = 1;
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && n > 0 && len < size - 1) {
        n = read(fd, text + len, size - 1 - len);
        len += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0)
        close(fd);
    text[len] = '\0';
}

/* A line of it, in bytes. */
static uint64_t status_bytes(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) * 1024 : 0;
}

/* Is the device's memory memory of this process? */
static bool emulates(const struct ps_session *s)
{
    return strcmp(s->trainer_options.device->name, "emu") == 0;
}

uint64_t ps__rss_bytes(const struct ps_session *s)
{
    char text[8192];
    read_status(text, sizeof text);
    uint64_t all = status_bytes(text, "\nVmRSS:");
    uint64_t shared = emulates(s) ? status_bytes(text, "\nRssShmem:") : 0;
    return all > shared ? all - shared : 0;
}

uint64_t ps__rss_peak_bytes(const struct ps_session *s)
{
    char text[8192];
    read_status(text, sizeof text);
    if (!emulates(s))
        return status_bytes(text, "\nVmHWM:");
    uint64_t now = ps__rss_bytes(s);
    return now > s->peak_rss ? now : s->peak_rss;
}

static bool is_command(const struct ps_session *s, enum ps_command c)
{
    return s->opt->command == c;
}

/* Training, or the plan of it. */
static bool trains(const struct ps_session *s)
{
    return is_command(s, PS_CMD_TRAIN) || is_command(s, PS_CMD_PLAN);
}

/* A plan without rows: sequences of --max-seq-len are assumed. */
static bool lacks_data(const struct ps_session *s)
{
    return is_command(s, PS_CMD_PLAN) && !s->opt->data;
}

static void add_eos(struct ps_session *s, int32_t id)
{
    for (int i = 0; i < s->eos_count; i++)
        if (s->eos[i] == id)
            return;
    if (id >= 0 && s->eos_count < PS_EOS_MAX + 1)
        s->eos[s->eos_count++] = id;
}

/* The tokenizer, unless the rows are token ids and the model has none. */
static int open_tokenizer(struct ps_session *s, struct ps_error *err)
{
    const char *format = s->opt->format;
    bool wanted = is_command(s, PS_CMD_GENERATE) || !format || strcmp(format, "tokens") != 0;
    char path[4096];
    if (!ps_path_join(path, sizeof path, s->opt->model, "tokenizer.json"))
        return ps_error_full(err, -ENAMETOOLONG, s->opt->model, "model", NULL, "path too long");
    if (is_command(s, PS_CMD_EXPORT) || lacks_data(s) || (!wanted && access(path, R_OK) != 0))
        return 0;
    int ret = ps_tokenizer_open(&s->tok, s->opt->model, err);
    if (ret < 0 && !wanted) {
        memset(err, 0, err ? sizeof *err : 0);
        return 0;
    }
    if (ret == -ENOENT)
        return ps_error_full(err, PS_EFORMAT, path, "model",
                             "copy the model's tokenizer.json there, or use --format tokens",
                             "the model directory has no tokenizer.json");
    return ret;
}

static int load_rows(struct ps_session *s, struct ps_dataset *ds, const char *path,
                     const char *split, struct ps_error *err)
{
    struct ps_dataset_options o;
    int ret = ps_dataset_options_from(&o, s->opt, path, split, err);
    if (ret < 0)
        return ret;
    o.vocab_size = s->cfg.vocab_size;
    o.eos_token_id = s->eos_count > 0 ? s->eos[0] : -1;
    o.log = &s->log;
    return ps_dataset_load(ds, &o, s->tok, err);
}

static int load_data(struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    if (is_command(s, PS_CMD_EVAL))
        return load_rows(s, &s->eval_data, o->data, "valid", err);
    int ret = load_rows(s, &s->data, o->data, "train", err);
    if (ret == 0 && o->eval_data)
        ret = load_rows(s, &s->eval_data, o->eval_data, "valid", err);
    else if (ret == 0 && o->val_split > 0)
        ret = ps_dataset_split(&s->data, &s->eval_data, o->val_split, o->seed, err);
    if (ret < 0)
        return ret;
    uint64_t tokens = s->data.row_begin[s->data.row_count];
    s->data_hash = XXH3_64bits(s->data.ids, tokens * sizeof(int32_t));
    s->data_hash = XXH3_64bits_withSeed(s->data.labels, tokens * sizeof(int32_t), s->data_hash);
    return 0;
}

static int make_batchers(struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    struct ps_batch_options b = {.batch_size = o->batch_size > 0 ? o->batch_size : 1,
                                 .grad_accum = 1,
                                 .max_seq_len = o->max_seq_len,
                                 .packing = o->packing,
                                 .seed = o->seed,
                                 .epochs = 1};
    if (s->eval_data.row_count > 0) {
        int ret = ps_batcher_create(&s->eval_batcher, &s->eval_data, &b, err);
        if (ret < 0)
            return ret;
    }
    if (s->data.row_count == 0)
        return 0;
    b.grad_accum = o->grad_accum;
    b.shuffle = o->shuffle;
    b.epochs = o->epochs;
    b.max_steps = (uint64_t)o->max_steps;
    return ps_batcher_create(&s->batcher, &s->data, &b, err);
}

/* Several adapters, or one with a weight, are merged without becoming the model's adapter. */
static bool blends(const struct ps_session *s)
{
    char word[4096];
    return is_command(s, PS_CMD_EXPORT) && s->opt->adapter &&
           (s->opt->weights || ps_options_list_item(s->opt->adapter, 1, word, sizeof word));
}

#define BLEND_MAX 16

static int open_blend(struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    char(*dir)[1024] = calloc(BLEND_MAX, sizeof *dir);
    const char *dirs[BLEND_MAX];
    double weight[BLEND_MAX];
    size_t count = 0;
    size_t weights = 0;
    int ret = dir ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0 && strcmp(o->format, "hf") != 0)
        ret = ps_error_full(err, PS_EUSAGE, NULL, "adapter", "merge them with `--format hf`",
                            "several adapters do not make one adapter directory");
    for (; ret == 0 && count < BLEND_MAX &&
           ps_options_list_item(o->adapter, count, dir[count], sizeof *dir);
         count++) {
        dirs[count] = dir[count];
        weight[count] = 1;
    }
    char word[64];
    for (; ret == 0 && ps_options_list_item(o->weights, weights, word, sizeof word); weights++) {
        char *end;
        double v = strtod(word, &end);
        if (end == word || *end || !isfinite(v))
            ret = ps_error_full(err, PS_EUSAGE, NULL, "weights", "as 0.7,0.3", "'%s' is no number",
                                word);
        if (weights < count)
            weight[weights] = v;
    }
    if (ret == 0 && weights > 0 && weights != count)
        ret = ps_error_full(err, PS_EUSAGE, NULL, "weights", "give one for each --adapter",
                            "%zu weights for %zu adapters", weights, count);
    if (ret == 0)
        ret = ps_adapter_blend_open(&s->blend, dirs, weight, count, &s->cfg,
                                    ps_trainer_params(s->trainer), err);
    free(dir);
    return ret;
}

/* "q_proj=8,down_proj=4" */
static int apply_patterns(struct ps_session *s, const char *text, bool is_alpha, const char *option,
                          struct ps_error *err)
{
    char word[512];
    size_t count = 0;
    while (ps_options_list_item(text, count, word, sizeof word))
        count++;
    /* backwards: of several that match the first counts, as in PEFT */
    for (size_t i = count; i-- > 0 && ps_options_list_item(text, i, word, sizeof word);) {
        char *eq = strrchr(word, '=');
        char *end = NULL;
        double value = eq ? strtod(eq + 1, &end) : 0;
        if (!eq || eq == word || end == eq + 1 || *end)
            return ps_error_full(err, PS_EUSAGE, NULL, option, "as q_proj=8,down_proj=4",
                                 "'%s' is not NAME=NUMBER", word);
        *eq = '\0';
        struct ps_pattern p = {.key = word, .value = value};
        int ret = ps_patterns_apply(s->site_config, s->cfg.n_layer, &p, 1, is_alpha, option, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Learning rate of an adapted embedding's tensors under LoRA+. */
#define LORAPLUS_EMBED_RATE 1e-6

static int adapter_of_options(struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    s->adapter_config = (struct ps_adapter_config){.method = ps_options_method(o),
                                                   .r = o->lora_r,
                                                   .alpha = o->lora_alpha,
                                                   .dropout = o->lora_dropout,
                                                   .use_rslora = o->use_rslora,
                                                   .seed = o->seed};
    PS_IGNORE(!ps_adapter_bias_find(&s->adapter_config.bias, o->lora_bias), "one of the choices");
    char word[64];
    for (size_t i = 0; ps_options_list_item(o->modules_to_save, i, word, sizeof word); i++) {
        if (strcmp(word, "lm_head") == 0)
            s->adapter_config.save_head = true;
        else if (strcmp(word, "embed_tokens") == 0)
            s->adapter_config.save_embed = true;
        else
            return ps_error_full(err, PS_EUSAGE, NULL, "modules-to-save",
                                 "choose lm_head, embed_tokens or both",
                                 "'%s' cannot be trained beside an adapter", word);
    }
    for (size_t i = 0; i < ps_site_count(s->cfg.n_layer); i++)
        s->site_config[i] = s->adapter_config;
    int ret = ps_targets_select(s->site_on, &s->cfg, o->lora_target, o->lora_layers, err);
    if (ret == 0)
        ret = apply_patterns(s, o->rank_pattern, false, "lora-rank-pattern", err);
    return ret < 0 ? ret : apply_patterns(s, o->alpha_pattern, true, "lora-alpha-pattern", err);
}

static int adapter_of_dir(struct ps_session *s, bool train, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    struct ps_adapter_config *c = &s->adapter_config;
    int ret = ps_adapter_dir_config(o->adapter, &s->cfg, c, s->site_on, s->site_config, err);
    if (ret < 0 || !train)
        return ret;
    bool freezes = strcmp(c->method, "lora") == 0 && strcmp(o->method, "lora-fa") == 0;
    if (freezes)
        c->method = "lora-fa";
    if (ps_options_given(o, "method") && strcmp(c->method, o->method) != 0)
        return ps_error_full(err, PS_EUSAGE, o->adapter, "method", "leave `--method` out",
                             "the adapter's method is %s, not %s", c->method, o->method);
    for (size_t i = 0; i < ps_site_count(s->cfg.n_layer); i++)
        if (ps_options_given(o, "lora-dropout"))
            s->site_config[i].dropout = o->lora_dropout;
    if (ps_options_given(o, "lora-dropout"))
        c->dropout = o->lora_dropout;
    return 0;
}

/* Which method, where: from --adapter when given, else from the options. */
static int choose_method(struct ps_session *s, struct ps_trainer_options *t, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    bool train = trains(s);
    size_t layers = (size_t)s->cfg.n_layer;
    if (train && strcmp(o->method, "full") == 0) {
        t->mode = PS_MODE_FULL;
        if (!o->train_layers || strcmp(o->train_layers, "all") == 0)
            return 0;
        s->layer_on = calloc(layers, sizeof *s->layer_on);
        if (!s->layer_on)
            return ps_error_set(err, -ENOMEM, "out of memory");
        t->layer_on = s->layer_on;
        return ps_layers_parse(s->layer_on, s->cfg.n_layer, o->train_layers, "train-layers", err);
    }
    t->mode = train ? PS_MODE_ADAPTER : PS_MODE_NONE;
    if ((!train && !o->adapter) || blends(s))
        return 0;
    s->site_on = calloc(ps_site_count(s->cfg.n_layer), sizeof *s->site_on);
    s->site_config = calloc(ps_site_count(s->cfg.n_layer), sizeof *s->site_config);
    if (!s->site_on || !s->site_config)
        return ps_error_set(err, -ENOMEM, "out of memory");
    t->site_on = s->site_on;
    t->site_config = s->site_config;
    s->adapter_config.seed = o->seed;
    /* a commit holds what is trained; what a method keeps frozen is made anew */
    t->adapter_loaded =
        o->adapter || (o->resume && ps__checkpoint_newest(s) >= 0 && !ps__store_named(s));
    int ret = o->adapter ? adapter_of_dir(s, train, err) : adapter_of_options(s, err);
    s->adapter_config.rate_ratio = train ? o->loraplus_ratio : 1;
    if (train && o->loraplus_ratio > 1 && o->learning_rate > 0) /* as PEFT's LoRA+ */
        s->adapter_config.embed_rate = LORAPLUS_EMBED_RATE / o->learning_rate;
    t->adapter = ret == 0 ? ps_adapter_find(s->adapter_config.method) : NULL;
    t->adapter_config = s->adapter_config;
    if (ret == 0 && !t->adapter)
        ret = ps_error_full(err, PS_EUSAGE, NULL, "method", "see penstock list adapters",
                            "unknown method '%s'", s->adapter_config.method);
    return ret;
}

static bool clip(const double *partial, size_t count, double max_norm, double *norm, float *coef)
{
    struct ps_grad_clip c;
    ps_grad_clip(&c, partial, count, max_norm);
    *norm = c.norm;
    *coef = c.coef;
    return c.finite;
}

static double lr_at(const void *arg, uint64_t completed)
{
    return ps_lr_at((const struct ps_lr_schedule *)arg, completed);
}

static int32_t at_least(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* Are there weights, or is the configuration all that a plan can go by? */
static bool has_weights(const char *dir)
{
    static const char *const name[] = {"model.safetensors", "model.safetensors.index.json"};
    char path[4096];
    for (int i = 0; i < 2; i++)
        if (ps_path_join(path, sizeof path, dir, name[i]) && access(path, F_OK) == 0)
            return true;
    return false;
}

/* Tokens of a document that a plan without rows makes room for. */
#define PLAN_DOC_TOKENS 32

static bool is(const char *a, const char *b)
{
    return a && strcmp(a, b) == 0;
}

/* A plan is made as if for `emu`, whose memory is counted alike: of this machine's card, where
 * there is one and no other machine is meant. */
static void plan_device(struct ps_session *s, struct ps_trainer_options *t)
{
    struct ps_error ignored = {0};
    const struct ps_cuda_plugin *card = NULL;
    if (is(s->opt->device, "cuda"))
        card = ps_cuda_plugin_load(NULL);
    else if (is(s->opt->device, "auto"))
        card = ps_cuda_plugin_auto(NULL);
    if (card && !s->opt->hardware && card->probe(&s->cuda, &ignored) < 0)
        memset(&s->cuda, 0, sizeof s->cuda);
    t->device = ps_device_find(ps_options_discrete(s->opt) ? "emu" : "cpu");
}

/* Where it runs. */
static int choose_device(struct ps_session *s, struct ps_trainer_options *t, struct ps_error *err)
{
    char why[256] = "";
    bool automatic = !is_command(s, PS_CMD_EXPORT) && is(s->opt->device, "auto");
    bool named = is(s->opt->device, "cuda");
    if (is_command(s, PS_CMD_PLAN)) {
        plan_device(s, t);
        return 0;
    }
    t->cuda = automatic ? ps_cuda_plugin_auto(why) : named ? ps_cuda_plugin_load(why) : NULL;
    if (!t->cuda && !named) {
        t->device = ps_device_find(ps_options_discrete(s->opt) ? "emu" : "cpu");
        if (automatic)
            ps_log(&s->log, PS_LOG_INFO, "device cpu: %s", why);
        return 0;
    }
    if (!t->cuda)
        return ps_error_full(err, PS_EUSAGE, NULL, "device", "use --device cpu",
                             "there is no CUDA device to run on: %s", why);
    int ret = t->cuda->probe(&s->cuda, err);
    if (ret < 0)
        return ps_error_field(err, ret, "device");
    t->device = t->cuda->device;
    ps_log(&s->log, PS_LOG_INFO, "CUDA device %s, %.1f of %.1f GiB free%s", s->cuda.name,
           (double)s->cuda.free_bytes / 0x1p30, (double)s->cuda.total_bytes / 0x1p30,
           t->cuda->emulated ? " (emulated)" : "");
    return 0;
}

/* --delay-seed: every task is late by up to so much. */
#define TASK_DELAY_NS ((uint64_t)2000000)

static int trainer_options(struct ps_session *s, struct ps_trainer_options *t, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    memset(t, 0, sizeof *t);
    t->model_dir = o->model;
    t->dtype = (enum ps_dtype)o->dtype;
    if (is_command(s, PS_CMD_EXPORT))
        t->dtype = PS_DTYPE_F32; /* keeps the weights as they are in the files */
    t->isa = s->isa;
    t->thread_count = s->thread_count;
    t->seed = o->seed;
    t->drop_unlabelled = trains(s) && o->drop_unlabelled && strcmp(o->optimizer, "mezo") != 0;
    ps__optimizer_hyper(o, &t->hyper);
    t->hyper.n_layer = s->cfg.n_layer;
    if (trains(s) && o->beta2_half_life > 0)
        t->hyper.beta2 = ps__beta2_by_half_life(s);
    t->hyper.thread_count = s->thread_count;
    t->max_grad_norm = o->clip && strcmp(o->clip, "none") == 0 ? 0 : o->max_grad_norm;
    t->clip_mode = ps__clip_mode(o);
    t->run_state = ps__run_state;
    t->run_state_arg = s;
    t->grad_sink = o->dump_grads ? ps__keep_grad : NULL;
    t->grad_sink_arg = s;
    t->clip = clip;
    t->lr_at = lr_at;
    t->lr_arg = &s->schedule;
    t->master_split = ps_master_split;
    t->master_join = ps_master_join;
    t->log = &s->log;
    int ret = choose_device(s, t, err);
    if (ret < 0)
        return ret;
    t->micro_max = o->grad_accum > 0 ? o->grad_accum : 1;
    memcpy(t->throttle, o->throttle, sizeof t->throttle);
    t->serial = o->serial;
    t->delay_seed = o->delay_seed;
    t->delay_max_ns = o->delay_seed ? TASK_DELAY_NS : 0;
    ps_session_io_fill(s->io, &t->io);
    if (is_command(s, PS_CMD_TRAIN) && o->output) {
        char path[4096];
        if (!ps_path_join(path, sizeof path, o->output, "base.checksums"))
            return ps_error_full(err, -ENAMETOOLONG, o->output, "output", NULL,
                                 "the path is too long");
        s->checksum_path = strdup(path);
        if (!s->checksum_path)
            return ps_error_set(err, -ENOMEM, "out of memory");
    }
    t->io.checksum_path = s->checksum_path;
    t->optimizer = o->optimizer ? ps_optimizer_find(o->optimizer) : NULL;
    if (trains(s) && !t->optimizer)
        return ps_error_full(err, PS_EUSAGE, NULL, "optimizer", "see penstock list optimizers",
                             "unknown optimizer '%s'", o->optimizer ? o->optimizer : "");
    if (trains(s) && o->ema_decay > 0)
        t->optimizer =
            t->optimizer->perturb ? &ps_weight_average_zeroth_ops : &ps_weight_average_ops;
    t->n_tok_max = 1;
    t->doc_max = 1;
    t->position_max = 1;
    const struct ps_batcher *b[] = {s->batcher, s->eval_batcher};
    const struct ps_dataset *d[] = {&s->data, &s->eval_data};
    for (int i = 0; i < 2; i++) {
        if (!b[i])
            continue;
        t->n_tok_max = at_least(t->n_tok_max, ps_batcher_tok_max(b[i]));
        t->doc_max = at_least(t->doc_max, ps_batcher_doc_max(b[i]));
        for (uint64_t r = 0; r < d[i]->row_count; r++)
            t->position_max =
                at_least(t->position_max, (int32_t)(d[i]->row_begin[r + 1] - d[i]->row_begin[r]));
    }
    t->plan_only = is_command(s, PS_CMD_PLAN) && !has_weights(o->model);
    if (lacks_data(s)) {
        if ((int64_t)o->batch_size * o->max_seq_len > INT32_MAX / 2)
            return ps_error_full(err, PS_EUSAGE, NULL, "max-seq-len", "lower it or --batch-size",
                                 "a micro-batch of %d x %d tokens is too large", o->batch_size,
                                 o->max_seq_len);
        t->n_tok_max = o->batch_size * o->max_seq_len;
        t->doc_max = t->n_tok_max / PLAN_DOC_TOKENS + o->batch_size;
        t->position_max = o->max_seq_len;
    }
    if (is_command(s, PS_CMD_GENERATE)) {
        t->n_tok_max = s->context_max;
        t->position_max = s->context_max;
        t->cache_tok_max = s->context_max;
    }
    return choose_method(s, t, err);
}

static void warn_long(const struct ps_session *s, int32_t position_max)
{
    if (s->cfg.max_position_embeddings > 0 && position_max > s->cfg.max_position_embeddings)
        ps_log(&s->log, PS_LOG_WARN,
               "sequences of %d tokens are longer than the %d that the model was made for "
               "(max_position_embeddings)",
               position_max, s->cfg.max_position_embeddings);
}

/* 8-bit states are for large matrices; with none of them the choice would have no effect. */
static int check_states(const struct ps_session *s, struct ps_error *err)
{
    if (!trains(s) || s->trainer_options.hyper.state_dtype != PS_DTYPE_U8)
        return 0;
    for (size_t i = 0; i < ps_trainer_trainable_count(s->trainer); i++) {
        const struct ps_opt_layout *l = &ps_trainer_trainable(s->trainer, i)->layout;
        for (int k = 0; k < l->state_count; k++)
            if (l->state[k].dtype == PS_DTYPE_U8)
                return 0;
    }
    return ps_error_full(err, PS_EUSAGE, NULL, "optimizer", "use --optimizer adamw",
                         "`--optimizer %s` has no effect: no trained matrix of a layer has the "
                         "4096 elements that 8-bit states are for",
                         s->opt->optimizer);
}

/* Shape of a step, then the layout that the budgets allow. */
static int plan(struct ps_session *s, struct ps_error *err)
{
    int ret = ps_session_io_create(&s->io, s->opt, &s->log, err);
    if (ret == 0)
        ret = trainer_options(s, &s->trainer_options, err);
    if (ret < 0)
        return ret;
    warn_long(s, s->trainer_options.position_max);
    ret = ps_trainer_create(&s->trainer, &s->trainer_options, err);
    if (ret == 0)
        ret = check_states(s, err);
    if (ret == 0)
        ret = ps__layout_choose(s, err);
    return ret < 0 ? ret : ps__import_choose(s, err);
}

/* What --schedule and --placement of train can take. */
static int export_plan(struct ps_session *s, struct ps_error *err)
{
    int ret = 0;
    if (s->opt->export_placement)
        ret = ps_placement_save(ps_trainer_layout(s->trainer), ps_trainer_shape(s->trainer),
                                s->opt->export_placement, err);
    if (ret == 0 && s->opt->export_schedule)
        ret = ps__schedule_export(s, s->opt->export_schedule, err);
    return ret;
}

/* --emu-clock virtual: time is what the cost model says. */
static int make_clock(struct ps_session *s, struct ps_error *err)
{
    if (!s->opt->emu_clock || strcmp(s->opt->emu_clock, "virtual") != 0)
        return 0;
    if (ps_vclock_create(&s->clock, &s->chosen.cost) < 0)
        return ps_error_set(err, -ENOMEM, "out of memory");
    ps_trainer_set_clock(s->trainer, s->clock);
    return 0;
}

static int allocate(struct ps_session *s, struct ps_error *err)
{
    ps__layout_describe(s);
    if (s->batcher) {
        s->history_capacity =
            (size_t)(ps_batcher_step_count(s->batcher) /
                     (uint64_t)(s->opt->logging_steps > 0 ? s->opt->logging_steps : 1)) +
            2;
        s->history = calloc(s->history_capacity, sizeof *s->history);
        if (!s->history)
            return ps_error_set(err, -ENOMEM, "out of memory");
    }
    if (is_command(s, PS_CMD_PLAN) || (is_command(s, PS_CMD_TRAIN) && s->opt->dry_run))
        return export_plan(s, err);
    int ret = ps__schedule_import(s, err);
    if (ret == 0)
        ret = make_clock(s, err);
    if (ret == 0 && is_command(s, PS_CMD_TRAIN))
        ret = ps__store_open(s, err);
    if (ret == 0)
        ret = ps_trainer_commit(s->trainer, err);
    if (ret == 0 && blends(s))
        return open_blend(s, err);
    if (ret == 0 && s->opt->adapter)
        ret = ps_adapter_dir_load(s->opt->adapter, s->trainer, err);
    if (ret == 0 && s->opt->adapter)
        ret = ps_trainer_push(s->trainer, err);
    return ret;
}

static int open_parts(struct ps_session *s, struct ps_error *err)
{
    const struct ps_options *o = s->opt;
    bool train = is_command(s, PS_CMD_TRAIN);
    int ret = ps_model_config_load(&s->cfg, o->model, err);
    if (ret == -ENOENT || ret == -ENOTDIR)
        return ps_error_advice(err, ret, "--model takes a Hugging Face model directory");
    if (ret < 0)
        return ret;
    if (train && !o->resume && !o->dry_run)
        ret = ps__output_check(s, err);
    if (ret == 0)
        ret = open_tokenizer(s, err);
    if (ret < 0)
        return ret;
    s->context_max = o->max_seq_len;
    int32_t made_for = s->cfg.max_position_embeddings;
    if (!ps_options_given(o, "max-seq-len") && made_for > 0 && made_for < s->context_max)
        s->context_max = made_for;
    if (s->tok)
        add_eos(s, ps_tokenizer_special_id(s->tok, "eos_token"));
    for (int i = 0; i < s->cfg.eos_count; i++)
        add_eos(s, s->cfg.eos_token_id[i]);
    if (is_command(s, PS_CMD_EVAL) || (trains(s) && !lacks_data(s)))
        ret = load_data(s, err);
    if (ret == 0)
        ret = make_batchers(s, err);
    if (ret == 0 && s->batcher)
        ret = ps__schedule_make(s, err);
    if (ret == 0)
        ret = plan(s, err);
    if (ret == 0 && o->command == PS_CMD_TRAIN) {
        s->config_text = ps_options_to_yaml(o);
        if (!s->config_text)
            ret = ps_error_set(err, -ENOMEM, "out of memory");
    }
    if (ret == 0)
        ret = allocate(s, err);
    if (ret == 0 && o->command == PS_CMD_TRAIN && o->resume && !o->dry_run)
        ret = ps__checkpoint_load(s, o->resume, err);
    if (ret > 0)
        ret = ps__store_after_load(s, err);
    return ret < 0 ? ret : 0;
}

/* A path that the user gave and that is not there is bad input, not a failure of the machine. */
static int as_input_error(int ret, struct ps_error *err)
{
    if (ret != -ENOENT && ret != -ENOTDIR && ret != -EISDIR && ret != -ELOOP)
        return ret;
    err->code = PS_EDATA;
    return PS_EDATA;
}

int ps__session_open(struct ps_session **out, const struct ps_options *opt,
                     const struct ps_log *log, struct ps_error *err)
{
    *out = NULL;
    struct ps_session *s = calloc(1, sizeof *s);
    if (!s)
        return ps_error_set(err, -ENOMEM, "out of memory");
    *out = s;
    s->opt = opt;
    if (log)
        s->log = *log;
    s->isa = ps_isa_detect();
    if (opt->isa >= 0 && opt->isa < (int)s->isa)
        s->isa = (enum ps_isa)opt->isa;
    s->thread_count = opt->threads > 0 ? opt->threads : ps_host_core_count();
    s->best_eval = (double)INFINITY;
    s->last_eval_loss = (double)NAN;
    return as_input_error(open_parts(s, err), err);
}

int ps_session_open(struct ps_session **out, const struct ps_options *opt, const struct ps_log *log,
                    struct ps_error *err)
{
    struct ps_error local;
    if (!err)
        err = &local;
    memset(err, 0, sizeof *err);
    struct ps_session *s;
    int ret = ps__session_open(&s, opt, log, err);
    if (ret < 0)
        ps_session_close(s);
    else
        *out = s;
    return ret;
}

void ps_session_close(struct ps_session *s)
{
    if (!s)
        return;
    if (s->metrics)
        fclose(s->metrics);
    ps_trace_discard(s->trace);
    free(s->predicted);
    for (size_t i = 0; s->dumped && i < ps_trainer_trainable_count(s->trainer); i++)
        free(s->dumped[i]);
    free(s->dumped);
    ps_trainer_destroy(s->trainer);
    ps__store_close(s);
    ps_vclock_destroy(s->clock);
    ps__import_destroy(s->import);
    ps_session_io_destroy(s->io);
    ps_plan_fini(&s->chosen);
    free(s->checksum_path);
    ps_batcher_destroy(s->batcher);
    ps_batcher_destroy(s->eval_batcher);
    ps_dataset_fini(&s->data);
    ps_dataset_fini(&s->eval_data);
    ps_encoding_fini(&s->enc);
    ps_tokenizer_close(s->tok);
    ps_adapter_blend_destroy(s->blend);
    free(s->site_on);
    free(s->site_config);
    free(s->layer_on);
    free(s->lr_table);
    free(s->history);
    free(s->config_text);
    free(s);
}

static bool recomputes(const struct ps_session *s)
{
    const struct ps_step_shape *p = ps_trainer_shape(s->trainer);
    for (int32_t l = p->first_trained; p->trains && l < p->n_layer; l++)
        if (s->chosen.layout.recompute[l] != PS_RECOMPUTE_R0)
            return true;
    return false;
}

void ps_session_info(const struct ps_session *s, struct ps_session_info *out)
{
    static const char *const loss_name[] = {"auto", "assistant", "completion", "all"};
    const struct ps_dataset *d = s->data.row_count ? &s->data : &s->eval_data;
    bool rows = d->row_count > 0;
    *out = (struct ps_session_info){
        .model_type = s->cfg.model_type,
        .method = s->opt->method ? ps_options_method(s->opt) : "none",
        .optimizer = s->opt->optimizer ? s->opt->optimizer : "none",
        .data_path = rows ? d->path : "",
        .data_format = rows ? ps_data_format_name(d->format) : "",
        .loss_on = rows ? loss_name[d->loss_on] : "",
        .parameters = ps_trainer_params(s->trainer)->elements,
        .trainable_parameters = trains(s) ? ps_trainer_trainable_elements(s->trainer) : 0,
        .step_count = s->batcher ? ps_batcher_step_count(s->batcher) : 0,
        .step = s->step,
        .rows = d->row_count,
        .rows_dropped = d->rows_dropped + d->rows_unlabelled,
        .rows_truncated = d->rows_truncated,
        .eval_rows = s->eval_data.row_count,
        .tokens_per_epoch = d->token_count,
        .labels_per_epoch = d->label_count,
        .dropped_per_epoch =
            s->trainer_options.drop_unlabelled ? ps_batch_unlabelled_tokens(&s->data) : 0,
        .packing_efficiency = s->batcher ? ps_batcher_packing_efficiency(s->batcher) : 0,
        .threads = s->thread_count,
        .isa = ps_isa_name(s->isa),
        .recompute = recomputes(s),
        .strategy = s->chosen.layout.strategy,
        .plan_note = s->chosen.why,
        .device_bytes = s->device_need,
        .device_budget = s->device_budget,
        .disk_bytes = s->disk_need,
        .predicted_step_s = s->chosen.step_s,
        .device = s->trainer_options.device->name,
        .disk_budget = s->opt->nvme_mem < 0 ? 0 : (uint64_t)s->opt->nvme_mem,
        .host_bytes = s->host_need,
        .host_budget = s->host_budget,
        .plan = s->plan,
        .plan_count = s->plan_count,
    };
}

void ps_session_request_stop(struct ps_session *s, int signal_number)
{
    atomic_store_explicit(&s->stop_signal, signal_number, memory_order_relaxed);
}

void ps_session_request_save(struct ps_session *s)
{
    atomic_store_explicit(&s->save_wanted, 1, memory_order_relaxed);
}
