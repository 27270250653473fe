/* Options: setting single values by name, see options.h. The table is options_table.c, the values'
 * syntax options_value.c, the combinations options_rules.c, YAML options_yaml.c. */
#include "session/options_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/device/cuda_plugin.h"

static char fold(char c)
{
    return c == '_' ? '-' : c;
}

/* Compare `name` with the n first letters of `other`. */
static bool same_name(const char *name, const char *other, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!name[i] || fold(name[i]) != fold(other[i]))
            return false;
    return name[n] == '\0';
}

bool ps__option_is(const struct ps__option *o, const char *name)
{
    if (same_name(name, o->name, strlen(o->name)))
        return true;
    for (const char *p = o->aliases; p && *p;) {
        size_t n = strcspn(p, " ");
        if (same_name(name, p, n))
            return true;
        p += n + (p[n] == ' ');
    }
    return false;
}

const struct ps__option *ps__options_find(const char *name, enum ps_command command)
{
    size_t count;
    const struct ps__option *t = ps__options_table(&count);
    const struct ps__option *other = NULL;
    for (size_t i = 0; i < count; i++) {
        if (!ps__option_is(&t[i], name))
            continue;
        if (t[i].commands >> command & 1u)
            return &t[i];
        other = &t[i];
    }
    return other;
}

static size_t index_of(const struct ps__option *o)
{
    size_t count;
    return (size_t)(o - ps__options_table(&count));
}

bool ps__option_given(const struct ps_options *opt, const struct ps__option *o)
{
    size_t i = index_of(o);
    return opt->given[i / 64] >> (i % 64) & 1u;
}

bool ps_options_given(const struct ps_options *opt, const char *name)
{
    const struct ps__option *o = ps__options_find(name, opt->command);
    return o && ps__option_given(opt, o);
}

const char *ps_options_method(const struct ps_options *opt)
{
    if (!opt->method || strcmp(opt->method, "lora") != 0)
        return opt->method;
    if (opt->use_dora)
        return "dora";
    return opt->init && strcmp(opt->init, "default") != 0 ? opt->init : opt->method;
}

bool ps_options_discrete(const struct ps_options *opt)
{
    if (!opt->device) /* a command without devices */
        return false;
    bool plan = opt->command == PS_CMD_PLAN;
    if (!strcmp(opt->device, "auto") && plan && (opt->hardware || ps_options_given(opt, "gpu-mem")))
        return ps_options_given(opt, "gpu-mem");
    if (!strcmp(opt->device, "auto"))
        return opt->command != PS_CMD_EXPORT && ps_cuda_plugin_auto(NULL) != NULL;
    return strcmp(opt->device, "cpu") != 0;
}

bool ps_options_list_item(const char *list, size_t i, char *buf, size_t size)
{
    if (!list)
        return false;
    for (; i > 0; i--) {
        list = strchr(list, ',');
        if (!list)
            return false;
        list++;
    }
    size_t n = strcspn(list, ",");
    if (n >= size)
        return false;
    memcpy(buf, list, n);
    buf[n] = '\0';
    return true;
}

bool ps_options_is_bool(const char *name)
{
    const struct ps__option *o = ps__options_find(name, PS_CMD_TRAIN);
    return o && o->type == PS__BOOL;
}

void ps_options_init(struct ps_options *opt, enum ps_command command)
{
    memset(opt, 0, sizeof *opt);
    opt->command = command;
    opt->dtype = -1;
    opt->learning_rate = -1;
    opt->warmup_steps = -1;
    opt->warmup_ratio = -1;
    opt->weight_decay = -1;
    opt->lr_timescale = -1;
    opt->lr_power_a = -1;
    ps__optimizer_unset(opt);
    size_t count;
    const struct ps__option *t = ps__options_table(&count);
    for (size_t i = 0; i < count; i++) {
        /* a name may stand in several commands with other defaults: take this command's own */
        if (!t[i].fallback || ps__options_find(t[i].name, command) != &t[i])
            continue;
        char why[128];
        /* fails only without memory, and then the string stays NULL: "not given" */
        PS_IGNORE(ps__option_parse(opt, &t[i], t[i].fallback, why, sizeof why), "see above");
    }
}

void ps_options_fini(struct ps_options *opt)
{
    size_t count;
    const struct ps__option *t = ps__options_table(&count);
    for (size_t i = 0; i < count; i++) {
        if (t[i].type != PS__STRING && t[i].type != PS__CHOICE && t[i].type != PS__LIST &&
            t[i].type != PS__OPTIMIZER)
            continue;
        char **s = (char **)(void *)((char *)opt + t[i].offset);
        free(*s);
        *s = NULL;
    }
}

#define NAME_MAX_LEN 63
int ps__edit_distance(const char *a, const char *b)
{
    size_t n = strlen(a);
    size_t m = strlen(b);
    if (n > NAME_MAX_LEN || m > NAME_MAX_LEN)
        return NAME_MAX_LEN + 1;
    int row[3][NAME_MAX_LEN + 1]; /* rows i - 2, i - 1 and i of the table, by i % 3 */
    for (size_t j = 0; j <= m; j++)
        row[0][j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int *now = row[i % 3];
        const int *last = row[(i - 1) % 3];
        now[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            bool same = fold(a[i - 1]) == fold(b[j - 1]);
            int best = last[j - 1] + !same;
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) &&
                fold(a[i - 2]) == fold(b[j - 1]) && row[(i - 2) % 3][j - 2] + 1 < best)
                best = row[(i - 2) % 3][j - 2] + 1;
            now[j] = best;
        }
    }
    return row[n % 3][m];
}

