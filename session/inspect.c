/* `penstock inspect`: see inspect.h. The text form is in inspect_text.c. */
#include "session/inspect.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "peft/adapters.h"
#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/model/config.h"
#include "runtime/model/params.h"
#include "runtime/model/safetensors.h"
#include "runtime/model/weights.h"
#include "session/inspect_internal.h"

#define JSON_BYTES_MAX ((size_t)1 << 20)
#define STATE_BYTES_MAX ((size_t)1 << 30)
#define LAYER_MAX 1024

static int no_memory(const char *path, struct ps_error *err)
{
    return ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory for the report");
}

static int path_in(char path[PATH_MAX], const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(path, PATH_MAX, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

/* Whether the directory has an entry of this name; dangling links count, so that they are errors
 * that name the file. */
static bool has(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    return ps_path_join(path, sizeof path, dir, name) && lstat(path, &st) == 0;
}

static bool has_weights(const char *dir)
{
    return has(dir, "model.safetensors") || has(dir, "model.safetensors.index.json");
}

PS_PRINTF(2, 3) static void why_not(struct ps_inspect_report *r, const char *fmt, ...)
{
    char text[700];
    struct ps_error clean; /* its text is printable, and no character is cut in half */
    if (r->why_not[0])
        return;
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(text, sizeof text, fmt, ap) < 0, "truncation is fine");
    va_end(ap);
    PS_IGNORE(ps_error_set(&clean, 0, "%s", text), "it returns the 0 given to it");
    static_assert(sizeof r->why_not == sizeof clean.message, "one copies the other");
    memcpy(r->why_not, clean.message, sizeof r->why_not);
}

/* A JSON string; null where the bytes (of a file name) are not UTF-8. */
static json_t *json_text(const char *text)
{
    json_t *v = json_string(text);
    return v ? v : json_null();
}

/* Turn "valid, but not for us" into a reason; other errors stay errors. */
static int as_reason(struct ps_inspect_report *r, int ret, struct ps_error *err)
{
    if (ret != PS_EUNSUPPORTED)
        return ret;
    why_not(r, "%s", err->message);
    memset(err, 0, sizeof *err);
    return 0;
}

static json_t *shape_json(const struct ps_st_tensor *t)
{
    json_t *shape = json_array();
    for (int d = 0; d < t->rank; d++) {
        if (json_array_append_new(shape, json_integer(t->shape[d]))) {
            json_decref(shape);
            return NULL;
        }
    }
    return shape;
}

/* List the tensors of a file; *elements (may be NULL) is increased by what they hold. */
static int add_tensors(struct ps_inspect_report *r, const struct ps_st_file *f, uint64_t *elements,
                       struct ps_error *err)
{
    const char *path = ps_st_path(f);
    const char *slash = strrchr(path, '/');
    for (size_t i = 0; i < ps_st_count(f); i++) {
        const struct ps_st_tensor *t = ps_st_at(f, i);
        json_t *one =
            json_pack("{s:s, s:s, s:o, s:o}", "name", t->name, "dtype", t->dtype_text, "shape",
                      shape_json(t), "file", json_text(slash ? slash + 1 : path));
        if (json_array_append_new(r->tensors, one))
            return no_memory(path, err);
        if (elements)
            *elements += (uint64_t)t->elements;
    }
    return 0;
}

static int add_file(struct ps_inspect_report *r, const char *path, uint64_t *elements,
                    struct ps_error *err)
{
    struct ps_st_file *f;
    int ret = ps_st_open(&f, path, err);
    if (ret)
        return ret;
    ret = add_tensors(r, f, elements, err);
    ps_st_close(f);
    return ret;
}

static int detail(struct ps_inspect_report *r, const char *key, json_t *value, struct ps_error *err)
{
    return json_object_set_new(r->details, key, value) ? no_memory(r->path, err) : 0;
}

static int model_details(struct ps_inspect_report *r, const struct ps_model_config *c,
                         struct ps_error *err)
{
    static const char *const rope[] = {"default", "linear", "llama3"};
    json_t *v = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:s, s:f, s:i}",
                          "model_type", c->model_type, "architecture", c->architecture, "layers",
                          c->n_layer, "hidden_size", c->hidden_size, "intermediate_size",
                          c->intermediate_size, "heads", c->n_head, "kv_heads", c->n_kv_head,
                          "head_dim", c->head_dim, "vocab_size", c->vocab_size,
                          "max_position_embeddings", c->max_position_embeddings, "tied",
                          c->tie_word_embeddings, "rope", rope[c->rope_type], "rope_theta",
                          c->rope_theta, "sliding_window", c->sliding_window);
    int ret = v && json_object_update(r->details, v) == 0 ? 0 : no_memory(r->path, err);
    json_decref(v);
    return ret;
}

