/* The side files of a new model directory: see init_model_internal.h. */
#include "session/init_model_internal.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "runtime/base/file.h"

#define CONFIG_BYTES_MAX ((size_t)1 << 20)

int ps__init_read_config(const struct ps_init_options *opt, struct ps__init_config *config,
                         struct ps_model_config *cfg, struct ps_error *err)
{
    struct stat st;
    bool dir = stat(opt->config, &st) == 0 && S_ISDIR(st.st_mode);
    int n =
        snprintf(config->path, sizeof config->path, "%s%s", opt->config, dir ? "/config.json" : "");
    if (n < 0 || (size_t)n >= sizeof config->path)
        return ps_error_full(err, -ENAMETOOLONG, opt->config, NULL, NULL, "the path is too long");
    int ret = ps_file_read(config->path, CONFIG_BYTES_MAX, &config->text, &config->len, err);
    if (ret < 0)
        return ret;
    ret = ps_model_config_parse(cfg, config->text, config->len, config->path, err);
    if (ret)
        ps__init_config_fini(config);
    return ret;
}

void ps__init_config_fini(struct ps__init_config *config)
{
    free(config->text);
    config->text = NULL;
}

/* Past the string that begins at text[i]. */
static size_t skip_string(const char *text, size_t len, size_t i)
{
    for (i++; i < len && text[i] != '"'; i++)
        if (text[i] == '\\')
            i++;
    return i < len ? i + 1 : len;
}

static size_t skip_space(const char *text, size_t len, size_t i)
{
    while (i < len && strchr(" \t\r\n", text[i]))
        i++;
    return i;
}

static bool is_dtype_key(const char *key, size_t len)
{
    return (len == 13 && !memcmp(key, "\"torch_dtype\"", 13)) ||
           (len == 7 && !memcmp(key, "\"dtype\"", 7));
}

/* The value of torch_dtype or dtype in the outermost object: text[begin, end). The text is valid
 * JSON. */
static bool find_dtype(const char *text, size_t len, size_t *begin, size_t *end)
{
    int depth = 0;
    for (size_t i = 0; i < len;) {
        if (text[i] != '"') {
            depth += (text[i] == '{' || text[i] == '[') - (text[i] == '}' || text[i] == ']');
            i++;
            continue;
        }
        size_t key_end = skip_string(text, len, i);
        size_t colon = skip_space(text, len, key_end);
        bool found =
            depth == 1 && colon < len && text[colon] == ':' && is_dtype_key(text + i, key_end - i);
        i = key_end;
        if (!found)
            continue;
        *begin = skip_space(text, len, colon + 1);
        *end = text[*begin] == '"' ? skip_string(text, len, *begin) : *begin + 4; /* null */
        return *end <= len;
    }
    return false;
}

char *ps__init_set_dtype(const char *text, size_t len, const char *name, size_t *out_len)
{
    size_t begin;
    size_t end;
    bool found = find_dtype(text, len, &begin, &end);
    if (!found) {
        const char *brace = memchr(text, '{', len);
        begin = end = brace ? (size_t)(brace - text) + 1 : 0;
    }
    size_t cap = len + 64;
    char *out = malloc(cap);
    if (!out)
        return NULL;
    int n = snprintf(out, cap, found ? "%.*s\"%s\"" : "%.*s\n  \"torch_dtype\": \"%s\",",
                     (int)begin, text, name);
    if (n < 0 || (size_t)n + (len - end) >= cap) {
        free(out);
        return NULL;
    }
    memcpy(out + n, text + end, len - end);
    *out_len = (size_t)n + (len - end);
    out[*out_len] = '\0';
    return out;
}

static int join(char path[PATH_MAX], const char *dir, const char *name, struct ps_error *err)
{
    if (ps_path_join(path, PATH_MAX, dir, name))
        return 0;
    return ps_error_full(err, -ENAMETOOLONG, dir, NULL, NULL, "the path is too long");
}

static int copy_if_there(const char *from_dir, const char *to_dir, const char *name, bool *copied,
                         struct ps_error *err)
{
    char from[PATH_MAX];
    char to[PATH_MAX];
    int ret = join(from, from_dir, name, err);
    if (ret == 0)
        ret = join(to, to_dir, name, err);
    if (ret || access(from, F_OK))
        return ret;
    *copied = true;
    return ps_file_copy(from, to, err);
}

static int copy_tokenizer(const char *from, const char *to, struct ps_error *err)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "chat_template.jinja"};
    int ret = 0;
    bool copied;
    for (size_t i = 0; ret == 0 && i < sizeof names / sizeof names[0]; i++)
        ret = copy_if_there(from, to, names[i], &copied, err);
    return ret;
}

static json_t *eos_json(const struct ps_model_config *cfg)
{
    if (cfg->eos_count == 1)
        return json_integer(cfg->eos_token_id[0]);
    json_t *list = json_array();
    for (int32_t i = 0; i < cfg->eos_count; i++)
        PS_IGNORE(json_array_append_new(list, json_integer(cfg->eos_token_id[i])),
                  "without memory the list is NULL or shorter; json_dumps then fails too");
    return list;
}

/* The one beside the configuration, else one with the token ids that the configuration has. */
static int write_generation_config(const char *config_path, const char *output,
                                   const struct ps_model_config *cfg, struct ps_error *err)
{
    char dir[PATH_MAX];
    char path[PATH_MAX];
    const char *slash = strrchr(config_path, '/');
    PS_IGNORE(snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - config_path) + 1 : 1,
                       slash ? config_path : ".") < 0,
              "the path was read a moment ago");
    bool copied = false;
    int ret = copy_if_there(dir, output, "generation_config.json", &copied, err);
    if (ret || copied)
        return ret;
    json_t *o = json_pack("{s:b}", "_from_model_config", 1);
    if (cfg->bos_token_id >= 0)
        PS_IGNORE(json_object_set_new(o, "bos_token_id", json_integer(cfg->bos_token_id)),
                  "without memory json_dumps fails too");
    if (cfg->eos_count > 0)
        PS_IGNORE(json_object_set_new(o, "eos_token_id", eos_json(cfg)),
                  "without memory json_dumps fails too");
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    json_decref(o);
    if (!text)
        return ps_error_set(err, -ENOMEM, "out of memory");
    ret = join(path, output, "generation_config.json", err);
    if (ret == 0)
        ret = ps_file_write(path, text, strlen(text), err);
    free(text);
    return ret;
}

static int write_config(const struct ps__init_config *config, const char *output,
                        const struct ps_model_config *cfg, enum ps_dtype dtype,
                        struct ps_error *err)
{
    char path[PATH_MAX];
    int ret = join(path, output, "config.json", err);
    if (ret)
        return ret;
    if (cfg->torch_dtype == (int)dtype)
        return ps_file_write(path, config->text, config->len, err);
    size_t len;
    char *text = ps__init_set_dtype(config->text, config->len,
                                    dtype == PS_DTYPE_F32 ? "float32" : "bfloat16", &len);
    if (!text)
        return ps_error_set(err, -ENOMEM, "out of memory");
    ret = ps_file_write(path, text, len, err);
    free(text);
    return ret;
}

int ps__init_write_side_files(const struct ps_init_options *opt,
                              const struct ps__init_config *config,
                              const struct ps_model_config *cfg, enum ps_dtype dtype,
                              struct ps_error *err)
{
    int ret = opt->tokenizer ? copy_tokenizer(opt->tokenizer, opt->output, err) : 0;
    if (ret == 0)
        ret = write_generation_config(config->path, opt->output, cfg, err);
    return ret ? ret : write_config(config, opt->output, cfg, dtype, err);
}
