/* What the files of the options share: the table's form, and reading and writing of single values.
 */
#ifndef PS_SESSION_OPTIONS_INTERNAL_H
#define PS_SESSION_OPTIONS_INTERNAL_H

#include "session/options.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps__option_type {
    PS__STRING,
    PS__CHOICE, /* a string out of `choices` */
    PS__ENUM,   /* an int: `values` beside `choices` */
    PS__INT,    /* int */
    PS__INT64,
    PS__UINT64,
    PS__REAL, /* double */
    PS__BOOL,
    PS__SIZE,      /* int64_t bytes; "auto" is -1; percentages are of free host memory */
    PS__BYTES,     /* int64_t bytes; "auto" is -1 */
    PS__LIST,      /* a string of items joined by commas; setting it again appends */
    PS__THROTTLE,  /* double[PS_LANE_COUNT]: LANE=RATE,... */
    PS__ABLATE,    /* unsigned, bits of enum ps_ablation: NAME,... */
    PS__OPTIMIZER, /* a string: a name of the registry of optimizers */
};

/* Limits of an open interval: "above 0" and "below 1". */
#define PS__ABOVE_0 2.2250738585072014e-308
#define PS__BELOW_1 (1.0 - 1.1102230246251565e-16)

struct ps__option {
    const char *name; /* flag spelling, with '-' */
    enum ps__option_type type;
    size_t offset;        /* of the member of struct ps_options */
    const char *fallback; /* default as text; NULL: none (NULL, or -1 for numbers) */
    const char *shown;    /* default as --help shows it, where that differs */
    const char *arg;      /* what --help calls the value; NULL: the choices */
    const char *choices;  /* "a|b|c" for CHOICE and ENUM */
    const int *values;    /* of the choices, for ENUM */
    const char *not_yet;  /* choices that other versions have: named in the error */
    double min, max;      /* of numbers */
    const char *aliases;  /* "name name" with '_', or NULL */
    uint32_t commands;    /* bit c: the option exists in command c */
    bool numerical;       /* changes the bits of the result */
    bool transient;       /* belongs to one call, not to the configuration */
    bool planned;         /* the plan's to choose: written to the configuration only when given */
    const char *help;     /* NULL: hidden, for tests */
};

const struct ps__option *ps__options_table(size_t *count);

/* Names of this interface that this version does not have, NULL-terminated, flag spelling. */
const char *const *ps__options_not_yet(void);

/* Entry by name or alias ('-' and '_' alike): the one of `command` if there is one, else of another
 * command, else NULL. */
const struct ps__option *ps__options_find(const char *name, enum ps_command command);

/* Is `name` ('-' and '_' alike) the entry's name or one of its aliases? */
bool ps__option_is(const struct ps__option *o, const char *name);

bool ps__option_given(const struct ps_options *opt, const struct ps__option *o);

/* Parse `text` into the entry's member. On a bad value: PS_EUSAGE, the member untouched, *why holds
 * what is accepted. -ENOMEM without text. */
int ps__option_parse(struct ps_options *opt, const struct ps__option *o, const char *text,
                     char *why, size_t why_size);

/* The member as text that ps__option_parse reads back to the same value; NULL if it is not set (or
 * out of memory: *oom). free() the result. */
char *ps__option_format(const struct ps_options *opt, const struct ps__option *o, bool *oom);

/* Why the entry has no effect with the other values of opt, or NULL if it has one. Static storage.
 */
const char *ps__option_without_effect(const struct ps_options *opt, const struct ps__option *o);

/* options_value_lists.c: the types whose values are lists; as ps__option_parse and _format. format
 * returns false when there is nothing to write. */
int ps__parse_throttle(double rate[PS_LANE_COUNT], const char *text, char *why, size_t why_size);
int ps__parse_ablate(unsigned *mask, const char *text, char *why, size_t why_size);
bool ps__format_throttle(const double rate[PS_LANE_COUNT], char *buf, size_t size);
bool ps__format_ablate(unsigned mask, char *buf, size_t size);

/* options_optimizer.c: flags that only some optimizers read. */
struct ps_optimizer_hyper;
/* Is it such a flag, and the chosen method does not read it? */
bool ps__optimizer_ignores(const struct ps_options *opt, const char *flag);
/* The methods that read it: "sgd, muon". */
void ps__optimizer_readers(const char *flag, char *buf, size_t size);
int ps__parse_optimizer(char **to, const char *text, char *why, size_t why_size);
/* "Not given" for all of them, before anything is set. */
void ps__optimizer_unset(struct ps_options *opt);
/* Values that the chosen method does not have. */
int ps__optimizer_check(const struct ps_options *opt, struct ps_error *err);
/* The method's own defaults for what was not given. After the check. */
int ps__optimizer_defaults(struct ps_options *opt, struct ps_error *err);
/* Of resolved options. n_layer is left at 0. */
void ps__optimizer_hyper(const struct ps_options *opt, struct ps_optimizer_hyper *out);

/* Rates are numbers or sizes: "5e9", "200MiB". */
bool ps__parse_rate(const char *text, double *out);
/* Shortest decimal that reads back to the same double. */
void ps__format_real(char *buf, size_t size, double v);

/* Edit distance (insert, delete, replace, swap of neighbours), '-' and '_' alike, capped at 64. */
int ps__edit_distance(const char *a, const char *b);

/* "train", "data inspect", ... */
const char *ps__command_name(enum ps_command command);

#ifdef __cplusplus
}
#endif
#endif
