/* Opening a tokenizer and looking things up: see tokenizer.h and tokenizer_internal.h. */
#include "runtime/data/tokenizer.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/base/json.h"
#include "runtime/data/tokenizer_internal.h"

#define TOKENIZER_BYTES_MAX ((size_t)256 << 20)
#define CONFIG_BYTES_MAX ((size_t)32 << 20)

const char *ps__tok_type(const json_t *obj)
{
    return json_string_value(json_object_get(obj, "type"));
}

int ps__tok_unsupported(const struct ps_tokenizer *tok, const char *field, const char *type,
                        struct ps_error *err)
{
    return ps_error_full(err, PS_EUNSUPPORTED, tok->file, field, NULL,
                         "%s of type \"%.60s\" is not supported", field, type);
}

int ps__tok_string(struct ps_tokenizer *tok, const json_t *obj, const char *key,
                   struct ps__tok_str *out, struct ps_error *err)
{
    const json_t *value = json_object_get(obj, key);
    if (!json_is_string(value))
        return ps_error_full(err, PS_EFORMAT, tok->file, key, NULL, "%s must be a string", key);
    size_t len = json_string_length(value);
    if (len > PS__TOK_TOKEN_BYTES_MAX)
        return ps_error_full(err, PS_EFORMAT, tok->file, key, NULL,
                             "%s has %zu bytes; at most %d are accepted", key, len,
                             PS__TOK_TOKEN_BYTES_MAX);
    out->len = (uint32_t)len;
    out->bytes = ps__tok_arena_copy(&tok->arena, json_string_value(value), len);
    return out->bytes ? 0 : ps_error_set(err, -ENOMEM, "out of memory");
}

void ps_tokenizer_close(struct ps_tokenizer *tok)
{
    if (!tok)
        return;
    for (size_t i = 0; i < tok->norm_count; i++)
        ps__tok_pattern_fini(&tok->norms[i].pattern);
    for (size_t i = 0; i < tok->pre_count; i++)
        ps__tok_pattern_fini(&tok->pres[i].pattern);
    for (size_t i = 0; i < tok->dec_count; i++)
        ps__tok_pattern_fini(&tok->decs[i].pattern);
    for (size_t i = 0; i < 2; i++) {
        ps__tok_text_fini(&tok->norm_text[i]);
        ps__tok_text_fini(&tok->pre_text[i]);
        free(tok->pieces[i].items);
    }
    free(tok->matches.items);
    free(tok->code_points);
    ps__tok_bpe_fini(tok);
    ps__tok_trie_fini(&tok->raw_trie);
    ps__tok_trie_fini(&tok->normalized_trie);
    ps__tok_map_fini(&tok->added_map);
    free(tok->added_by_id);
    free(tok->added);
    ps__tok_model_fini(&tok->model);
    ps__tok_arena_fini(&tok->arena);
    free(tok);
}

/* What can be checked only when all parts are there. */
static int check_whole(struct ps_tokenizer *tok, const json_t *root, struct ps_error *err)
{
    struct ps__tok_model *m = &tok->model;
    const char *unk =
        json_string_value(json_object_get(json_object_get(root, "model"), "unk_token"));
    if (unk && *unk && m->unk_id < 0) {
        m->unk_id = ps_tokenizer_token_id(tok, unk);
        if (m->unk_id < 0)
            return ps_error_full(err, PS_EFORMAT, tok->file, "model.unk_token", NULL,
                                 "unk_token \"%.200s\" is not in the vocabulary", unk);
    }
    /* Real vocabularies miss control bytes (SmolLM2 has no 0x04): like the reference, encoding
     * then uses the unknown token, or drops the byte where there is none. */
    tok->byte_mode = tok->pre_count > 0 && m->prefix.len + m->suffix.len == 0 &&
                     tok->pres[tok->pre_count - 1].kind == PS__TOK_PRE_BYTE_LEVEL;
    if (!tok->byte_mode && ps__tok_model_index_joins(m) < 0)
        return ps_error_set(err, -ENOMEM, "out of memory");
    return 0;
}

static int parse_root(struct ps_tokenizer *tok, const json_t *root, struct ps_error *err)
{
    if (!json_is_object(root))
        return ps_error_full(err, PS_EFORMAT, tok->file, NULL, NULL,
                             "the file must hold a JSON object");
    int ret = ps__tok_model_parse(tok, json_object_get(root, "model"), err);
    if (ret == 0)
        ret = ps__tok_added_parse(tok, json_object_get(root, "added_tokens"), err);
    if (ret == 0)
        ret = ps__tok_norm_parse(tok, json_object_get(root, "normalizer"), err);
    if (ret == 0)
        ret = ps__tok_pre_parse(tok, json_object_get(root, "pre_tokenizer"), err);
    if (ret == 0)
        ret = ps__tok_post_parse(tok, json_object_get(root, "post_processor"), err);
    if (ret == 0)
        ret = ps__tok_dec_parse(tok, json_object_get(root, "decoder"), err);
    if (ret == 0)
        ret = check_whole(tok, root, err);
    if (ret == 0)
        ret = ps__tok_added_index(tok, err);
    return ret;
}

