/* Which linears get an adapter: see targets.h. */
#include "peft/targets.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/params.h"

static int bad_layers(struct ps_error *err, const char *option, const char *text, int32_t n_layer)
{
    return ps_error_full(err, PS_EUSAGE, NULL, option, "use all, last:N, A-B or a list of numbers",
                         "cannot read the layers '%s'; this model has layers 0 to %d", text,
                         n_layer - 1);
}

/* A non-negative number at *at; advances. -1: none. */
static long number(const char **at)
{
    if (**at < '0' || **at > '9')
        return -1;
    char *end;
    long v = strtol(*at, &end, 10);
    *at = end;
    return v > 1000000 ? 1000000 : v;
}

int ps_layers_parse(bool *on, int32_t n_layer, const char *text, const char *option,
                    struct ps_error *err)
{
    memset(on, 0, (size_t)n_layer * sizeof *on);
    const char *at = text;
    long first = 0;
    long last = n_layer - 1;
    if (strcmp(text, "all") == 0)
        at = "";
    if (strncmp(text, "last:", 5) == 0) {
        at = text + 5;
        long count = number(&at);
        if (count < 1 || count > n_layer || *at)
            return bad_layers(err, option, text, n_layer);
        first = n_layer - count;
    }
    if (!*at && *text) {
        for (long l = first; l <= last; l++)
            on[l] = true;
        return 0;
    }
    for (;;) {
        first = number(&at);
        last = first;
        if (*at == '-') {
            at++;
            last = number(&at);
        }
        if (first < 0 || last < first || last >= n_layer)
            return bad_layers(err, option, text, n_layer);
        for (long l = first; l <= last; l++)
            on[l] = true;
        if (!*at)
            return 0;
        if (*at++ != ',')
            return bad_layers(err, option, text, n_layer);
    }
}

#define EMBED_BIT (1u << PS_LINEAR_COUNT)
#define HEAD_BIT (2u << PS_LINEAR_COUNT)

static unsigned word_mask(const char *word, size_t len)
{
    static const struct {
        const char *name;
        unsigned mask;
    } group[] = {{"all", (1u << PS_LINEAR_COUNT) - 1},
                 {"attn", 0xf},
                 {"embed_tokens", EMBED_BIT},
                 {"lm_head", HEAD_BIT}};
    for (size_t i = 0; i < sizeof group / sizeof *group; i++)
        if (strlen(group[i].name) == len && strncmp(group[i].name, word, len) == 0)
            return group[i].mask;
    for (int r = 0; r < PS_LINEAR_COUNT; r++) {
        const char *name = ps_linear_name((enum ps_role)r);
        if (strlen(name) == len && strncmp(name, word, len) == 0)
            return 1u << r;
    }
    return 0;
}

/* A comma list of names -> mask; false if any word is another. */
static bool parse_list(const char *target, unsigned *mask)
{
    *mask = 0;
    for (const char *at = target;;) {
        size_t len = strcspn(at, ",");
        unsigned word = word_mask(at, len);
        if (!word)
            return false;
        *mask |= word;
        at += len;
        if (!*at)
            return true;
        at++;
    }
}

static int unknown_target(struct ps_error *err, const char *target)
{
    return ps_error_full(
        err, PS_EUSAGE, NULL, "lora-target",
        "use all, attn, names of q_proj k_proj v_proj o_proj gate_proj up_proj "
        "down_proj embed_tokens lm_head, or a regular expression for the whole module path such as "
        ".*self_attn\\.[qv]_proj",
        "the target '%s' matches no module of this model", target);
}

static int select_regex(bool *site_on, const bool *layer_on, const struct ps_model_config *cfg,
                        const char *target, struct ps_error *err)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)target, PCRE2_ZERO_TERMINATED,
                                   PCRE2_ANCHORED | PCRE2_ENDANCHORED, &code, &at, NULL);
    if (!re) {
        PCRE2_UCHAR why[128] = "";
        pcre2_get_error_message(code, why, sizeof why);
        return ps_error_full(err, PS_EUSAGE, NULL, "lora-target", NULL,
                             "the regular expression '%s' is wrong at %zu: %s", target, (size_t)at,
                             (const char *)why);
    }
    pcre2_match_data *md = pcre2_match_data_create(1, NULL);
    pcre2_match_context *mc = pcre2_match_context_create(NULL);
    int ret = md && mc ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    if (!ret) {
        pcre2_set_match_limit(mc, 100000);
        pcre2_set_depth_limit(mc, 1000);
    }
    bool any = false;
    for (size_t i = 0; !ret && i < ps_site_count(cfg->n_layer); i++) {
        char path[PS_SITE_PATH_MAX];
        int32_t layer;
        enum ps_role role;
        ps_site_at(cfg->n_layer, i, &layer, &role);
        ps_site_path(path, layer, role);
        int rc = pcre2_match(re, (PCRE2_SPTR)path, strlen(path), 0, 0, md, mc);
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
            ret = ps_error_full(err, PS_EUSAGE, NULL, "lora-target", "use a simpler expression",
                                "the regular expression '%s' exceeds the match limits", target);
        site_on[i] = rc >= 0 && (layer < 0 || layer_on[layer]);
        any |= site_on[i];
    }
    pcre2_match_context_free(mc);
    pcre2_match_data_free(md);
    pcre2_code_free(re);
    return !ret && !any ? unknown_target(err, target) : ret;
}

int ps_targets_select(bool *site_on, const struct ps_model_config *cfg, const char *target,
                      const char *layers, struct ps_error *err)
{
    bool *layer_on = calloc((size_t)cfg->n_layer, sizeof *layer_on);
    if (!layer_on)
        return ps_error_set(err, -ENOMEM, "out of memory");
    int ret = ps_layers_parse(layer_on, cfg->n_layer, layers, "lora-layers", err);
    unsigned mask = 0;
    if (ret == 0 && parse_list(target, &mask))
        for (size_t i = 0; i < ps_site_count(cfg->n_layer); i++) {
            int32_t layer;
            enum ps_role role;
            ps_site_at(cfg->n_layer, i, &layer, &role);
            unsigned bit = role == PS_ROLE_EMBED  ? EMBED_BIT
                           : role == PS_ROLE_HEAD ? HEAD_BIT
                                                  : 1u << role;
            site_on[i] = (layer < 0 || layer_on[layer]) && (mask & bit);
        }
    else if (ret == 0)
        ret = strpbrk(target, ".*\\[(|^$+?") ? select_regex(site_on, layer_on, cfg, target, err)
                                             : unknown_target(err, target);
    free(layer_on);
    return ret;
}