/* Compare the weights (NULL: none) with what the configuration asks for. */
static int check_weights(struct ps_inspect_report *r, const struct ps_model_config *c,
                         const char *dir, const struct ps_st_set *set, struct ps_error *err)
{
    struct ps_param_table table;
    if (ps_param_table_create(&table, c))
        return no_memory(dir, err);
    size_t used = 0, total = 0;
    for (size_t i = 0; set && i < table.count; i++) {
        const struct ps_st_tensor *t;
        const struct ps_st_file *f;
        struct ps_error reason = {0};
        if (ps_weights_find(set, dir, &table.param[i], &t, &f, &reason) == 0)
            used++;
        else
            why_not(r, "%s", reason.message);
    }
    for (size_t i = 0; set && i < ps_st_set_file_count(set); i++)
        total += ps_st_count(ps_st_set_file(set, i));
    r->parameters = table.elements;
    ps_param_table_fini(&table);
    if (total > used)
        return detail(r, "unused_tensors", json_integer((json_int_t)(total - used)), err);
    return 0;
}

static int inspect_model(struct ps_inspect_report *r, const char *dir, struct ps_error *err)
{
    struct ps_model_config c;
    struct ps_st_set *set = NULL;
    uint64_t elements = 0;
    int ret = 0;
    bool known = has(dir, "config.json");
    if (known) {
        ret = ps_model_config_load(&c, dir, err);
        known = ret == 0;
        ret = as_reason(r, ret, err);
    } else {
        why_not(r, "the directory has no config.json");
    }
    if (!ret && has_weights(dir))
        ret = as_reason(r, ps_st_set_open(&set, dir, err), err);
    else if (!ret)
        why_not(r, "the directory has no weights (model.safetensors or "
                   "model.safetensors.index.json)");
    for (size_t i = 0; !ret && set && i < ps_st_set_file_count(set); i++)
        ret = add_tensors(r, ps_st_set_file(set, i), &elements, err);
    r->parameters = elements;
    if (!ret && known)
        ret = model_details(r, &c, err);
    if (!ret && known)
        ret = check_weights(r, &c, dir, set, err);
    ps_st_set_close(set);
    return ret;
}

static int adapter_details(struct ps_inspect_report *r, const json_t *root, struct ps_error *err)
{
    static const char *const keys[] = {"peft_type",
                                       "base_model_name_or_path",
                                       "r",
                                       "lora_alpha",
                                       "lora_dropout",
                                       "use_rslora",
                                       "target_modules",
                                       "modules_to_save"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_t *v = json_object_get(root, keys[i]);
        int ret = detail(r, keys[i], v ? json_incref(v) : json_null(), err);
        if (ret)
            return ret;
    }
    return 0;
}

static int inspect_adapter(struct ps_inspect_report *r, const char *dir, struct ps_error *err)
{
    char path[PATH_MAX];
    json_t *root = NULL;
    int ret = path_in(path, dir, "adapter_config.json", err);
    if (!ret)
        ret = ps_json_load(path, JSON_BYTES_MAX, &root, err);
    if (!ret && !json_is_object(root))
        ret = ps_error_full(err, PS_EFORMAT, path, NULL, NULL, "must be a JSON object");
    if (!ret)
        ret = adapter_details(r, root, err);
    json_decref(root);
    if (!ret && !has(dir, "adapter_model.safetensors")) {
        why_not(r, "the directory has no adapter_model.safetensors");
        return 0;
    }
    if (!ret)
        ret = path_in(path, dir, "adapter_model.safetensors", err);
    if (!ret)
        ret = as_reason(r, add_file(r, path, &r->parameters, err), err);
    if (ret)
        return ret;
    /* the base model is not at hand: every layer number passes */
    struct ps_model_config any = {.n_layer = LAYER_MAX};
    struct ps_adapter_config cfg = {0};
    bool *site_on = calloc(ps_site_count(LAYER_MAX), sizeof *site_on);
    if (!site_on)
        return no_memory(dir, err);
    struct ps_error reason = {0};
    ret = ps_adapter_dir_config(dir, &any, &cfg, site_on, NULL, &reason);
    free(site_on);
    if (ret == PS_EUNSUPPORTED || ret == PS_EFORMAT)
        why_not(r, "%s", reason.message);
    else if (ret && err)
        *err = reason;
    return ret == PS_EUNSUPPORTED || ret == PS_EFORMAT ? 0 : ret;
}

