/* Names of what this version has: see catalog.h. They come from the registries where there is one.
 */
#include "session/catalog.h"

#include <stdio.h>
#include <string.h>

#include "offload/planner.h"
#include "optim/lr_schedule.h"
#include "optim/optimizers.h"
#include "peft/adapters.h"
#include "runtime/base/isa.h"
#include "runtime/model/config.h"
#include "session/options_internal.h"

#ifndef PS_COMMIT
#define PS_COMMIT "unknown"
#endif

struct list {
    const char **names;
    size_t count;
};

static void add(struct list *l, const char *name)
{
    if (l->count < PS_CATALOG_MAX)
        l->names[l->count++] = name;
}

static void list_optimizers(struct list *l)
{
    for (const struct ps_optimizer_ops *const *o = ps_optimizers(); *o; o++)
        add(l, (*o)->name);
}

static void list_adapters(struct list *l)
{
    for (const struct ps_adapter_ops *const *a = ps_adapters(); *a; a++)
        add(l, (*a)->name);
}

static void list_strategies(struct list *l)
{
    for (int i = 0; ps_strategy_at(i); i++)
        add(l, ps_strategy_at(i)->name);
    add(l, "auto"); /* not a strategy: the planner's choice among them */
}

static void list_models(struct list *l)
{
    for (const char *const *m = ps_model_families(); *m; m++)
        add(l, *m);
}

static void list_schedules(struct list *l)
{
    static const enum ps_lr_schedule_kind kind[] = {
        PS_LR_CONSTANT,     PS_LR_COSINE, PS_LR_COSINE_RESTARTS, PS_LR_LINEAR,
        PS_LR_INVERSE_SQRT, PS_LR_POWER,  PS_LR_REFINED,         PS_LR_WSD};
    for (size_t i = 0; i < sizeof kind / sizeof kind[0]; i++)
        add(l, ps_lr_schedule_name(kind[i]));
}

static void list_quant(struct list *l)
{
    add(l, "none");
}

static void list_methods(struct list *l)
{
    list_adapters(l);
    add(l, "full");
}

static const char *const kinds[] = {"optimizers", "adapters", "strategies", "models",
                                    "schedules",  "quant",    "methods",    NULL};
static void (*const listers[])(struct list *l) = {list_optimizers, list_adapters,  list_strategies,
                                                  list_models,     list_schedules, list_quant,
                                                  list_methods};

const char *const *ps_catalog_kinds(void)
{
    return kinds;
}

const char *ps_catalog_nearest(const char *word, const char *const *candidates)
{
    int limit = (int)strlen(word) / 3;
    int best = (limit < 2 ? 2 : limit) + 1;
    const char *found = NULL;
    for (; *candidates; candidates++) {
        int d = ps__edit_distance(word, *candidates);
        if (d < best) {
            best = d;
            found = *candidates;
        }
    }
    return found;
}

int ps_catalog_list(const char *kind, const char *names[PS_CATALOG_MAX], size_t *count,
                    struct ps_error *err)
{
    for (size_t i = 0; kinds[i]; i++) {
        if (strcmp(kind, kinds[i]))
            continue;
        struct list l = {.names = names};
        listers[i](&l);
        *count = l.count;
        return 0;
    }
    char advice[160];
    const char *near = ps_catalog_nearest(kind, kinds);
    PS_IGNORE(snprintf(advice, sizeof advice, near ? "did you mean `%s`?" : "%s",
                       near
                           ? near
                           : "choose optimizers, adapters, strategies, models, schedules, quant or "
                             "methods") < 0,
              "fits");
    return ps_error_full(err, PS_EUSAGE, NULL, NULL, advice, "there is no list of `%.64s`", kind);
}

const char *ps_catalog_isa(void)
{
    return ps_isa_name(ps_isa_detect());
}

const char *ps_catalog_compiler(void)
{
#ifdef __clang__
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

const char *ps_catalog_commit(void)
{
    return PS_COMMIT;
}
