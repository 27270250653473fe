/* Options as YAML: reading a configuration file and writing config.resolved.yaml, see options.h.
 *
 * Only a flat mapping is accepted. Anchors, aliases, tags and nesting are rejected: what a file
 * says must be visible line by line. */
#include "session/options_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>
#include <yaml.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"

#define CONFIG_BYTES_MAX ((size_t)1 << 20)
#define VALUE_BYTES_MAX 65536

/* Called for each key; value is NULL for an empty or null one. `where` is "file:line". */
typedef int (*pair_fn)(void *arg, const char *key, const char *value, const char *where,
                       struct ps_error *err);

struct reader {
    yaml_parser_t parser;
    const char *file;
    char where[576];
    struct ps_error *err;
};

static void note_line(struct reader *r, size_t line)
{
    PS_IGNORE(snprintf(r->where, sizeof r->where, "%.512s:%zu", r->file, line + 1) < 0, "fits");
}

static int reject(struct reader *r, const char *field, const char *message)
{
    return ps_error_full(r->err, PS_EUSAGE, r->where, field,
                         "write a flat list of `name: value` lines", "%s", message);
}

/* Next event; an anchor or tag on it is an error. The caller deletes the event on success. */
static int next(struct reader *r, yaml_event_t *e)
{
    if (!yaml_parser_parse(&r->parser, e)) {
        note_line(r, r->parser.problem_mark.line);
        if (r->parser.error == YAML_MEMORY_ERROR)
            return ps_error_set(r->err, -ENOMEM, "out of memory");
        return ps_error_full(r->err, PS_EUSAGE, r->where, NULL, NULL, "not valid YAML: %s",
                             r->parser.problem ? r->parser.problem : "unreadable");
    }
    note_line(r, e->start_mark.line);
    bool marked = e->type == YAML_ALIAS_EVENT;
    if (e->type == YAML_SCALAR_EVENT)
        marked = e->data.scalar.anchor || e->data.scalar.tag;
    else if (e->type == YAML_SEQUENCE_START_EVENT)
        marked = e->data.sequence_start.anchor || e->data.sequence_start.tag;
    else if (e->type == YAML_MAPPING_START_EVENT)
        marked = e->data.mapping_start.anchor || e->data.mapping_start.tag;
    if (!marked)
        return 0;
    yaml_event_delete(e);
    return reject(r, NULL, "anchors, aliases and tags are not accepted");
}

static bool is_null(const yaml_event_t *e)
{
    const char *v = (const char *)e->data.scalar.value;
    return e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (!v[0] || !strcmp(v, "~") || !strcmp(v, "null") || !strcmp(v, "Null") ||
            !strcmp(v, "NULL"));
}

static int append(struct reader *r, char *buf, size_t *len, char separator, const yaml_event_t *e,
                  const char *key)
{
    if (strlen((const char *)e->data.scalar.value) != e->data.scalar.length)
        return reject(r, key, "a NUL character is not accepted");
    if (*len + e->data.scalar.length + 2 > VALUE_BYTES_MAX)
        return reject(r, key, "the value is too long");
    if (separator)
        buf[(*len)++] = separator;
    memcpy(buf + *len, e->data.scalar.value, e->data.scalar.length + 1);
    *len += e->data.scalar.length;
    return 0;
}

/* The items of a list joined with commas, or (field_map) the pairs of a mapping as a=b,c=d. */
static int read_collection(struct reader *r, const char *key, bool mapping, char *buf)
{
    size_t len = 0;
    for (size_t i = 0;; i++) {
        yaml_event_t e;
        int ret = next(r, &e);
        if (ret)
            return ret;
        if (e.type == YAML_SEQUENCE_END_EVENT || e.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&e);
            return i ? 0 : reject(r, key, "the list is empty");
        }
        char separator = (char)(i == 0 ? 0 : mapping && i % 2 ? '=' : ',');
        if (e.type != YAML_SCALAR_EVENT)
            ret = reject(r, key, "nested values are not accepted");
        else
            ret = append(r, buf, &len, separator, &e, key);
        yaml_event_delete(&e);
        if (ret)
            return ret;
    }
}

static int read_value(struct reader *r, const char *key, char *buf, const char **value)
{
    yaml_event_t e;
    int ret = next(r, &e);
    if (ret)
        return ret;
    char where[sizeof r->where];
    memcpy(where, r->where, sizeof where);
    size_t len = 0;
    bool pairs = ps__edit_distance(key, "field-map") == 0;
    yaml_event_type_t type = e.type;
    buf[0] = '\0';
    *value = buf;
    if (type == YAML_SCALAR_EVENT) {
        if (is_null(&e))
            *value = NULL;
        else
            ret = append(r, buf, &len, 0, &e, key);
    } else if (type == YAML_MAPPING_START_EVENT && !pairs) {
        ret = reject(r, key, "nested values are not accepted");
    }
    yaml_event_delete(&e);
    if (ret == 0 && type != YAML_SCALAR_EVENT)
        ret = read_collection(r, key, type == YAML_MAPPING_START_EVENT, buf);
    if (ret == 0)
        memcpy(r->where, where, sizeof where); /* errors name the line where the value begins */
    return ret;
}

