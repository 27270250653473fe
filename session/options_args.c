/* Command-line arguments -> options: see options.h. */
#include "session/options_internal.h"

#include <string.h>

static bool is_target_command(enum ps_command c)
{
    return c == PS_CMD_INSPECT || c == PS_CMD_LIST;
}

/* `--resume run.yaml`: the file is the configuration, not the directory to resume from. */
static bool is_config(const char *arg)
{
    const char *dot = strrchr(arg, '.');
    return dot && (!strcmp(dot, ".yaml") || !strcmp(dot, ".yml"));
}

/* The value of a flag that stands in argv[*i] without `=`; advances *i over what it takes. NULL:
 * missing. */
static const char *take_value(const char *name, int argc, char **argv, int *i)
{
    const char *next = *i + 1 < argc ? argv[*i + 1] : NULL;
    if (ps_options_is_bool(name)) {
        if (!next || (strcmp(next, "true") && strcmp(next, "false")))
            return "true";
    } else if (!strcmp(name, "resume")) {
        if (!next || !strncmp(next, "--", 2) || is_config(next))
            return "auto";
    } else if (!next || !strncmp(next, "--", 2)) {
        return NULL;
    }
    ++*i;
    return next;
}

/* An argument without a flag, one of what the command takes. */
static int parse_argument(struct ps_options *opt, const char *arg, const char **config,
                          struct ps_error *err)
{
    if (is_target_command(opt->command) && !opt->target)
        return ps_options_set(opt, "target", arg, "--target", err);
    if (opt->command == PS_CMD_BENCH && !is_config(arg))
        return ps_options_set(opt, "parts", arg, "--parts", err);
    if (opt->command == PS_CMD_BENCH && !opt->grid)
        return ps_options_set(opt, "grid", arg, "--grid", err);
    if (!is_target_command(opt->command) && opt->command != PS_CMD_BENCH && !*config) {
        *config = arg;
        return 0;
    }
    return ps_error_full(err, PS_EUSAGE, NULL, NULL, "flags are written `--name value`",
                         "unexpected argument `%.200s`", arg);
}

static int parse_flag(struct ps_options *opt, int argc, char **argv, int *i, struct ps_error *err)
{
    const char *arg = argv[*i];
    char name[72];
    char source[80];
    size_t n = strcspn(arg + 2, "=");
    if (n == 0 || n >= sizeof name - 1)
        return ps_error_full(err, PS_EUSAGE, NULL, NULL, NULL, "`%.80s` is not a flag", arg);
    memcpy(name, arg + 2, n);
    name[n] = '\0';
    PS_IGNORE(snprintf(source, sizeof source, "--%s", name) < 0, "fits");
    if (arg[2 + n] == '=')
        return ps_options_set(opt, name, arg + 3 + n, source, err);
    const char *value = take_value(name, argc, argv, i);
    if (value)
        return ps_options_set(opt, name, value, source, err);
    if (!ps__options_find(name, opt->command)) /* the better message: there is no such flag */
        return ps_options_set(opt, name, "", source, err);
    return ps_error_full(err, PS_EUSAGE, NULL, source,
                         "a value that begins with two dashes is written with `=`",
                         "`%s` needs a value", source);
}

int ps_options_parse_args(struct ps_options *opt, int argc, char **argv, bool *help,
                          struct ps_error *err)
{
    const char *config = NULL;
    *help = false;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        int ret = 0;
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            *help = true;
            return 0;
        }
        if (!strncmp(arg, "--", 2))
            ret = parse_flag(opt, argc, argv, &i, err);
        else if (arg[0] == '-' && arg[1])
            ret = ps_error_full(err, PS_EUSAGE, NULL, arg, "flags begin with two dashes",
                                "unknown flag `%.80s`", arg);
        else
            ret = parse_argument(opt, arg, &config, err);
        if (ret)
            return ret;
    }
    return config ? ps_options_load_yaml(opt, config, err) : 0;
}