/* Build from parsed files; config may be NULL. */
static int create(struct ps_tokenizer **out, const char *file, const json_t *root,
                  const json_t *config, struct ps_error *err)
{
    struct ps_tokenizer *tok = calloc(1, sizeof *tok);
    if (tok)
        tok->file = ps__tok_arena_copy(&tok->arena, file, strlen(file));
    if (!tok || !tok->file) {
        ps_tokenizer_close(tok);
        return ps_error_set(err, -ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < 4; i++)
        tok->special_ids[i] = -1;
    int ret = parse_root(tok, root, err);
    if (ret == 0 && config)
        ret = ps__tok_config_parse(tok, config, err);
    if (ret < 0) {
        ps_tokenizer_close(tok);
        return ret;
    }
    *out = tok;
    return 0;
}

int ps_tokenizer_parse(struct ps_tokenizer **out, const char *text, size_t len,
                       const char *config_text, size_t config_len, struct ps_error *err)
{
    json_t *root = NULL, *config = NULL;
    int ret = ps_json_parse(text, len, PS_JSON_STRICT, "tokenizer.json", &root, err);
    if (ret == 0 && config_text)
        ret = ps__tok_config_read(&config, config_text, config_len, "tokenizer_config.json", err);
    if (ret == 0)
        ret = create(out, "tokenizer.json", root, config, err);
    json_decref(config);
    json_decref(root);
    return ret;
}

/* Read tokenizer_config.json; a directory without one is fine (*out stays NULL). */
static int load_config(json_t **out, const char *path, struct ps_error *err)
{
    char *text;
    size_t len;
    struct ps_error own = {0};
    int ret = ps_file_read(path, CONFIG_BYTES_MAX, &text, &len, &own);
    if (ret == -ENOENT)
        return 0;
    if (ret < 0) {
        if (err)
            *err = own;
        return ret;
    }
    ret = ps__tok_config_read(out, text, len, path, err);
    free(text);
    return ret;
}

int ps_tokenizer_open(struct ps_tokenizer **out, const char *model_dir, struct ps_error *err)
{
    char path[PATH_MAX], config_path[PATH_MAX];
    json_t *root = NULL, *config = NULL;
    if (!ps_path_join(path, sizeof path, model_dir, "tokenizer.json") ||
        !ps_path_join(config_path, sizeof config_path, model_dir, "tokenizer_config.json"))
        return ps_error_full(err, -ENAMETOOLONG, model_dir, NULL, NULL, "path is too long");
    int ret = ps_json_load(path, TOKENIZER_BYTES_MAX, &root, err);
    if (ret == -ENOENT)
        return ps_error_advice(err, ret,
                               "a model directory needs tokenizer.json; save the tokenizer with "
                               "transformers (save_pretrained) to make it from tokenizer.model");
    if (ret < 0)
        return ret;
    ret = load_config(&config, config_path, err);
    if (ret == 0)
        ret = create(out, path, root, config, err);
    json_decref(config);
    json_decref(root);
    return ret;
}

int32_t ps_tokenizer_token_id(const struct ps_tokenizer *tok, const char *token)
{
    size_t len = strlen(token);
    int32_t idx = ps__tok_map_find(&tok->added_map, tok->added, sizeof *tok->added, token, len);
    return idx >= 0 ? tok->added[idx].id : ps__tok_vocab_id(&tok->model, token, len);
}

const char *ps_tokenizer_token_text(const struct ps_tokenizer *tok, int32_t id)
{
    const struct ps__tok_added *added = ps__tok_added_by_id(tok, id);
    if (added)
        return added->text.bytes;
    const struct ps__tok_vocab_entry *entry = ps__tok_vocab_entry(&tok->model, id);
    return entry ? entry->text.bytes : NULL;
}

int32_t ps_tokenizer_special_id(const struct ps_tokenizer *tok, const char *name)
{
    static const char *const names[4] = {"bos_token", "eos_token", "pad_token", "unk_token"};
    for (size_t i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0)
            return tok->special_ids[i];
    return -1;
}

size_t ps_tokenizer_vocab_size(const struct ps_tokenizer *tok)
{
    const struct ps__tok_model *m = &tok->model;
    int32_t max = m->vocab_count ? m->vocab[m->vocab_count - 1].id : -1;
    if (tok->added_count) {
        int32_t last = tok->added[tok->added_by_id[tok->added_count - 1]].id;
        max = last > max ? last : max;
    }
    return (size_t)(max + 1);
}
