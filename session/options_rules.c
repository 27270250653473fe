/* Combinations of options: what is required, what has no effect, defaults that depend on the mode.
 */
#include "session/options_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/dtype.h"
#include "runtime/data/chat_template.h"
#include "runtime/train/step.h"
#include "session/bench.h"
#include "session/catalog.h"

static bool is(const char *value, const char *choice)
{
    return value && !strcmp(value, choice);
}

/* plan is train without the run */
static bool trains(const struct ps_options *o)
{
    return o->command == PS_CMD_TRAIN || o->command == PS_CMD_PLAN;
}

static bool trains_full(const struct ps_options *o)
{
    return trains(o) && is(o->method, "full");
}

static bool trains_lora(const struct ps_options *o)
{
    return trains(o) && !is(o->method, "full");
}

static bool trains_adapter_but(const struct ps_options *o, const char *names)
{
    if (!trains_lora(o))
        return false;
    const char *method = ps_options_method(o);
    size_t n = strlen(method);
    for (const char *at = strstr(names, method); at; at = strstr(at + 1, method))
        if ((at == names || at[-1] == ' ') && (at[n] == ' ' || !at[n]))
            return false;
    return true;
}

static bool has_no_rank(const struct ps_options *o)
{
    return trains_adapter_but(o, "lora lora-fa dora pissa olora nlora slora inttune vera");
}

static bool has_no_alpha(const struct ps_options *o)
{
    return trains_adapter_but(o, "lora lora-fa dora pissa olora nlora slora inttune");
}

static bool has_no_dropout(const struct ps_options *o)
{
    return trains_adapter_but(o, "lora lora-fa dora pissa olora nlora slora inttune vera");
}

static bool has_no_linears(const struct ps_options *o)
{
    return trains_adapter_but(o, "lora lora-fa dora pissa olora nlora slora inttune vera ia3");
}

static bool has_one_rate(const struct ps_options *o)
{
    return trains_adapter_but(o, "lora dora pissa olora nlora slora");
}

static bool is_not_lora(const struct ps_options *o)
{
    return trains(o) && !is(o->method, "lora");
}

static bool starts_otherwise(const struct ps_options *o)
{
    return trains(o) && o->use_dora && !is(o->init, "default");
}

static bool continues_adapter(const struct ps_options *o)
{
    return trains(o) && o->adapter;
}

static bool rounds_nothing(const struct ps_options *o)
{
    return trains(o) && (!is(o->method, "full") || o->dtype == PS_DTYPE_F32);
}

static bool steps_alone(const struct ps_options *o)
{
    return trains(o) && is(o->optimizer, "adafactor") && o->relative_step;
}

static bool draws_layers(const struct ps_options *o)
{
    return trains(o) && (is(o->optimizer, "lisa") || is(o->optimizer, "badam"));
}

static bool has_no_gradient(const struct ps_options *o)
{
    return trains(o) && is(o->optimizer, "mezo");
}

static bool exports_model(const struct ps_options *o)
{
    return o->command == PS_CMD_EXPORT && is(o->format, "hf");
}

static bool exports_adapter(const struct ps_options *o)
{
    return o->command == PS_CMD_EXPORT && is(o->format, "peft");
}

static bool has_no_adapter(const struct ps_options *o)
{
    return o->command == PS_CMD_EXPORT && !o->adapter;
}

static bool is_constant(const struct ps_options *o)
{
    return is(o->lr_scheduler, "constant");
}

static bool has_no_floor(const struct ps_options *o)
{
    return is(o->lr_scheduler, "inverse-sqrt") || is(o->lr_scheduler, "refined");
}

static bool has_no_final_decay(const struct ps_options *o)
{
    return !is(o->lr_scheduler, "wsd") && !is(o->lr_scheduler, "power");
}

static bool has_no_restarts(const struct ps_options *o)
{
    return !is(o->lr_scheduler, "cosine-restarts");
}

static bool is_not_inverse_sqrt(const struct ps_options *o)
{
    return !is(o->lr_scheduler, "inverse-sqrt");
}

