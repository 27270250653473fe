/* What the tokenizer tests share: the golden file, variants built from it, CPU time. */
#ifndef PS_TESTS_TOKENIZER_CHECK_H
#define PS_TESTS_TOKENIZER_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/data/tokenizer.h"

/* Sanitizers make everything a few times slower. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWNESS 10.0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLOWNESS 10.0
#endif
#endif
#ifndef SLOWNESS
#define SLOWNESS 1.0
#endif

static inline const char *root_path(char *buf, size_t size, const char *below)
{
    const char *root = getenv("PENSTOCK_ROOT");
    assert_non_null(root);
    assert_true((size_t)snprintf(buf, size, "%s/%s", root, below) < size);
    return buf;
}

static inline json_t *load_golden(void)
{
    char path[4096];
    json_error_t je;
    json_t *golden =
        json_load_file(root_path(path, sizeof path, "tests/golden/tokenizer/golden.json"), 0, &je);
    if (!golden)
        print_error("%s: %s\n", path, je.text);
    assert_non_null(golden);
    return golden;
}

/* A new tokenizer.json: base with the members of patch put into the model or the root. */
static inline json_t *patched(const json_t *golden, const char *base, const json_t *patch)
{
    json_t *root = json_deep_copy(json_object_get(json_object_get(golden, "bases"), base));
    assert_non_null(root);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)patch, key, value)
    {
        json_t *model = json_object_get(root, "model");
        json_t *target = json_object_get(model, key) ? model : root;
        assert_int_equal(json_object_set_new(target, key, json_deep_copy(value)), 0);
    }
    return root;
}

/* ps_tokenizer_parse of a JSON value. */
static inline int parse_value(struct ps_tokenizer **out, const json_t *root, const char *config,
                              struct ps_error *err)
{
    char *text = json_dumps(root, JSON_COMPACT | JSON_ENCODE_ANY);
    assert_non_null(text);
    int ret = ps_tokenizer_parse(out, text, strlen(text), config, config ? strlen(config) : 0, err);
    free(text);
    return ret;
}

static inline struct ps_tokenizer *must_parse(const json_t *root, const char *config)
{
    struct ps_tokenizer *tok = NULL;
    struct ps_error err = {0};
    int ret = parse_value(&tok, root, config, &err);
    if (ret != 0)
        print_error("%s [%s]\n", err.message, err.field);
    assert_int_equal(ret, 0);
    return tok;
}

/* A tokenizer of one base of the golden file with a patch in JSON. */
static inline struct ps_tokenizer *make_tokenizer(const char *base, const char *patch,
                                                  const char *config)
{
    json_t *golden = load_golden();
    json_t *p = json_loads(patch, 0, NULL);
    assert_non_null(p);
    json_t *root = patched(golden, base, p);
    struct ps_tokenizer *tok = must_parse(root, config);
    json_decref(root);
    json_decref(p);
    json_decref(golden);
    return tok;
}

static inline double cpu_now(void)
{
    struct timespec ts;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts), 0);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

#endif