/* The nearest name of the command's options, or NULL if none is near. */
static const char *suggest(const char *name, enum ps_command command)
{
    size_t count;
    const struct ps__option *t = ps__options_table(&count);
    int limit = (int)strlen(name) / 3;
    int best = (limit < 2 ? 2 : limit) + 1;
    const char *found = NULL;
    for (size_t i = 0; i < count; i++) {
        if (!(t[i].commands >> command & 1u) || !t[i].help)
            continue;
        int d = ps__edit_distance(name, t[i].name);
        for (const char *p = t[i].aliases; p && *p;) {
            char alias[NAME_MAX_LEN + 1];
            size_t n = strcspn(p, " ");
            assert(n < sizeof alias);
            memcpy(alias, p, n);
            alias[n] = '\0';
            int other = ps__edit_distance(name, alias);
            d = other < d ? other : d;
            p += n + (p[n] == ' ');
        }
        if (d < best) {
            best = d;
            found = t[i].name;
        }
    }
    return found;
}

/* A flag's error names the flag; a file's names file:line and the key. */
static int fail(struct ps_error *err, const char *source, const char *name, const char *advice,
                const char *message)
{
    bool flag = !strncmp(source, "--", 2);
    return ps_error_full(err, PS_EUSAGE, flag ? NULL : source, flag ? source : name, advice, "%s",
                         message);
}

static int fail_unknown(const struct ps_options *opt, const char *name, const char *source,
                        struct ps_error *err)
{
    char message[256];
    char advice[256];
    for (const char *const *p = ps__options_not_yet(); *p; p++) {
        if (!same_name(name, *p, strlen(*p)))
            continue;
        PS_IGNORE(snprintf(message, sizeof message, "option `%s` is not in this version", *p) < 0,
                  "fits");
        return fail(err, source, name, "remove it", message);
    }
    PS_IGNORE(snprintf(message, sizeof message, "unknown option `%.100s`", name) < 0, "fits");
    const char *near = suggest(name, opt->command);
    if (near)
        PS_IGNORE(snprintf(advice, sizeof advice, "did you mean `%s`?", near) < 0, "fits");
    else
        PS_IGNORE(snprintf(advice, sizeof advice, "`penstock %s --help` lists the options",
                           ps__command_name(opt->command)) < 0,
                  "fits");
    return fail(err, source, name, advice, message);
}

/* "train, eval and export" */
static void list_commands(const struct ps__option *o, char *buf, size_t size)
{
    size_t len = 0;
    buf[0] = '\0';
    for (int c = 0; c < PS_CMD_COUNT; c++) {
        if (!(o->commands >> c & 1u))
            continue;
        int n = snprintf(buf + len, size - len, "%s%s", len ? ", " : "",
                         ps__command_name((enum ps_command)c));
        if (n < 0 || (size_t)n >= size - len)
            return;
        len += (size_t)n;
    }
}

static int fail_command(const struct ps_options *opt, const struct ps__option *o, const char *name,
                        const char *source, struct ps_error *err)
{
    char message[256];
    char commands[160];
    char advice[256];
    list_commands(o, commands, sizeof commands);
    PS_IGNORE(snprintf(message, sizeof message, "option `%s` has no effect in `%s`", o->name,
                       ps__command_name(opt->command)) < 0,
              "fits");
    PS_IGNORE(snprintf(advice, sizeof advice, "remove it; it belongs to: %s", commands) < 0,
              "fits");
    return fail(err, source, name, advice, message);
}

/* `why` is a predicate: of the value ("is not in this version"), or of the option. */
static void describe(char *buf, size_t size, const char *name, const char *value, const char *why)
{
    if (!strncmp(why, "is ", 3))
        PS_IGNORE(snprintf(buf, size, "`%.80s` as `%s` %s", value, name, why) < 0, "fits");
    else if (!strncmp(why, "accepts ", 8))
        PS_IGNORE(snprintf(buf, size, "`%s` %s, not `%.80s`", name, why, value) < 0, "fits");
    else
        PS_IGNORE(snprintf(buf, size, "`%s` %s", name, why) < 0, "fits");
}

int ps_options_set(struct ps_options *opt, const char *name, const char *value, const char *source,
                   struct ps_error *err)
{
    const struct ps__option *o = ps__options_find(name, opt->command);
    if (!o)
        return fail_unknown(opt, name, source, err);
    if (!(o->commands >> opt->command & 1u))
        return fail_command(opt, o, name, source, err);
    char why[256];
    int ret = ps__option_parse(opt, o, value, why, sizeof why);
    if (ret == -ENOMEM)
        return ps_error_set(err, -ENOMEM, "out of memory");
    if (ret) {
        char message[512];
        describe(message, sizeof message, o->name, value, why);
        return fail(err, source, name, NULL, message);
    }
    size_t i = index_of(o);
    opt->given[i / 64] |= (uint64_t)1 << (i % 64);
    return 0;
}