static bool is_not_power(const struct ps_options *o)
{
    return !is(o->lr_scheduler, "power");
}

static bool is_not_refined(const struct ps_options *o)
{
    return !is(o->lr_scheduler, "refined");
}

static bool has_half_life(const struct ps_options *o)
{
    return o->beta2_half_life > 0;
}

/* beta2 has no effect then either, and says so. */
static bool has_no_beta2(const struct ps_options *o)
{
    return trains(o) && ps__optimizer_ignores(o, "beta2");
}

static bool counts_steps(const struct ps_options *o)
{
    return o->max_steps > 0;
}

static bool counts_epochs(const struct ps_options *o)
{
    return o->max_steps <= 0;
}

static bool has_warmup_steps(const struct ps_options *o)
{
    return o->warmup_steps >= 0;
}

static bool has_no_warmup_steps(const struct ps_options *o)
{
    return o->warmup_steps < 0;
}

static bool does_not_clip(const struct ps_options *o)
{
    return is(o->clip, "none");
}

static bool clips_otherwise(const struct ps_options *o)
{
    return !is(o->clip, "exact");
}

static bool has_eval_file(const struct ps_options *o)
{
    return o->eval_data != NULL;
}

static bool has_no_eval_rows(const struct ps_options *o)
{
    return !o->eval_data && o->val_split <= 0;
}

static bool does_not_evaluate(const struct ps_options *o)
{
    return has_no_eval_rows(o) || o->eval_steps == 0;
}

static bool is_greedy(const struct ps_options *o)
{
    return o->command == PS_CMD_GENERATE && o->temperature == 0.0;
}

static bool has_no_messages(const struct ps_options *o)
{
    const char *f = o->command == PS_CMD_DATA_RENDER ? NULL : o->format;
    return is(f, "text") || is(f, "completion") || is(f, "alpaca") || is(f, "tokens");
}

static bool has_one_memory(const struct ps_options *o)
{
    return !ps_options_discrete(o);
}

static bool is_not_emu(const struct ps_options *o)
{
    return !is(o->device, "emu");
}

static bool is_resident(const struct ps_options *o)
{
    return is(o->strategy, "resident");
}

static bool keeps_best(const struct ps_options *o)
{
    return o->save_best;
}

/* Nothing of a resident run is on the disk but the boundaries that were asked to be. */
static bool uses_no_disk(const struct ps_options *o)
{
    return is_resident(o) && o->offload_activations != PS_ACT_DISK;
}

/* `never` is true of these runs too, and does no harm. */
static bool imports_for_nothing(const struct ps_options *o)
{
    return is_resident(o) && !is(o->import, "never");
}

static bool imports_for_training(const struct ps_options *o)
{
    return trains_full(o) && !is(o->import, "never");
}

static bool has_placement(const struct ps_options *o)
{
    return o->placement != NULL;
}

static bool is_sweep(const struct ps_options *o)
{
    return o->bench_parts && strstr(o->bench_parts, "sweep");
}

static bool is_no_sweep(const struct ps_options *o)
{
    return !is_sweep(o);
}

static bool has_no_disk_part(const struct ps_options *o)
{
    return o->bench_parts && !strstr(o->bench_parts, "disk") && !strstr(o->bench_parts, "all");
}

