/* Reading and writing of single option values: see options_internal.h.
 *
 * Numbers are read and written in the C locale, whatever the program's is: a comma as decimal point
 * would break the round trip of config.resolved.yaml. */
#include "session/options_internal.h"

#include <ctype.h>
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "session/host_memory.h"

/* A memory size below this that has no unit lacks one. */
#define UNIT_OPTIONAL (1 << 20)

static void *member(const struct ps_options *opt, const struct ps__option *o)
{
    return (char *)(uintptr_t)opt + o->offset;
}

static int PS_PRINTF(3, 4) reject(char *why, size_t size, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(why, size, fmt, ap) < 0, "truncation is fine");
    va_end(ap);
    return PS_EUSAGE;
}

/* A finite decimal number that takes up the whole text. */
static bool parse_real(const char *text, double *out)
{
    const char *digit = text + (*text == '-' || *text == '+');
    if (!isdigit((unsigned char)*digit) && *digit != '.')
        return false;
    if (digit[0] == '0' && (digit[1] == 'x' || digit[1] == 'X'))
        return false;
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!c)
        return false;
    char *end;
    double v = strtod_l(text, &end, c);
    freelocale(c);
    if (*end || !isfinite(v))
        return false;
    *out = v;
    return true;
}

/* Whole numbers may be written as 1e6, as in other tools; they must be exact. */
static bool parse_int(const char *text, int64_t *out)
{
    errno = 0;
    char *end;
    long long v = strtoll(text, &end, 10);
    if (end != text && !*end && errno == 0 && !isspace((unsigned char)*text)) {
        *out = v;
        return true;
    }
    double r;
    if (!parse_real(text, &r) || r != floor(r) || fabs(r) > 9007199254740992.0)
        return false;
    *out = (int64_t)r;
    return true;
}

static bool parse_uint(const char *text, uint64_t *out)
{
    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    char *end;
    unsigned long long v = strtoull(text, &end, 10);
    if (*end || errno)
        return false;
    *out = v;
    return true;
}