/* Verify the manifest's checksums; what does not match is a reason. */
static int check_manifest(struct ps_inspect_report *r, const char *dir, struct ps_error *err)
{
    char path[PATH_MAX], file[PATH_MAX];
    json_t *root;
    int ret = path_in(path, dir, "manifest.json", err);
    if (!ret)
        ret = ps_json_load(path, JSON_BYTES_MAX, &root, err);
    if (ret)
        return ret;
    json_t *files = json_object_get(root, "files");
    if (!json_is_object(files))
        ret = ps_error_full(err, PS_EFORMAT, path, "files", NULL, "\"files\" must be an object");
    const char *name;
    json_t *value;
    json_object_foreach(files, name, value)
    {
        uint64_t hash = 0;
        char hex[24];
        const char *want = json_string_value(value);
        if (!ret && (!want || strchr(name, '/')))
            ret = ps_error_full(err, PS_EFORMAT, path, name, NULL, "bad entry in the manifest");
        if (!ret)
            ret = path_in(file, dir, name, err);
        if (ret)
            break;
        if (ps_file_hash(file, &hash, NULL)) {
            why_not(r, "%s is missing or cannot be read", name);
            continue;
        }
        PS_IGNORE(snprintf(hex, sizeof hex, "%016" PRIx64, hash) < 0, "fits");
        if (strcmp(hex, want) != 0)
            why_not(r, "%s does not match the checksum of the manifest", name);
    }
    json_decref(root);
    return ret;
}

static int checkpoint_details(struct ps_inspect_report *r, const char *dir, struct ps_error *err)
{
    static const char *const keys[] = {"global_step", "updates",   "epoch",       "max_steps",
                                       "best_metric", "best_step", "total_tokens"};
    char path[PATH_MAX];
    json_t *root;
    if (!has(dir, "trainer_state.json")) {
        why_not(r, "trainer_state.json is missing");
        return 0;
    }
    int ret = path_in(path, dir, "trainer_state.json", err);
    if (!ret)
        ret = ps_json_load(path, STATE_BYTES_MAX, &root, err);
    if (ret)
        return ret;
    for (size_t i = 0; !ret && i < sizeof keys / sizeof keys[0]; i++) {
        json_t *v = json_object_get(root, keys[i]);
        ret = detail(r, keys[i], v ? json_incref(v) : json_null(), err);
    }
    json_decref(root);
    return ret;
}

static int inspect_checkpoint(struct ps_inspect_report *r, const char *dir, struct ps_error *err)
{
    char path[PATH_MAX];
    int ret = check_manifest(r, dir, err);
    if (!ret)
        ret = checkpoint_details(r, dir, err);
    if (!ret && has(dir, "adapter_config.json"))
        ret = inspect_adapter(r, dir, err);
    else if (!ret)
        ret = inspect_model(r, dir, err);
    if (!ret && has(dir, "optimizer.safetensors"))
        ret = path_in(path, dir, "optimizer.safetensors", err);
    else
        return ret;
    return ret ? ret : add_file(r, path, NULL, err);
}

static int inspect_path(struct ps_inspect_report *r, struct ps_error *err)
{
    struct stat st;
    const char *path = r->path;
    if (stat(path, &st) < 0)
        return ps_error_full(err, -errno, path, NULL, NULL, "cannot open it: %s", strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        r->kind = "safetensors";
        return as_reason(r, add_file(r, path, &r->parameters, err), err);
    }
    if (has(path, "manifest.json")) {
        r->kind = "checkpoint";
        return inspect_checkpoint(r, path, err);
    }
    if (has(path, "adapter_config.json")) {
        r->kind = "adapter";
        return inspect_adapter(r, path, err);
    }
    if (has(path, "config.json") || has_weights(path)) {
        r->kind = "model";
        return inspect_model(r, path, err);
    }
    if (has(path, "data-0")) {
        r->kind = "spill";
        return ps__inspect_spill(r, err);
    }
    return ps_error_full(err, PS_EFORMAT, path, NULL,
                         "inspect takes a model directory, a safetensors file, a PEFT adapter "
                         "directory, a checkpoint-N directory or a spill store",
                         "the directory has neither config.json, adapter_config.json, "
                         "manifest.json, safetensors files nor data-0");
}

static char *report_json(const struct ps_inspect_report *r)
{
    json_t *root = json_pack("{s:s, s:b, s:o, s:I, s:O, s:o, s:O}", "kind", r->kind, "supported",
                             r->why_not[0] == '\0', "why_not",
                             r->why_not[0] ? json_text(r->why_not) : json_null(), "parameters",
                             (json_int_t)r->parameters, "tensors", r->tensors, "path",
                             json_text(r->path), "details", r->details);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

int ps_inspect(const char *path, bool json, char **text, struct ps_error *err)
{
    struct ps_error own = {0};
    struct ps_error *e = err ? err : &own; /* reasons are taken from it */
    struct ps_inspect_report r = {.path = path};
    r.tensors = json_array();
    r.details = json_object();
    int ret = r.tensors && r.details ? inspect_path(&r, e) : no_memory(path, e);
    if (!ret) {
        char *out = json ? report_json(&r) : ps__inspect_text(&r);
        if (out)
            *text = out;
        else
            ret = no_memory(path, e);
    }
    json_decref(r.tensors);
    json_decref(r.details);
    return ret;
}