/* `names` (comma-separated) have no effect while `off` holds. The text follows "option `x` ". */
static const struct {
    const char *names;
    bool (*off)(const struct ps_options *o);
    const char *reason;
} rules[] = {
    {"lora-r,lora-alpha,lora-dropout,lora-target,lora-layers,adapter-dtype,adapter,lora-rank-"
     "pattern,"
     "lora-alpha-pattern,use-rslora,use-dora,init,loraplus-ratio,modules-to-save,lora-bias",
     trains_full, "has no effect with `--method full`"},
    {"use-dora,init", is_not_lora, "is an option of `--method lora`: the method says it already"},
    {"init", starts_otherwise, "cannot be combined with `--use-dora`"},
    {"lora-r", has_no_rank, "has no effect with this `--method`, which has no rank"},
    {"modules-to-save,lora-bias", has_no_alpha,
     "has no effect with this `--method`: it is for the LoRA family"},
    {"lora-alpha,use-rslora,lora-rank-pattern,lora-alpha-pattern", has_no_alpha,
     "has no effect with this `--method`, which has no alpha"},
    {"lora-dropout", has_no_dropout, "has no effect with this `--method`, which has no dropout"},
    {"lora-target,lora-layers", has_no_linears,
     "has no effect with this `--method`, which trains vectors of every layer"},
    {"loraplus-ratio", has_one_rate,
     "has no effect with this `--method`: it is for those that train A and B of a LoRA"},
    {"import", imports_for_training,
     "has no effect with `--method full`, which streams no weights"},
    {"train-layers", trains_lora,
     "has no effect with `--method lora` (there it is `--lora-layers`)"},
    {"lora-r,lora-alpha,lora-target,lora-layers,lora-rank-pattern,lora-alpha-pattern,use-rslora,"
     "use-dora,init,modules-to-save,lora-bias",
     continues_adapter, "has no effect with `--adapter`: the adapter's own configuration counts"},
    {"stochastic-rounding", rounds_nothing,
     "has no effect without bf16 weights that train (`--method full`)"},
    {"learning-rate,lr-scheduler,min-lr-ratio,warmup-steps,warmup-ratio,wsd-decay-ratio",
     steps_alone, "has no effect with `--relative-step`, which has its own"},
    {"train-layers,lora-layers", draws_layers,
     "has no place beside lisa and badam, which choose among all layers"},
    {"ema-decay", draws_layers,
     "has no place beside lisa and badam, which leave weights alone at most steps"},
    {"ema-decay", keeps_best,
     "cannot be combined with `--save-best`, which looks at the weights themselves"},
    {"lora-dropout,dump-grads,clip,max-grad-norm,drop-unlabelled", has_no_gradient,
     "has no effect with `--optimizer mezo`, which makes no gradient"},
    {"min-lr-ratio", is_constant, "has no effect with `--lr-scheduler constant`"},
    {"min-lr-ratio", has_no_floor, "has no effect with this `--lr-scheduler`, which has no floor"},
    {"wsd-decay-ratio,wsd-decay", has_no_final_decay,
     "has no effect without `--lr-scheduler wsd` or `power`"},
    {"lr-cycles", has_no_restarts, "has no effect without `--lr-scheduler cosine-restarts`"},
    {"lr-timescale", is_not_inverse_sqrt, "has no effect without `--lr-scheduler inverse-sqrt`"},
    {"lr-power-a,lr-power-b", is_not_power, "has no effect without `--lr-scheduler power`"},
    {"lr-refine-from", is_not_refined, "has no effect without `--lr-scheduler refined`"},
    {"beta2", has_half_life, "has no effect with `--beta2-half-life`"},
    {"beta2-half-life", has_no_beta2, "has no effect with this `--optimizer`, which has no beta2"},
    {"epochs", counts_steps, "has no effect with `--max-steps`"},
    {"max-steps", counts_epochs, "is 0: `--epochs` counts"},
    {"warmup-ratio", has_warmup_steps, "has no effect with `--warmup-steps`"},
    {"warmup-steps", has_no_warmup_steps, "is not set: `--warmup-ratio` counts"},
    {"max-grad-norm", does_not_clip, "has no effect with `--clip none`"},
    {"expected-clipping", clips_otherwise, "has no effect without `--clip exact`"},
    {"val-split", has_eval_file, "has no effect with `--eval-data`"},
    {"eval-steps", has_no_eval_rows, "has no effect without `--eval-data` or `--val-split`"},
    {"early-stopping-patience,save-best", does_not_evaluate,
     "has no effect without `--eval-steps`"},
    {"chat-template", has_no_messages,
     "has no effect with this `--format` (only messages and sharegpt are rendered)"},
    {"weights", exports_adapter,
     "has no effect with `--format peft`: weighted adapters are merged "
     "into the model (`--format hf`)"},
    {"weights", has_no_adapter, "has no effect without `--adapter`"},
    {"adapter-dtype", exports_model, "has no effect with `--format hf`"},
    {"top-k,top-p,seed", is_greedy, "has no effect with `--temperature 0`"},
    {"gpu-mem", has_one_memory, "has no effect on the cpu device, where `--host-mem` counts all"},
    {"emu-clock", is_not_emu, "has no effect without `--device emu`"},
    {"strategy,offload-weights,offload-activations,prefetch-depth", has_placement,
     "has no effect with `--placement`, which says where everything lives"},
    {"offload-weights,prefetch-depth", is_resident,
     "has no effect with `--strategy resident`, which streams no weights"},
    {"import", imports_for_nothing,
     "has no effect with `--strategy resident`, which streams no weights"},
    {"storage,queue-depth,nvme-mem", uses_no_disk,
     "has no effect with `--strategy resident`, whose commits alone go to the disk"},
    {"grid,simulate-only", is_no_sweep, "has no effect without `bench sweep`"},
    {"disk-size,disk-seconds", has_no_disk_part, "has no effect without `bench disk`"},
    {"nvme-path,threads,quick", is_sweep, "has no effect in `bench sweep`: the grid says it"},
};

