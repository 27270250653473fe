/* manifest.json of a checkpoint: {"version":1,"files":{"NAME":"XXH3 in hex"}} over every other file
 * of the directory. Written last, so that a checkpoint that has one is whole. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "session/session_internal.h"

#define PATH_BYTES 4096

static int path_in(char *buf, const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(buf, PATH_BYTES, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

int ps__manifest_write(const char *dir, struct ps_error *err)
{
    DIR *d = opendir(dir);
    if (!d)
        return ps_error_full(err, -errno, dir, NULL, NULL, "cannot list the checkpoint");
    json_t *files = json_object();
    int ret = 0;
    const struct dirent *e;
    while (ret == 0 && (e = readdir(d))) {
        char path[PATH_BYTES];
        char hex[24];
        uint64_t hash;
        if (e->d_name[0] == '.')
            continue;
        ret = path_in(path, dir, e->d_name, err);
        if (ret == 0)
            ret = ps_file_hash(path, &hash, err);
        if (ret < 0)
            break;
        PS_IGNORE(snprintf(hex, sizeof hex, "%016" PRIx64, hash) < 0, "cannot fail");
        json_object_set_new(files, e->d_name, json_string(hex));
    }
    closedir(d);
    json_t *root = json_pack("{s:i, s:o}", "version", 1, "files", files);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS) : NULL;
    char path[PATH_BYTES];
    if (ret == 0)
        ret = text ? path_in(path, dir, "manifest.json", err)
                   : ps_error_set(err, -ENOMEM, "out of memory");
    if (ret == 0)
        ret = ps_file_write(path, text, strlen(text), err);
    free(text);
    json_decref(root);
    return ret;
}

int ps__manifest_check(const char *dir, struct ps_error *err)
{
    char path[PATH_BYTES];
    json_t *root = NULL;
    int ret = path_in(path, dir, "manifest.json", err);
    if (ret == 0)
        ret = ps_json_load(path, (size_t)1 << 20, &root, err);
    if (ret < 0)
        return ps_error_advice(err, ret, "a checkpoint without its manifest was never finished");
    const char *name;
    json_t *value;
    json_object_foreach(json_object_get(root, "files"), name, value)
    {
        char file[PATH_BYTES];
        char hex[24];
        uint64_t hash = 0;
        if (ret == 0 && (strchr(name, '/') || !json_is_string(value)))
            ret = ps_error_full(err, PS_EFORMAT, path, name, NULL, "bad entry in the manifest");
        if (ret == 0)
            ret = path_in(file, dir, name, err);
        if (ret == 0)
            ret = ps_file_hash(file, &hash, err);
        if (ret == -ENOENT)
            ret = ps_error_full(err, PS_EFORMAT, file, NULL, "resume from an older checkpoint",
                                "the checkpoint lacks a file that its manifest names");
        PS_IGNORE(snprintf(hex, sizeof hex, "%016" PRIx64, hash) < 0, "cannot fail");
        if (ret == 0 && strcmp(hex, json_string_value(value)) != 0)
            ret = ps_error_full(err, PS_ECHECKSUM, file, NULL, "resume from an older checkpoint",
                                "the file does not match the checkpoint's manifest");
    }
    json_decref(root);
    return ret;
}