static bool parse_bytes(const char *text, int64_t *out)
{
    static const struct {
        const char *name;
        double bytes;
    } unit[] = {{"", 1},         {"B", 1},       {"KB", 1e3},     {"MB", 1e6},
                {"GB", 1e9},     {"TB", 1e12},   {"KiB", 1024.0}, {"MiB", 1048576.0},
                {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    size_t n = strspn(text, "0123456789.");
    char number[64];
    if (n == 0 || n >= sizeof number)
        return false;
    memcpy(number, text, n);
    number[n] = '\0';
    double v;
    if (!parse_real(number, &v))
        return false;
    for (size_t i = 0; i < sizeof unit / sizeof unit[0]; i++) {
        if (strcmp(text + n, unit[i].name))
            continue;
        double bytes = floor(v * unit[i].bytes);
        if (bytes < 1 || bytes > 0x1p62)
            return false;
        *out = (int64_t)bytes;
        return true;
    }
    return false;
}

bool ps__parse_rate(const char *text, double *out)
{
    int64_t bytes;
    if (parse_real(text, out))
        return *out > 0;
    if (!parse_bytes(text, &bytes))
        return false;
    *out = (double)bytes;
    return true;
}

static int parse_size(int64_t *out, const struct ps__option *o, const char *text, char *why,
                      size_t why_size)
{
    bool percentages = o->type == PS__SIZE;
    size_t n = strlen(text);
    if (!strcmp(text, "auto")) {
        *out = -1;
        return 0;
    }
    double percent;
    char number[32];
    if (percentages && n > 1 && n < sizeof number && text[n - 1] == '%') {
        memcpy(number, text, n - 1);
        number[n - 1] = '\0';
        if (!parse_real(number, &percent) || percent <= 0 || percent > 100)
            return reject(why, why_size, "accepts a percentage above 0%% and up to 100%%");
        int64_t free_bytes = ps_host_memory_free();
        if (free_bytes <= 0)
            return reject(why, why_size,
                          "cannot tell how much memory is free: give a size in bytes");
        *out = (int64_t)((double)free_bytes * percent / 100.0);
        return 0;
    }
    int64_t bytes;
    bool read = parse_bytes(text, &bytes);
    if (read && strstr(o->name, "-mem") && bytes < UNIT_OPTIONAL &&
        text[strspn(text, "0123456789.")] == '\0')
        return reject(why, why_size, "lacks a unit: `%.40sGiB` or `%.40sMiB`?", text, text);
    if (read)
        *out = bytes;
    else
        return reject(why, why_size, "accepts a size such as 512MiB, 24GiB, 1.5TB%s or auto",
                      percentages ? ", 80%" : "");
    return 0;
}

static int find_choice(const char *choices, const char *text)
{
    size_t len = strlen(text);
    int idx = 0;
    for (const char *p = choices; p; idx++) {
        const char *end = strchr(p, '|');
        size_t n = end ? (size_t)(end - p) : strlen(p);
        if (n == len && !memcmp(p, text, n))
            return idx;
        p = end ? end + 1 : NULL;
    }
    return -1;
}

static int parse_choice(const struct ps__option *o, const char *text, int *idx, char *why,
                        size_t size)
{
    *idx = find_choice(o->choices, text);
    if (*idx >= 0)
        return 0;
    bool later = o->not_yet && find_choice(o->not_yet, text) >= 0;
    char list[160];
    PS_IGNORE(snprintf(list, sizeof list, "%s", o->choices) < 0, "choices are short");
    for (char *p = list; *p; p++)
        if (*p == '|')
            *p = '/';
    return reject(why, size, "%s%s", later ? "is not in this version, which has " : "accepts ",
                  list);
}

static int check_range(const struct ps__option *o, double v, char *why, size_t size)
{
    if (v >= o->min && v <= o->max)
        return 0;
    if (o->type != PS__REAL)
        return reject(why, size, "accepts whole numbers from %.0f to %.0f", o->min, o->max);
    return reject(why, size, "accepts numbers %s %g and %s %g",
                  o->min == PS__ABOVE_0 ? "above" : "from", o->min == PS__ABOVE_0 ? 0.0 : o->min,
                  o->max == PS__BELOW_1 ? "below" : "up to", o->max == PS__BELOW_1 ? 1.0 : o->max);
}

static int set_string(char **to, const char *text)
{
    char *copy = strdup(text);
    if (!copy)
        return -ENOMEM;
    free(*to);
    *to = copy;
    return 0;
}

/* Items add up over several flags. */
static int append_item(char **to, bool given, const char *text)
{
    if (!given || !*to)
        return set_string(to, text);
    size_t size = strlen(*to) + strlen(text) + 2;
    char *joined = malloc(size);
    if (!joined)
        return -ENOMEM;
    PS_IGNORE(snprintf(joined, size, "%s,%s", *to, text) < 0, "fits");
    free(*to);
    *to = joined;
    return 0;
}

static int parse_number(void *to, const struct ps__option *o, const char *text, char *why,
                        size_t size)
{
    double real = 0;
    int64_t whole = 0;
    uint64_t natural = 0;
    if (o->type == PS__REAL) {
        if (!parse_real(text, &real))
            return reject(why, size, "accepts a number");
    } else if (o->type == PS__UINT64) {
        if (!parse_uint(text, &natural))
            return reject(why, size, "accepts a whole number from 0 to 18446744073709551615");
        *(uint64_t *)to = natural;
        return 0;
    } else {
        if (!parse_int(text, &whole))
            return reject(why, size, "accepts a whole number");
        real = (double)whole;
    }
    bool fallback = o->fallback && !strcmp(text, o->fallback); /* may lie outside: 0 for "off" */
    int ret = fallback ? 0 : check_range(o, real, why, size);
    if (ret)
        return ret;
    if (o->type == PS__REAL)
        *(double *)to = real;
    else if (o->type == PS__INT)
        *(int *)to = (int)whole;
    else
        *(int64_t *)to = whole;
    return 0;
}

int ps__option_parse(struct ps_options *opt, const struct ps__option *o, const char *text,
                     char *why, size_t why_size)
{
    void *to = member(opt, o);
    int idx;
    int ret;
    switch (o->type) {
    case PS__STRING:
        if (!text[0] && strcmp(o->name, "prompt") && strcmp(o->name, "text"))
            return reject(why, why_size, "needs a value that is not empty");
        return set_string(to, text);
    case PS__LIST:
        if (!text[0])
            return reject(why, why_size, "needs a value that is not empty");
        return append_item(to, ps__option_given(opt, o), text);
    case PS__OPTIMIZER:
        return ps__parse_optimizer(to, text, why, why_size);
    case PS__CHOICE:
        ret = parse_choice(o, text, &idx, why, why_size);
        return ret ? ret : set_string(to, text);
    case PS__ENUM:
        ret = parse_choice(o, text, &idx, why, why_size);
        if (ret == 0)
            *(int *)to = o->values[idx];
        return ret;
    case PS__BOOL:
        idx = find_choice("false|true", text);
        if (idx < 0)
            return reject(why, why_size, "accepts true or false");
        *(bool *)to = idx == 1;
        return 0;
    case PS__SIZE:
    case PS__BYTES:
        return parse_size(to, o, text, why, why_size);
    case PS__THROTTLE:
        return ps__parse_throttle(to, text, why, why_size);
    case PS__ABLATE:
        return ps__parse_ablate(to, text, why, why_size);
    default:
        return parse_number(to, o, text, why, why_size);
    }
}

void ps__format_real(char *buf, size_t size, double v)
{
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    locale_t old = c ? uselocale(c) : (locale_t)0;
    for (int digits = 1; digits <= 17; digits++) {
        PS_IGNORE(snprintf(buf, size, "%.*g", digits, v) < 0, "the buffer is large enough");
        if (strtod(buf, NULL) == v)
            break;
    }
    if (c) {
        uselocale(old);
        freelocale(c);
    }
}

static bool format_choice(char *buf, size_t size, const struct ps__option *o, int value)
{
    const char *p = o->choices;
    for (int i = 0; p; i++) {
        const char *end = strchr(p, '|');
        size_t n = end ? (size_t)(end - p) : strlen(p);
        if (o->values[i] == value && n < size) {
            memcpy(buf, p, n);
            buf[n] = '\0';
            return true;
        }
        p = end ? end + 1 : NULL;
    }
    return false;
}

char *ps__option_format(const struct ps_options *opt, const struct ps__option *o, bool *oom)
{
    const void *from = member(opt, o);
    char buf[384] = "";
    const char *text = buf;
    switch (o->type) {
    case PS__STRING:
    case PS__LIST:
    case PS__CHOICE:
    case PS__OPTIMIZER:
        text = *(char *const *)from;
        break;
    case PS__ENUM:
        if (!format_choice(buf, sizeof buf, o, *(const int *)from))
            text = NULL;
        break;
    case PS__BOOL:
        text = *(const bool *)from ? "true" : "false";
        break;
    case PS__REAL:
        if (*(const double *)from < 0)
            text = NULL;
        else
            ps__format_real(buf, sizeof buf, *(const double *)from);
        break;
    case PS__THROTTLE:
        if (!ps__format_throttle(from, buf, sizeof buf))
            text = NULL;
        break;
    case PS__ABLATE:
        if (!ps__format_ablate(*(const unsigned *)from, buf, sizeof buf))
            text = NULL;
        break;
    case PS__UINT64:
        PS_IGNORE(snprintf(buf, sizeof buf, "%llu", (unsigned long long)*(const uint64_t *)from) <
                      0,
                  "fits");
        break;
    default: {
        long long v = o->type == PS__INT ? *(const int *)from : *(const int64_t *)from;
        bool size = o->type == PS__SIZE || o->type == PS__BYTES;
        if (v < 0)
            text = size ? "auto" : NULL;
        else if (size && v < UNIT_OPTIONAL)
            PS_IGNORE(snprintf(buf, sizeof buf, "%lldB", v) < 0, "fits");
        else
            PS_IGNORE(snprintf(buf, sizeof buf, "%lld", v) < 0, "fits");
    }
    }
    if (!text)
        return NULL;
    char *copy = strdup(text);
    if (!copy)
        *oom = true;
    return copy;
}