static bool listed(const char *names, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = names; *p;) {
        size_t len = strcspn(p, ",");
        if (len == n && !memcmp(p, name, n))
            return true;
        p += len + (p[len] == ',');
    }
    return false;
}

const char *ps__option_without_effect(const struct ps_options *opt, const struct ps__option *o)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
        if (listed(rules[i].names, o->name) && rules[i].off(opt))
            return rules[i].reason;
    if (ps__optimizer_ignores(opt, o->name))
        return "has no effect with this `--optimizer`";
    return NULL;
}

/* A flag of other optimizers. */
static int refuse_optimizer(const struct ps_options *opt, const char *flag, struct ps_error *err)
{
    char names[160];
    char advice[200];
    ps__optimizer_readers(flag, names, sizeof names);
    PS_IGNORE(snprintf(advice, sizeof advice,
                       names[0] ? "remove it, or choose one of %s" : "remove it%s", names) < 0,
              "fits");
    return ps_error_full(err, PS_EUSAGE, NULL, flag, advice,
                         "option `%s` has no effect with `--optimizer %s`", flag, opt->optimizer);
}

static int check_effects(const struct ps_options *opt, struct ps_error *err)
{
    size_t count;
    const struct ps__option *t = ps__options_table(&count);
    for (size_t i = 0; i < count; i++) {
        if (!ps__option_given(opt, &t[i]))
            continue;
        const char *reason = ps__option_without_effect(opt, &t[i]);
        if (reason && ps__optimizer_ignores(opt, t[i].name))
            return refuse_optimizer(opt, t[i].name, err);
        if (reason)
            return ps_error_full(err, PS_EUSAGE, NULL, t[i].name, "remove one of the two",
                                 "option `%s` %s", t[i].name, reason);
    }
    return 0;
}

static int need(const char *value, const struct ps_options *opt, const char *name, const char *what,
                struct ps_error *err)
{
    if (value)
        return 0;
    return ps_error_full(err, PS_EUSAGE, NULL, name, NULL, "`%s` needs `--%s %s`",
                         ps__command_name(opt->command), name, what);
}

/* Exactly one of two. */
static int need_one(const char *a, const char *a_name, const char *b, const char *b_name,
                    const struct ps_options *opt, struct ps_error *err)
{
    if (!a == !b)
        return ps_error_full(err, PS_EUSAGE, NULL, a_name, NULL,
                             a ? "`%s` takes only one of `--%s` and `--%s`"
                               : "`%s` needs one of `--%s` and `--%s`",
                             ps__command_name(opt->command), a_name, b_name);
    return 0;
}

