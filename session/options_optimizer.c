/* Flags of single optimizers: who reads them, their defaults, and the hyper-parameters they become.
 * See options_internal.h.
 *
 * A method lists its flags in the registry (struct ps_optimizer_ops); here stands which field of
 * struct ps_optimizer_hyper a flag is. A new flag is a row here, one in the table of options, and a
 * member of struct ps_options. */
#include "session/options_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "optim/optimizers.h"
#include "session/catalog.h"

enum kind { REAL, INT, BOOL };

#define ROW(flag, kind, member)                                                                    \
    {                                                                                              \
        flag, kind, offsetof(struct ps_optimizer_hyper, member)                                    \
    }

static const struct {
    const char *flag;
    enum kind kind;
    size_t offset;
} rows[] = {
    ROW("beta1", REAL, beta1),
    ROW("beta2", REAL, beta2),
    ROW("eps", REAL, eps),
    ROW("momentum", REAL, momentum),
    ROW("dampening", REAL, dampening),
    ROW("nesterov", BOOL, nesterov),
    ROW("optim-rank", INT, rank),
    ROW("optim-update-gap", INT, update_gap),
    ROW("optim-scale", REAL, scale),
    ROW("optim-proj-type", INT, projection),
    ROW("optim-basis", INT, basis),
    ROW("optim-moments", INT, moments),
    ROW("optim-refresh-together", BOOL, refresh_together),
    ROW("optim-history", INT, history),
    ROW("optim-damping", REAL, damping),
    ROW("norm-growth-max", REAL, norm_growth_max),
    ROW("scale-front", BOOL, scale_front),
    ROW("ns-steps", INT, ns_steps),
    ROW("match-rms-adamw", BOOL, match_rms_adamw),
    ROW("aux-lr-ratio", REAL, aux_lr_ratio),
    ROW("eps2", REAL, eps2),
    ROW("clip-threshold", REAL, clip_threshold),
    ROW("decay-rate", REAL, decay_rate),
    ROW("scale-parameter", BOOL, scale_parameter),
    ROW("relative-step", BOOL, relative_step),
    ROW("warmup-init", BOOL, warmup_init),
    ROW("microadam-window", INT, window),
    ROW("microadam-density", REAL, density),
    ROW("quant-block-size", INT, quant_block),
    ROW("lisa-activated-layers", INT, active_layers),
    ROW("lisa-interval-steps", INT, interval),
    ROW("keep-state", BOOL, keep_state),
    ROW("switch-block-every", INT, interval),
    ROW("switch-mode", INT, switch_mode),
    ROW("zo-eps", REAL, zo_eps),
};
enum { ROWS = sizeof rows / sizeof rows[0] };

static int row_of(const char *flag)
{
    for (int i = 0; i < ROWS; i++)
        if (!strcmp(rows[i].flag, flag))
            return i;
    return -1;
}

static const struct ps_optimizer_option *find(const struct ps_optimizer_ops *ops, const char *flag)
{
    const struct ps_optimizer_option *o = ops->options;
    for (; o && o->flag; o++)
        if (!strcmp(o->flag, flag))
            return o;
    return NULL;
}

static bool has_word(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = words; p && *p;) {
        size_t len = strcspn(p, "|");
        if (len == n && !memcmp(p, word, n))
            return true;
        p += len + (p[len] == '|');
    }
    return false;
}

static bool trains(const struct ps_options *o)
{
    return o->command == PS_CMD_TRAIN || o->command == PS_CMD_PLAN;
}

static const struct ps_optimizer_ops *chosen(const struct ps_options *o)
{
    return trains(o) && o->optimizer ? ps_optimizer_find(o->optimizer) : NULL;
}

/* Methods that come in 8 bits under a name of their own. */
static const struct ps_optimizer_ops *eight_bit(const struct ps_optimizer_ops *ops)
{
    char name[64];
    PS_IGNORE(snprintf(name, sizeof name, "%.50s8bit", ops->name) < 0, "fits");
    return ps_optimizer_find(name);
}

bool ps__optimizer_ignores(const struct ps_options *opt, const char *flag)
{
    const struct ps_optimizer_ops *ops = chosen(opt);
    if (!ops)
        return false;
    if (!strcmp(flag, "optim-state"))
        return !ops->states && !eight_bit(ops);
    return row_of(flag) >= 0 && !find(ops, flag);
}

void ps__optimizer_readers(const char *flag, char *buf, size_t size)
{
    const struct ps_optimizer_ops *const *o = ps_optimizers();
    buf[0] = '\0';
    for (; *o; o++) {
        bool reads = strcmp(flag, "optim-state") ? find(*o, flag) != NULL : (*o)->states != NULL;
        size_t len = strlen(buf);
        if (reads)
            PS_IGNORE(snprintf(buf + len, size - len, "%s%s", len ? ", " : "", (*o)->name) < 0,
                      "truncation is fine");
    }
}