static int read_pairs(struct reader *r, char *buf, pair_fn fn, void *arg)
{
    for (;;) {
        yaml_event_t e;
        int ret = next(r, &e);
        if (ret)
            return ret;
        if (e.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&e);
            return 0;
        }
        const char *value = NULL;
        if (e.type != YAML_SCALAR_EVENT)
            ret = reject(r, NULL, "a key must be a name");
        else if (e.data.scalar.length > 64 ||
                 strlen((const char *)e.data.scalar.value) != e.data.scalar.length)
            ret = reject(r, NULL, "a key is a name of at most 64 letters");
        const char *key = ret ? "" : (const char *)e.data.scalar.value;
        if (ret == 0)
            ret = read_value(r, key, buf, &value);
        if (ret == 0)
            ret = fn(arg, key, value, r->where, r->err);
        yaml_event_delete(&e);
        if (ret)
            return ret;
    }
}

/* stream start, document start, mapping, document end, stream end; an empty stream is an empty
 * mapping. */
static int read_document(struct reader *r, char *buf, pair_fn fn, void *arg)
{
    int mappings = 0;
    for (;;) {
        yaml_event_t e;
        int ret = next(r, &e);
        if (ret)
            return ret;
        yaml_event_type_t type = e.type;
        bool null = type == YAML_SCALAR_EVENT && is_null(&e);
        yaml_event_delete(&e);
        if (type == YAML_STREAM_END_EVENT)
            return 0;
        if (type == YAML_MAPPING_START_EVENT && mappings++ == 0)
            ret = read_pairs(r, buf, fn, arg);
        else if (type == YAML_MAPPING_START_EVENT)
            ret = reject(r, NULL, "more than one document");
        else if ((type == YAML_SCALAR_EVENT && !null) || type == YAML_SEQUENCE_START_EVENT)
            ret = reject(r, NULL, "expected `name: value` lines");
        if (ret)
            return ret;
    }
}