static int check_export(const struct ps_options *o, struct ps_error *err)
{
    int ret = need(o->model, o, "model", "DIR", err);
    if (ret == 0)
        ret = need_one(o->adapter, "adapter", o->checkpoint, "checkpoint", o, err);
    if (ret == 0)
        ret = need(o->format, o, "format", "peft|hf", err);
    return ret ? ret : need(o->output, o, "output", "DIR", err);
}

static int check_required(const struct ps_options *o, struct ps_error *err)
{
    int ret = 0;
    switch (o->command) {
    case PS_CMD_TRAIN:
        ret = need(o->model, o, "model", "DIR", err);
        if (ret == 0 && is(o->lr_scheduler, "refined"))
            ret = need(o->lr_refine_from, o, "lr-refine-from", "FILE", err);
        if (ret == 0)
            ret = need(o->data, o, "data", "FILE", err);
        return ret || o->dry_run ? ret : need(o->output, o, "output", "DIR", err);
    case PS_CMD_PLAN:
        return need(o->model, o, "model", "DIR", err);
    case PS_CMD_EVAL:
        ret = need(o->model, o, "model", "DIR", err);
        return ret ? ret : need(o->data, o, "data", "FILE", err);
    case PS_CMD_GENERATE:
        ret = need(o->model, o, "model", "DIR", err);
        return ret ? ret : need_one(o->prompt, "prompt", o->prompts, "prompts", o, err);
    case PS_CMD_EXPORT:
        return check_export(o, err);
    case PS_CMD_INIT:
        ret = need(o->config, o, "config", "FILE", err);
        return ret ? ret : need(o->output, o, "output", "DIR", err);
    case PS_CMD_DATA_INSPECT:
        return need(o->data, o, "data", "FILE", err);
    case PS_CMD_DATA_TOKENIZE:
        ret = need(o->model, o, "model", "DIR", err);
        return ret ? ret : need_one(o->text, "text", o->data, "data", o, err);
    case PS_CMD_DATA_RENDER:
        return need(o->data, o, "data", "FILE", err);
    default:
        return 0; /* inspect and list check their argument themselves */
    }
}

/* A loss that the rows of a named format cannot give. */
static int check_loss(const struct ps_options *o, struct ps_error *err)
{
    bool pairs = is(o->format, "completion") || is(o->format, "alpaca");
    bool chat = is(o->format, "messages") || is(o->format, "sharegpt");
    bool plain = is(o->format, "text") || is(o->format, "tokens");
    bool bad = (is(o->loss_on, "assistant") && (pairs || plain)) ||
               (is(o->loss_on, "completion") && (chat || plain));
    if (!bad)
        return 0;
    return ps_error_full(
        err, PS_EUSAGE, NULL, "loss-on", "leave --loss-on at auto, or use --loss-on all",
        "rows of `--format %s` have no part for `--loss-on %s`", o->format, o->loss_on);
}

static int check_template(const struct ps_options *o, struct ps_error *err)
{
    if (!o->chat_template || is(o->chat_template, "auto"))
        return 0;
    const char *const *names = ps_chat_template_names();
    char list[160] = "";
    size_t len = 0;
    for (; *names; names++) {
        if (is(o->chat_template, *names))
            return 0;
        int n = snprintf(list + len, sizeof list - len, "%s%s", len ? ", " : "", *names);
        len += n > 0 && (size_t)n < sizeof list - len ? (size_t)n : 0;
    }
    return ps_error_full(err, PS_EUSAGE, NULL, "chat-template", "use one of the built-in templates",
                         "no chat template `%s` in this version, which has: %s", o->chat_template,
                         list);
}

static int refuse(const char *name, const char *advice, const char *message, struct ps_error *err)
{
    return ps_error_full(err, PS_EUSAGE, NULL, name, advice, "%s", message);
}

