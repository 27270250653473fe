/* Fuzz target: a schedule file. What is accepted validates, and is the same after it was written
 * and read again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/train/schedule_json.h"
#include "runtime/train/step.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Through a file in the directory of the run, rarely: it is far slower than the parser. */
static void round_trip(const struct ps_schedule *s, size_t n)
{
    const struct ps_schedule *set[PS_SEGMENT_COUNT];
    struct ps_schedule back[PS_SEGMENT_COUNT];
    struct ps_error err = {0};
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        set[i] = &s[i];
    if (ps_schedule_export_set(set, n, "fuzz_schedule.json", &err) != 0 ||
        ps_schedule_import_set(back, PS_SEGMENT_COUNT, &count, "fuzz_schedule.json", &err) != 0 ||
        count != n)
        abort();
    for (size_t i = 0; i < n; i++) {
        if (back[i].name != s[i].name || back[i].task_count != s[i].task_count ||
            back[i].dep_count != s[i].dep_count || back[i].access_count != s[i].access_count ||
            back[i].buffer_count != s[i].buffer_count)
            abort();
        ps_schedule_fini(&back[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned accepted;
    struct ps_schedule s[PS_SEGMENT_COUNT];
    struct ps_error err = {0};
    size_t n = 0;
    int ret = ps_schedule_parse_set(s, PS_SEGMENT_COUNT, &n, (const char *)data, size,
                                    "schedule.json", &err);
    if (ret != 0) {
        if (!err.message[0] || strcmp(err.file, "schedule.json") != 0 || err.code != ret ||
            (ret != PS_EFORMAT && ret != PS_EUSAGE))
            abort();
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        struct ps_edge *edge;
        size_t edges;
        if (ps_schedule_validate(&s[i], &err) != 0 ||
            ps_schedule_reduction(&s[i], &edge, &edges) != 0)
            abort();
        for (size_t e = 0; e < edges; e++)
            if (edge[e].dep_idx == UINT32_MAX &&
                ps_schedule_validate_without(&s[i], &edge[e], &err) != PS_EUSAGE)
                abort();
        free(edge);
    }
    if (accepted++ % 64 == 0)
        round_trip(s, n);
    for (size_t i = 0; i < n; i++)
        ps_schedule_fini(&s[i]);
    return 0;
}
