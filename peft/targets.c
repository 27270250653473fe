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

/* A comma list of the seven module names -> mask; false if any word is another. */
static bool parse_list(const char *target, unsigned *mask)
{
    *mask = 0;
    for (const char *at = target;;) {
        size_t len = strcspn(at, ",");
        int found = -1;
        for (int r = 0; r < PS_LINEAR_COUNT; r++) {
            const char *name = ps_linear_name((enum ps_role)r);
            if (strlen(name) == len && strncmp(name, at, len) == 0)
                found = r;
        }
        if (found < 0)
            return false;
        *mask |= 1u << found;
        at += len;
        if (!*at)
            return true;
        at++;
    }
}

static int unknown_target(struct ps_error *err, const char *target)
{
    return ps_error_full(err, PS_EUSAGE, NULL, "lora-target",
                         "use all, attn, names of q_proj k_proj v_proj o_proj gate_proj up_proj "
                         "down_proj, or a regular expression for the whole module path such as "
                         ".*self_attn\\.[qv]_proj",
                         "the target '%s' matches no linear of this model", target);
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
    for (int32_t i = 0; !ret && i < cfg->n_layer * PS_LINEAR_COUNT; i++) {
        char path[96];
        enum ps_role r = (enum ps_role)(i % PS_LINEAR_COUNT);
        int len = snprintf(path, sizeof path, "model.layers.%d.%s.%s", i / PS_LINEAR_COUNT,
                           ps_linear_parent(r), ps_linear_name(r));
        int rc = pcre2_match(re, (PCRE2_SPTR)path, (PCRE2_SIZE)len, 0, 0, md, mc);
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
            ret = ps_error_full(err, PS_EUSAGE, NULL, "lora-target", "use a simpler expression",
                                "the regular expression '%s' exceeds the match limits", target);
        site_on[i] = rc >= 0 && layer_on[i / PS_LINEAR_COUNT];
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
    if (strcmp(target, "all") == 0)
        mask = (1u << PS_LINEAR_COUNT) - 1;
    else if (strcmp(target, "attn") == 0)
        mask = 0xf;
    if (ret == 0 && (mask || parse_list(target, &mask)))
        for (int32_t i = 0; i < cfg->n_layer * PS_LINEAR_COUNT; i++)
            site_on[i] = layer_on[i / PS_LINEAR_COUNT] && (mask >> (i % PS_LINEAR_COUNT) & 1);
    else if (ret == 0)
        ret = strpbrk(target, ".*\\[(|^$+?") ? select_regex(site_on, layer_on, cfg, target, err)
                                             : unknown_target(err, target);
    free(layer_on);
    return ret;
}
