/* The safetensors files of a model directory, one or several: see safetensors.h. */
#include "runtime/model/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"

#define INDEX_BYTES_MAX ((size_t)64 << 20)
#define SHARD_MAX 4096

struct entry {
    const struct ps_st_tensor *tensor;
    const struct ps_st_file *file;
};

struct ps_st_set {
    struct ps_st_file **file; /* (file_count,) */
    size_t file_count;
    struct entry *entry; /* (entry_count,) in ascending order of name */
    size_t entry_count;
    size_t unmapped_count;
};

static int by_name(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return strcmp(x->tensor->name, y->tensor->name);
}

static int by_text(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;
    return strcmp(*x, *y);
}

static int no_memory(const char *path, struct ps_error *err)
{
    return ps_error_full(err, -ENOMEM, path, NULL, NULL, "not enough memory to open the model");
}

static int open_single(struct ps_st_set *set, const char *path, struct ps_error *err)
{
    set->file = calloc(1, sizeof(struct ps_st_file *));
    if (!set->file)
        return no_memory(path, err);
    int ret = ps_st_open(&set->file[0], path, err);
    if (ret)
        return ret;
    set->file_count = 1;
    size_t count = ps_st_count(set->file[0]);
    set->entry = calloc(count + 1, sizeof *set->entry);
    if (!set->entry)
        return no_memory(path, err);
    for (size_t i = 0; i < count; i++)
        set->entry[i] = (struct entry){ps_st_at(set->file[0], i), set->file[0]};
    set->entry_count = count;
    return 0;
}

/* A bare name within the directory, or false. */
static bool name_ok(const char *name)
{
    return name[0] && name[0] != '.' && strlen(name) <= NAME_MAX && !strpbrk(name, "/\\") &&
           !strstr(name, "..");
}

/* Unique shard names of the map, sorted: *names (free it) points into the JSON. */
static int collect_shards(json_t *map, const char *index, const char ***names, size_t *count,
                          struct ps_error *err)
{
    size_t n = json_object_size(map);
    const char **list = malloc((n + 1) * sizeof *list);
    if (!list)
        return no_memory(index, err);
    const char *key;
    json_t *value;
    size_t used = 0;
    json_object_foreach(map, key, value)
    {
        const char *name = json_string_value(value);
        if (!name || !name_ok(name)) {
            free(list);
            return ps_error_full(err, PS_EFORMAT, index, key, NULL,
                                 "weight_map: the file of tensor \"%.200s\" must be a bare file "
                                 "name%s%.200s%s",
                                 key, name ? ", not \"" : "", name ? name : "", name ? "\"" : "");
        }
        list[used++] = name;
    }
    qsort(list, used, sizeof *list, by_text);
    size_t unique = 0;
    for (size_t i = 0; i < used; i++)
        if (unique == 0 || strcmp(list[unique - 1], list[i]) != 0)
            list[unique++] = list[i];
    if (unique > SHARD_MAX) {
        free(list);
        return ps_error_full(err, PS_EFORMAT, index, "weight_map", NULL,
                             "weight_map names %zu files, at most %d are allowed", unique,
                             SHARD_MAX);
    }
    *names = list;
    *count = unique;
    return 0;
}

static int open_shards(struct ps_st_set *set, const char *dir, const char **names, size_t count,
                       struct ps_error *err)
{
    set->file = calloc(count + 1, sizeof(struct ps_st_file *));
    if (!set->file)
        return no_memory(dir, err);
    for (size_t i = 0; i < count; i++) {
        char path[PATH_MAX];
        if (!ps_path_join(path, sizeof path, dir, names[i]))
            return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "path too long");
        int ret = ps_st_open(&set->file[i], path, err);
        if (ret)
            return ps_error_advice(err, ret,
                                   "model.safetensors.index.json names this file: "
                                   "download the missing or damaged shard again");
        set->file_count++;
    }
    return 0;
}