static int visit(const char *text, size_t len, const char *file, pair_fn fn, void *arg,
                 struct ps_error *err)
{
    struct reader r = {.file = file, .err = err};
    char *buf = malloc(VALUE_BYTES_MAX);
    if (!buf || !yaml_parser_initialize(&r.parser)) {
        free(buf);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
    int ret = read_document(&r, buf, fn, arg);
    yaml_parser_delete(&r.parser);
    free(buf);
    return ret;
}

struct loading {
    struct ps_options *opt;
    uint64_t flags[4]; /* given before the file: these win */
    uint64_t seen[4];  /* in the file */
};

static int set_pair(void *arg, const char *key, const char *value, const char *where,
                    struct ps_error *err)
{
    struct loading *l = arg;
    struct ps_options *opt = l->opt;
    size_t count;
    const struct ps__option *table = ps__options_table(&count);
    const struct ps__option *o = ps__options_find(key, opt->command);
    size_t i = o ? (size_t)(o - table) : 0;
    uint64_t bit = (uint64_t)1 << (i % 64);
    if (o && l->seen[i / 64] & bit)
        return ps_error_full(err, PS_EUSAGE, where, key, "keep one of the two lines",
                             "option `%s` is set twice", o->name);
    if (o)
        l->seen[i / 64] |= bit;
    bool flag_wins = o && l->flags[i / 64] & bit;
    if (o && o->commands >> opt->command & 1u && (!value || flag_wins))
        return 0;
    return ps_options_set(opt, key, value ? value : "", where, err);
}

static int load_text(struct ps_options *opt, const char *text, size_t len, const char *file,
                     struct ps_error *err)
{
    struct loading l = {.opt = opt};
    memcpy(l.flags, opt->given, sizeof l.flags);
    return visit(text, len, file, set_pair, &l, err);
}

int ps_options_load_yaml(struct ps_options *opt, const char *path, struct ps_error *err)
{
    char *text;
    size_t len;
    int ret = ps_file_read(path, CONFIG_BYTES_MAX, &text, &len, err);
    if (ret < 0) {
        if (err && ret != -ENOMEM)
            err->code = PS_EUSAGE; /* whatever is wrong with it, it is the configuration's file */
        return ret == -ENOMEM ? ret : PS_EUSAGE;
    }
    ret = load_text(opt, text, len, path, err);
    free(text);
    return ret;
}

/* A growing text. */
struct text {
    char *data;
    size_t len, cap;
    bool oom;
};

static void add(struct text *t, const char *s, bool quoted)
{
    size_t n = strlen(s);
    size_t want = t->len + (quoted ? 6 * n + 2 : n) + 1; /* a quoted byte takes at most six */
    if (!t->oom && want > t->cap) {
        size_t cap = want * 2;
        char *data = realloc(t->data, cap);
        if (!data) {
            t->oom = true;
        } else {
            t->data = data;
            t->cap = cap;
        }
    }
    if (t->oom)
        return;
    if (quoted) {
        bool fits = ps_json_quote(t->data, t->cap, &t->len, s, n);
        assert(fits);
        (void)fits;
    } else {
        memcpy(t->data + t->len, s, n);
        t->len += n;
    }
    t->data[t->len] = '\0';
}

/* Call for each option of the command that has an effect and a value. */
static int each_value(const struct ps_options *opt, bool numerical,
                      void (*fn)(void *arg, const struct ps__option *o, const char *value),
                      void *arg)
{
    size_t count;
    const struct ps__option *t = ps__options_table(&count);
    bool oom = false;
    for (size_t i = 0; i < count && !oom; i++) {
        if (!(t[i].commands >> opt->command & 1u) || t[i].transient ||
            (t[i].planned && !ps__option_given(opt, &t[i])) || (numerical && !t[i].numerical) ||
            ps__option_without_effect(opt, &t[i]))
            continue;
        char *value = ps__option_format(opt, &t[i], &oom);
        if (value)
            fn(arg, &t[i], value);
        free(value);
    }
    return oom ? -ENOMEM : 0;
}

static void add_line(void *arg, const struct ps__option *o, const char *value)
{
    struct text *t = arg;
    char name[64];
    size_t n = strlen(o->name);
    assert(n < sizeof name);
    for (size_t i = 0; i <= n; i++)
        name[i] = o->name[i] == '-' ? '_' : o->name[i];
    add(t, name, false);
    add(t, ": ", false);
    add(t, value, o->type == PS__STRING || o->type == PS__CHOICE || o->type >= PS__LIST);
    add(t, "\n", false);
}

char *ps_options_to_yaml(const struct ps_options *opt)
{
    struct text t = {0};
    add(&t, "", false);
    int ret = each_value(opt, false, add_line, &t);
    if (ret || t.oom) {
        free(t.data);
        return NULL;
    }
    return t.data;
}

static void hash_value(void *arg, const struct ps__option *o, const char *value)
{
    XXH3_state_t *state = arg;
    XXH3_64bits_update(state, o->name, strlen(o->name) + 1);
    XXH3_64bits_update(state, value, strlen(value) + 1);
}

uint64_t ps_options_numerical_hash(const struct ps_options *opt)
{
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        return 0;
    XXH3_64bits_reset(state);
    int ret = each_value(opt, true, hash_value, state);
    uint64_t hash = ret ? 0 : XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

/* Append "name: then -> now" to text. */
static void describe(char *text, size_t size, const char *name, const char *then, const char *now)
{
    size_t len = strlen(text);
    PS_IGNORE(snprintf(text + len, size - len, "%s%s (%s then, %s now)", len ? ", " : "", name,
                       then ? then : "not set", now ? now : "not set") < 0,
              "truncation is fine");
}

static int compare(const struct ps_options *a, const struct ps_options *b, char *text, size_t size)
{
    size_t count;
    const struct ps__option *t = ps__options_table(&count);
    int differences = 0;
    bool oom = false;
    for (size_t i = 0; i < count && !oom; i++) {
        if (!t[i].numerical || !(t[i].commands >> a->command & 1u))
            continue;
        char *then = ps__option_without_effect(a, &t[i]) ? NULL : ps__option_format(a, &t[i], &oom);
        char *now = ps__option_without_effect(b, &t[i]) ? NULL : ps__option_format(b, &t[i], &oom);
        if (!then != !now || (then && strcmp(then, now))) {
            describe(text, size, t[i].name, then, now);
            differences++;
        }
        free(then);
        free(now);
    }
    return oom ? -ENOMEM : differences;
}

int ps_options_numerical_diff(const char *then, const char *now, char *text, size_t size,
                              struct ps_error *err)
{
    struct ps_options a;
    struct ps_options b;
    ps_options_init(&a, PS_CMD_TRAIN);
    ps_options_init(&b, PS_CMD_TRAIN);
    text[0] = '\0';
    int ret = load_text(&a, then, strlen(then), "(configuration of the checkpoint)", err);
    if (ret == 0)
        ret = load_text(&b, now, strlen(now), "(configuration now)", err);
    if (ret == 0) {
        ret = compare(&a, &b, text, size);
        if (ret < 0)
            ps_error_set(err, ret, "out of memory");
    }
    ps_options_fini(&a);
    ps_options_fini(&b);
    return ret;
}
