/* Ranks and alphas by module: see adapter_config.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "peft/adapter_config.h"

static int compile(pcre2_code **out, const char *key, const char *field, struct ps_error *err)
{
    char text[512];
    int len = snprintf(text, sizeof text, "(.*\\.)?(%s)", key);
    if (len < 0 || (size_t)len >= sizeof text)
        return ps_error_full(err, PS_EUSAGE, NULL, field, NULL, "the key '%.64s' is too long", key);
    int code;
    PCRE2_SIZE at;
    *out = pcre2_compile((PCRE2_SPTR)text, (PCRE2_SIZE)len, PCRE2_ANCHORED | PCRE2_ENDANCHORED,
                         &code, &at, NULL);
    if (*out)
        return 0;
    PCRE2_UCHAR why[128] = "";
    pcre2_get_error_message(code, why, sizeof why);
    return ps_error_full(err, PS_EUSAGE, NULL, field, NULL,
                         "the key '%.64s' is no regular expression: %s", key, (const char *)why);
}

static bool matches(const pcre2_code *re, pcre2_match_data *md, int32_t n_layer, size_t site)
{
    char path[PS_SITE_PATH_MAX];
    int32_t layer;
    enum ps_role role;
    ps_site_at(n_layer, site, &layer, &role);
    ps_site_path(path, layer, role);
    return pcre2_match(re, (PCRE2_SPTR)path, strlen(path), 0, 0, md, NULL) >= 0;
}

int ps_patterns_apply(struct ps_adapter_config *site_config, int32_t n_layer,
                      const struct ps_pattern *pattern, size_t count, bool is_alpha,
                      const char *field, struct ps_error *err)
{
    size_t sites = ps_site_count(n_layer);
    pcre2_match_data *md = pcre2_match_data_create(1, NULL);
    int ret = md ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
    /* backwards: the first key that matches is the last to set */
    for (size_t i = count; ret == 0 && i-- > 0;) {
        double v = pattern[i].value;
        pcre2_code *re = NULL;
        ret = compile(&re, pattern[i].key, field, err);
        bool whole = v >= 1 && v <= 65536 && v == floor(v);
        if (ret == 0 && (is_alpha ? !(v > 0 && v < 1e9) : !whole))
            ret = ps_error_full(err, PS_EUSAGE, NULL, field, "as q_proj=8,down_proj=4",
                                "the value %g of '%.64s' is out of range", v, pattern[i].key);
        bool any = false;
        for (size_t s = 0; ret == 0 && s < sites; s++) {
            if (!matches(re, md, n_layer, s))
                continue;
            any = true;
            if (is_alpha)
                site_config[s].alpha = v;
            else
                site_config[s].r = (int32_t)v;
        }
        if (ret == 0 && !any)
            ret = ps_error_full(err, PS_EUSAGE, NULL, field, "use names as q_proj or whole paths",
                                "the key '%.64s' matches no linear of this model", pattern[i].key);
        pcre2_code_free(re);
    }
    pcre2_match_data_free(md);
    return ret;
}