static int map_tensors(struct ps_st_set *set, json_t *map, const char *index, const char **names,
                       struct ps_error *err)
{
    size_t n = json_object_size(map);
    set->entry = calloc(n + 1, sizeof *set->entry);
    if (!set->entry)
        return no_memory(index, err);
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value)
    {
        const char *name = json_string_value(value);
        const char **at = bsearch(&name, names, set->file_count, sizeof *names, by_text);
        assert(at);
        const struct ps_st_file *file = set->file[at - names];
        const struct ps_st_tensor *t = ps_st_find(file, key);
        if (!t)
            return ps_error_full(err, PS_EFORMAT, index, key,
                                 "the index and the shards do not belong together: download the "
                                 "model again",
                                 "tensor \"%.200s\" is mapped to %.200s but is not in that file",
                                 key, name);
        set->entry[set->entry_count++] = (struct entry){t, file};
    }
    size_t total = 0;
    for (size_t i = 0; i < set->file_count; i++)
        total += ps_st_count(set->file[i]);
    /* keys are unique and each was found in one shard, so the rest is what no key names */
    set->unmapped_count = total - set->entry_count;
    return 0;
}

static int open_index(struct ps_st_set *set, const char *dir, const char *index,
                      struct ps_error *err)
{
    json_t *root;
    const char **names = NULL;
    size_t count = 0;
    int ret = ps_json_load(index, INDEX_BYTES_MAX, &root, err);
    if (ret)
        return ret;
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        ret = ps_error_full(err, PS_EFORMAT, index, "weight_map", NULL,
                            "\"weight_map\" must be an object that maps tensors to files");
        goto done;
    }
    ret = collect_shards(map, index, &names, &count, err);
    if (!ret)
        ret = open_shards(set, dir, names, count, err);
    if (!ret)
        ret = map_tensors(set, map, index, names, err);
    free(names);
done:
    json_decref(root);
    return ret;
}

int ps_st_set_open(struct ps_st_set **out, const char *model_dir, struct ps_error *err)
{
    char single[PATH_MAX], index[PATH_MAX];
    struct stat st;
    if (!ps_path_join(single, sizeof single, model_dir, "model.safetensors") ||
        !ps_path_join(index, sizeof index, model_dir, "model.safetensors.index.json"))
        return ps_error_full(err, -ENAMETOOLONG, model_dir, NULL, NULL, "path too long");
    if (stat(model_dir, &st) < 0)
        return ps_error_full(err, -errno, model_dir, NULL, NULL,
                             "cannot open the model directory: %s", strerror(errno));
    struct ps_st_set *set = calloc(1, sizeof *set);
    if (!set)
        return no_memory(model_dir, err);
    int ret;
    if (lstat(single, &st) == 0)
        ret = open_single(set, single, err);
    else if (lstat(index, &st) == 0)
        ret = open_index(set, model_dir, index, err);
    else
        ret = ps_error_full(err, PS_EFORMAT, model_dir, NULL,
                            "Penstock reads safetensors only: convert .bin, .pth or GGUF weights "
                            "first",
                            "the directory has neither model.safetensors nor "
                            "model.safetensors.index.json");
    if (ret) {
        ps_st_set_close(set);
        return ret;
    }
    qsort(set->entry, set->entry_count, sizeof *set->entry, by_name);
    *out = set;
    return 0;
}

void ps_st_set_close(struct ps_st_set *set)
{
    if (!set)
        return;
    for (size_t i = 0; i < set->file_count; i++)
        ps_st_close(set->file[i]);
    free(set->file);
    free(set->entry);
    free(set);
}

const struct ps_st_tensor *ps_st_set_find(const struct ps_st_set *set, const char *name,
                                          const struct ps_st_file **file)
{
    size_t lo = 0, hi = set->entry_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, set->entry[mid].tensor->name);
        if (c == 0) {
            if (file)
                *file = set->entry[mid].file;
            return set->entry[mid].tensor;
        }
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

size_t ps_st_set_file_count(const struct ps_st_set *set)
{
    return set->file_count;
}

const struct ps_st_file *ps_st_set_file(const struct ps_st_set *set, size_t idx)
{
    assert(idx < set->file_count);
    return set->file[idx];
}

size_t ps_st_set_unmapped_count(const struct ps_st_set *set)
{
    return set->unmapped_count;
}
