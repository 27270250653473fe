/* Options whose values are lists of known names: --throttle and --ablate. See options_internal.h.
 */
#include "session/options_internal.h"

#include <stdarg.h>
#include <string.h>

#include "runtime/train/step.h"

static int PS_PRINTF(3, 4) reject(char *why, size_t size, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(why, size, fmt, ap) < 0, "truncation is fine");
    va_end(ap);
    return PS_EUSAGE;
}

/* Append ", word" or "word". */
static void join(char *buf, size_t size, const char *separator, const char *word)
{
    size_t len = strlen(buf);
    PS_IGNORE(snprintf(buf + len, size - len, "%s%s", len ? separator : "", word) < 0,
              "truncation is fine");
}

static size_t item_count(const char *text)
{
    size_t count = 1;
    for (; *text; text++)
        count += *text == ',';
    return count;
}

static int reject_lane(char *why, size_t size)
{
    char list[160] = "";
    for (int l = 0; l < PS_LANE_COUNT; l++)
        join(list, sizeof list, ", ", ps_lane_name((enum ps_lane)l));
    return reject(why, size, "accepts LANE=RATE,... with a lane out of %s", list);
}

int ps__parse_throttle(double rate[PS_LANE_COUNT], const char *text, char *why, size_t why_size)
{
    double found[PS_LANE_COUNT] = {0};
    char item[96];
    for (size_t i = 0, count = item_count(text); i < count; i++) {
        bool fits = ps_options_list_item(text, i, item, sizeof item);
        char *equals = fits ? strchr(item, '=') : NULL;
        if (!equals)
            return reject_lane(why, why_size);
        *equals = '\0';
        for (char *p = item; *p; p++)
            *p = (char)(*p == '-' ? '_' : *p);
        int lane = ps_lane_find(item);
        if (lane < 0)
            return reject_lane(why, why_size);
        if (found[lane] > 0)
            return reject(why, why_size, "accepts each lane once: %s is there twice", item);
        if (!ps__parse_rate(equals + 1, &found[lane]))
            return reject(why, why_size, "accepts rates above 0 as 200MiB (a second) or 5e9");
    }
    memcpy(rate, found, sizeof found);
    return 0;
}

bool ps__format_throttle(const double rate[PS_LANE_COUNT], char *buf, size_t size)
{
    buf[0] = '\0';
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        char number[40];
        char item[80];
        if (rate[l] <= 0)
            continue;
        ps__format_real(number, sizeof number, rate[l]);
        PS_IGNORE(snprintf(item, sizeof item, "%s=%s", ps_lane_name((enum ps_lane)l), number) < 0,
                  "fits");
        join(buf, size, ",", item);
    }
    return buf[0] != '\0';
}

static int reject_ablation(char *why, size_t size)
{
    char list[160] = "";
    for (unsigned bit = 1; bit <= PS_ABLATE_LAYER_MAJOR; bit <<= 1)
        join(list, sizeof list, ", ", ps_ablation_name(bit));
    return reject(why, size, "accepts names out of %s", list);
}

int ps__parse_ablate(unsigned *mask, const char *text, char *why, size_t why_size)
{
    unsigned found = 0;
    char item[64];
    for (size_t i = 0, count = item_count(text); i < count; i++) {
        if (!ps_options_list_item(text, i, item, sizeof item))
            return reject_ablation(why, why_size);
        for (char *p = item; *p; p++)
            *p = (char)(*p == '_' ? '-' : *p);
        unsigned bit = ps_ablation_find(item);
        if (!bit)
            return reject_ablation(why, why_size);
        found |= bit;
    }
    *mask = found;
    return 0;
}

bool ps__format_ablate(unsigned mask, char *buf, size_t size)
{
    buf[0] = '\0';
    for (unsigned bit = 1; bit <= PS_ABLATE_LAYER_MAJOR; bit <<= 1)
        if (mask & bit)
            join(buf, size, ",", ps_ablation_name(bit));
    return buf[0] != '\0';
}