static int check_strategy(const struct ps_options *o, struct ps_error *err)
{
    if (!o->strategy)
        return 0;
    const char *names[PS_CATALOG_MAX + 1] = {NULL};
    size_t count;
    int ret = ps_catalog_list("strategies", names, &count, err);
    if (ret)
        return ret;
    char list[160] = "";
    size_t len = 0;
    for (size_t i = 0; i < count; i++) {
        if (is(o->strategy, names[i]))
            return 0;
        int n = snprintf(list + len, sizeof list - len, "%s%s", len ? ", " : "", names[i]);
        len += n > 0 && (size_t)n < sizeof list - len ? (size_t)n : 0;
    }
    const char *near = ps_catalog_nearest(o->strategy, names);
    char advice[96];
    PS_IGNORE(snprintf(advice, sizeof advice, near ? "did you mean `%s`?" : "%s",
                       near ? near : "`penstock list strategies` lists them") < 0,
              "fits");
    return ps_error_full(err, PS_EUSAGE, NULL, "strategy", advice,
                         "no strategy `%.64s` in this version, which has: %s", o->strategy, list);
}

/* auto, N steps or Ns seconds. */
static int check_interval(const struct ps_options *o, struct ps_error *err)
{
    const char *text = o->commit_interval;
    if (!text || is(text, "auto"))
        return 0;
    size_t digits = strspn(text, "0123456789");
    bool unit = text[digits] == 's' && text[digits + 1] == '\0';
    if (digits > 0 && digits < 10 && text[0] != '0' && (text[digits] == '\0' || unit))
        return 0;
    return ps_error_full(err, PS_EUSAGE, NULL, "commit-interval",
                         "give auto, steps (10) or seconds (60s)",
                         "`commit-interval` cannot be `%.64s`", text);
}

/* Placements and experiments that the device or the strategy cannot have. */
static int check_memory(const struct ps_options *o, struct ps_error *err)
{
    int ret = check_interval(o, err);
    if (ret < 0)
        return ret;
    if (!o->strategy) /* a command without them */
        return 0;
    bool discrete = ps_options_discrete(o);
    bool chosen = o->placement || !is(o->strategy, "auto");
    const unsigned streaming = PS_ABLATE_PREFETCH | PS_ABLATE_TURNS | PS_ABLATE_CROSS_STEP;
    if (!discrete && o->offload_weights == PS_TIER_DEVICE)
        return refuse("offload-weights", "use host or disk",
                      "`offload-weights` cannot be device on cpu, which has no memory of its own",
                      err);
    if (!discrete && o->offload_optimizer == PS_TIER_DEVICE)
        return refuse("offload-optimizer", "use host or disk",
                      "`offload-optimizer` cannot be device on cpu, which has no memory of its own",
                      err);
    if (!discrete && o->offload_activations == PS_ACT_DEVICE)
        return refuse("offload-activations", "use host, disk or recompute",
                      "`offload-activations` cannot be device on cpu, which has no memory of its "
                      "own",
                      err);
    if (!discrete && (o->throttle[PS_LANE_H2D] > 0 || o->throttle[PS_LANE_D2H] > 0))
        return refuse("throttle", "use `--device emu`, or another lane",
                      "`throttle` of h2d or d2h has no effect on cpu: nothing is copied there",
                      err);
    if (is(o->storage, "null") && !chosen)
        return refuse("storage", "name the `--strategy` to be measured",
                      "`storage` null needs a strategy other than auto: it is for measuring one",
                      err);
    if (is(o->storage, "null") && is(o->import, "always"))
        return refuse("import", "use `--import never`",
                      "`import` cannot be decoded with `--storage null`, which reads nothing", err);
    if (is_resident(o) && (o->ablate & streaming))
        return refuse("ablate", "remove them, or choose a strategy that streams weights",
                      "`ablate` of prefetch, turns or cross-step has no effect with `--strategy "
                      "resident`",
                      err);
    return 0;
}

static int refuse_part(const char *word, struct ps_error *err)
{
    const char *names[16] = {"sweep"};
    const char *const *part = ps_bench_part_names();
    for (size_t i = 0; part[i] && i + 2 < sizeof names / sizeof names[0]; i++)
        names[i + 1] = part[i];
    char advice[96];
    const char *near = ps_catalog_nearest(word, names);
    PS_IGNORE(snprintf(advice, sizeof advice, near ? "did you mean `%s`?" : "%s",
                       near ? near : "choose gemm, copy, disk, cpu-optim or sweep") < 0,
              "fits");
    return ps_error_full(err, PS_EUSAGE, NULL, NULL, advice, "`bench` cannot measure `%s`", word);
}