int ps__parse_optimizer(char **to, const char *text, char *why, size_t why_size)
{
    char list[200] = "";
    for (const struct ps_optimizer_ops *const *o = ps_optimizers(); *o; o++) {
        if (!strcmp((*o)->name, text)) {
            char *copy = strdup(text);
            if (!copy)
                return -ENOMEM;
            free(*to);
            *to = copy;
            return 0;
        }
        size_t len = strlen(list);
        PS_IGNORE(snprintf(list + len, sizeof list - len, "%s%s", len ? "/" : "", (*o)->name) < 0,
                  "truncation is fine");
    }
    PS_IGNORE(snprintf(why, why_size, "accepts %s", list) < 0, "truncation is fine");
    return PS_EUSAGE;
}

/* The member of an option that is a row here. */
static void *member(struct ps_options *opt, const char *flag)
{
    const struct ps__option *o = ps__options_find(flag, opt->command);
    return (char *)opt + o->offset;
}

void ps__optimizer_unset(struct ps_options *opt)
{
    if (!trains(opt))
        return;
    for (int i = 0; i < ROWS; i++) {
        if (rows[i].kind == REAL)
            *(double *)member(opt, rows[i].flag) = -1;
        else if (rows[i].kind == INT)
            *(int *)member(opt, rows[i].flag) = -1;
    }
}

int ps__optimizer_check(const struct ps_options *opt, struct ps_error *err)
{
    const struct ps_optimizer_ops *ops = chosen(opt);
    if (!ops || !opt->optim_state || has_word(ops->states, opt->optim_state))
        return 0;
    bool named = !strcmp(opt->optim_state, "8bit") && eight_bit(ops);
    return named ? 0
                 : ps_error_full(err, PS_EUSAGE, NULL, "optim-state",
                                 "leave --optim-state out, or choose one that it has",
                                 "`--optimizer %s` has states in %s, not in %s", ops->name,
                                 ops->states ? ops->states : "8bit", opt->optim_state);
}

int ps__optimizer_defaults(struct ps_options *opt, struct ps_error *err)
{
    const struct ps_optimizer_ops *ops = chosen(opt);
    if (!ops)
        return 0;
    for (const struct ps_optimizer_option *o = ops->options; o && o->flag; o++) {
        int i = row_of(o->flag);
        if (i < 0 || ps_options_given(opt, o->flag))
            continue;
        void *to = member(opt, o->flag);
        if (rows[i].kind == REAL)
            *(double *)to = o->fallback;
        else if (rows[i].kind == INT)
            *(int *)to = (int)o->fallback;
        else
            *(bool *)to = o->fallback != 0;
    }
    if (!opt->optim_state && ops->states) {
        opt->optim_state = strndup(ops->states, strcspn(ops->states, "|"));
        if (!opt->optim_state)
            return ps_error_set(err, -ENOMEM, "out of memory");
    }
    if (opt->optim_state && !has_word(ops->states, opt->optim_state)) {
        char *name = strdup(eight_bit(ops)->name); /* as ps__optimizer_check has seen */
        if (!name)
            return ps_error_set(err, -ENOMEM, "out of memory");
        free(opt->optimizer);
        opt->optimizer = name;
    }
    return 0;
}

void ps__optimizer_hyper(const struct ps_options *opt, struct ps_optimizer_hyper *out)
{
    const struct ps_optimizer_ops *ops = chosen(opt);
    *out = (struct ps_optimizer_hyper){.weight_decay = opt->weight_decay,
                                       .seed = opt->seed,
                                       .stochastic_rounding = opt->stochastic_rounding,
                                       .ema_decay = opt->ema_decay,
                                       .averaged = ops};
    for (const struct ps_optimizer_option *o = ops ? ops->options : NULL; o && o->flag; o++) {
        int i = row_of(o->flag);
        if (i < 0)
            continue;
        const struct ps__option *row = ps__options_find(o->flag, opt->command);
        const void *from = (const char *)opt + row->offset;
        void *to = (char *)out + rows[i].offset;
        if (rows[i].kind == REAL)
            *(double *)to = *(const double *)from;
        else if (rows[i].kind == INT)
            *(int32_t *)to = (int32_t) * (const int *)from;
        else
            *(bool *)to = *(const bool *)from;
    }
    const char *state = opt->optim_state ? opt->optim_state : "fp32";
    out->state_dtype = !strcmp(state, "bf16")   ? PS_DTYPE_BF16
                       : !strcmp(state, "8bit") ? PS_DTYPE_U8
                                                : PS_DTYPE_F32;
}
