/* Fuzz target: the text of a hardware profile. What is accepted gives finite costs and comes back
 * the same through its own text. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "offload/profile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_cost(const struct ps_profile *p, enum ps_dtype dtype, bool discrete)
{
    struct ps_cost_query q = {.dtype = dtype,
                              .tokens = 512,
                              .hidden_size = 64,
                              .intermediate_size = 192,
                              .discrete = discrete,
                              .sustained = true};
    struct ps_cost_model m;
    ps_profile_cost(p, &q, &m);
    struct ps_task t = {.flops = 1e9, .bytes = 1 << 20};
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        t.lane = (enum ps_lane)l;
        for (int k = 0; k < PS_TASK_KIND_COUNT; k++) {
            t.kind = (enum ps_task_kind)k;
            double s = ps_cost_solo_s(&m, &t);
            if (!isfinite(s) || s < 0)
                abort();
        }
        for (int r = 0; r < PS_RESOURCE_COUNT; r++)
            if (!(m.use[l][r] >= 0 && m.use[l][r] <= 1))
                abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ps_profile p, q;
    struct ps_error err = {0};
    if (ps_profile_parse(&p, (const char *)data, size, "hardware.json", &err) != 0) {
        if (!err.message[0] || strcmp(err.file, "hardware.json") != 0 || !err.advice[0])
            abort();
        return 0;
    }
    char *text;
    size_t len;
    if (ps_profile_print(&p, &text, &len, &err) != 0 ||
        ps_profile_parse(&q, text, len, "again.json", &err) != 0 || memcmp(&p, &q, sizeof p) != 0)
        abort();
    free(text);
    check_cost(&p, PS_DTYPE_BF16, false);
    check_cost(&p, PS_DTYPE_F32, true);
    return 0;
}
