/* `penstock inspect` of a spill store: NVME_PATH/penstock-UUID/. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "offload/spill_store.h"
#include "runtime/base/json.h"
#include "session/inspect_internal.h"

/* Counters of the run state that is shown; other keys are the session's own business. */
static void add_run_state(json_t *details, const struct ps_spill_info *info)
{
    static const char *const keys[] = {"step", "global_step", "updates", "max_steps"};
    json_t *state = NULL;
    if (info->run_state_bytes == 0 ||
        ps_json_parse(info->run_state, info->run_state_bytes, PS_JSON_STRICT, NULL, &state, NULL))
        return;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_t *v = json_is_object(state) ? json_object_get(state, keys[i]) : NULL;
        const char *as = strcmp(keys[i], "global_step") == 0 ? "step" : keys[i];
        if (json_is_integer(v))
            PS_IGNORE(json_object_set(details, as, v), "a report without it is checked below");
    }
    json_decref(state);
}

static json_t *extents_json(const struct ps_spill_info *info)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < info->extent_count; i++) {
        const struct ps_store_extent *e = &info->extent[i];
        json_t *name = json_string(e->name);
        json_t *one = json_pack("{s:o, s:I, s:I, s:o}", "name", name ? name : json_null(), "bytes",
                                (json_int_t)e->bytes, "chunks", (json_int_t)e->chunk_count, "slot",
                                info->slot[i] < 0 ? json_null() : json_integer(info->slot[i]));
        if (json_array_append_new(list, one)) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

int ps__inspect_spill(struct ps_inspect_report *r, struct ps_error *err)
{
    struct ps_spill_info info;
    char hash[24];
    int ret = ps_spill_info_read(&info, r->path, err);
    if (ret < 0)
        return ret;
    if (!info.usable)
        PS_IGNORE(snprintf(r->why_not, sizeof r->why_not, "%s", info.damage.message) < 0,
                  "truncation is fine");
    PS_IGNORE(snprintf(hash, sizeof hash, "%016" PRIx64, info.config_hash) < 0, "fits");
    json_t *v = json_pack("{s:s, s:I, s:s, s:b, s:I, s:I, s:s, s:[b, b], s:I, s:o}", "run_uuid",
                          info.run_uuid, "generation", (json_int_t)info.generation, "mode",
                          info.mode == PS_SPILL_INPLACE ? "inplace" : "shadow", "locked",
                          info.locked, "bytes", (json_int_t)info.bytes, "files",
                          (json_int_t)info.file_count, "config_hash", hash, "superblocks",
                          info.superblock_ok[0], info.superblock_ok[1], "run_state_bytes",
                          (json_int_t)info.run_state_bytes, "extents", extents_json(&info));
    if (v) {
        add_run_state(v, &info);
        if (info.usable && info.damage.code != 0)
            PS_IGNORE(json_object_set_new(v, "warning", json_string(info.damage.message)),
                      "a message that is not UTF-8 is left out");
        ret = json_object_update(r->details, v) ? -ENOMEM : 0;
    }
    if (!v || ret < 0)
        ret = ps_error_full(err, -ENOMEM, r->path, NULL, NULL, "not enough memory for the report");
    json_decref(v);
    ps_spill_info_fini(&info);
    return ret;
}