static int check_bench(const struct ps_options *o, struct ps_error *err)
{
    char word[64];
    bool sweep = false;
    size_t count = 0;
    for (; ps_options_list_item(o->bench_parts, count, word, sizeof word); count++) {
        bool is_word = !strcmp(word, "sweep");
        sweep = sweep || is_word;
        if (!is_word && !ps_bench_part_find(word))
            return refuse_part(word, err);
    }
    if (sweep && count > 1)
        return refuse(NULL, "run them one after the other", "`bench sweep` stands alone", err);
    if (sweep && !o->grid)
        return refuse("grid", "give a GRID.yaml", "`bench sweep` needs a grid", err);
    return 0;
}

static int fill_parts(struct ps_options *o, struct ps_error *err)
{
    if (o->bench_parts)
        return 0;
    o->bench_parts = strdup("gemm,copy,disk,cpu-optim");
    return o->bench_parts ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
}

/* (IA)^3 and VeRA have few parameters and want large steps; what starts from the weights small
 * ones.
 */
static double default_rate(const char *method)
{
    static const struct {
        const char *method;
        double rate;
    } rates[] = {{"full", 1e-5},  {"ia3", 3e-3},  {"vera", 2e-3},
                 {"norms", 1e-3}, {"bias", 1e-3}, {"nlora", 2e-5}};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++)
        if (is(method, rates[i].method))
            return rates[i].rate;
    return 2e-4;
}

/* What an adapter's method wants where nothing was given. */
static int fill_adapter(struct ps_options *o, struct ps_error *err)
{
    const char *method = ps_options_method(o);
    if (is(method, "ia3") && !ps_options_given(o, "lora-target")) {
        free(o->lora_target);
        o->lora_target = strdup("k_proj,v_proj,down_proj");
        if (!o->lora_target)
            return ps_error_set(err, -ENOMEM, "out of memory");
    }
    if (is(method, "vera") && !ps_options_given(o, "lora-r"))
        o->lora_r = 256;
    static const char *const unscaled[] = {"pissa", "olora", "nlora", "slora", "inttune"};
    for (size_t i = 0; i < sizeof unscaled / sizeof unscaled[0]; i++)
        if (is(method, unscaled[i]) && !ps_options_given(o, "lora-alpha"))
            o->lora_alpha = o->lora_r;
    return 0;
}

static void fill_defaults(struct ps_options *o)
{
    bool full = is(o->method, "full");
    if (o->command != PS_CMD_INIT && o->dtype < 0)
        o->dtype = PS_DTYPE_BF16;
    if (o->learning_rate < 0)
        o->learning_rate = default_rate(ps_options_method(o));
    if (o->weight_decay < 0)
        o->weight_decay = full ? 0.01 : 0;
    if (o->warmup_steps < 0 && o->warmup_ratio < 0)
        o->warmup_ratio = 0.03;
}

int ps_options_resolve(struct ps_options *opt, struct ps_error *err)
{
    int ret = check_required(opt, err);
    if (ret == 0)
        ret = check_effects(opt, err);
    if (ret == 0)
        ret = check_strategy(opt, err);
    if (ret == 0)
        ret = check_memory(opt, err);
    if (ret == 0 && opt->command == PS_CMD_BENCH)
        ret = check_bench(opt, err);
    if (ret == 0 && opt->command == PS_CMD_BENCH)
        ret = fill_parts(opt, err);
    if (ret == 0)
        ret = check_loss(opt, err);
    if (ret == 0)
        ret = check_template(opt, err);
    if (ret == 0 && trains_lora(opt))
        ret = fill_adapter(opt, err);
    if (ret == 0)
        ret = ps__optimizer_check(opt, err);
    if (ret == 0)
        fill_defaults(opt);
    return ret ? ret : ps__optimizer_defaults(opt, err);
}
