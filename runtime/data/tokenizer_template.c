/* What surrounds the text: the post-processor of tokenizer.json, and the special tokens and
 * overrides of tokenizer_config.json. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/json.h"

static const char config_file[] = "tokenizer_config.json";

/* Ids of one SpecialToken piece, appended to list. */
static int add_piece(struct ps_tokenizer *tok, const json_t *specials, const char *name,
                     int32_t *list, size_t *count, struct ps_error *err)
{
    static const char field[] = "post_processor.special_tokens";
    const json_t *ids = json_object_get(json_object_get(specials, name), "ids");
    if (!json_is_array(ids))
        return ps_error_full(err, PS_EFORMAT, tok->file, field, NULL,
                             "the template names \"%.200s\", which has no ids", name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value >= PS__TOK_ID_MAX ||
            (!ps__tok_added_by_id(tok, (int32_t)value) &&
             !ps__tok_vocab_entry(&tok->model, (int32_t)value)))
            return ps_error_full(err, PS_EFORMAT, tok->file, field, NULL,
                                 "\"%.200s\" has an id without a token", name);
        if (*count == PS__TOK_TEMPLATE_MAX)
            return ps_error_full(err, PS_EFORMAT, tok->file, "post_processor", NULL,
                                 "the template adds more than %d tokens on one side",
                                 PS__TOK_TEMPLATE_MAX);
        list[(*count)++] = (int32_t)value;
    }
    return 0;
}

/* A later template goes around an earlier one: its prefix comes first, its suffix last. */
static int parse_template(struct ps_tokenizer *tok, const json_t *obj, struct ps_error *err)
{
    const json_t *single = json_object_get(obj, "single");
    const json_t *specials = json_object_get(obj, "special_tokens");
    int32_t before[PS__TOK_TEMPLATE_MAX];
    size_t before_count = 0, texts = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const char *name =
            json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        const char *sequence =
            json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
        int ret = 0;
        if (sequence && strcmp(sequence, "A") == 0)
            texts++;
        else if (!name)
            ret = ps_error_full(err, PS_EFORMAT, tok->file, "post_processor.single", NULL,
                                "template piece %zu is neither a SpecialToken nor Sequence A", i);
        else if (texts)
            ret = add_piece(tok, specials, name, tok->suffix_ids, &tok->suffix_count, err);
        else
            ret = add_piece(tok, specials, name, before, &before_count, err);
        if (ret < 0)
            return ret;
    }
    if (texts != 1)
        return ps_error_full(err, PS_EFORMAT, tok->file, "post_processor.single", NULL,
                             "the template must hold Sequence A once, not %zu times", texts);
    if (before_count + tok->prefix_count > PS__TOK_TEMPLATE_MAX)
        return ps_error_full(err, PS_EFORMAT, tok->file, "post_processor", NULL,
                             "the templates add more than %d tokens on one side",
                             PS__TOK_TEMPLATE_MAX);
    memmove(tok->prefix_ids + before_count, tok->prefix_ids,
            tok->prefix_count * sizeof tok->prefix_ids[0]);
    memcpy(tok->prefix_ids, before, before_count * sizeof before[0]);
    tok->prefix_count += before_count;
    return 0;
}

int ps__tok_post_parse(struct ps_tokenizer *tok, const json_t *obj, struct ps_error *err)
{
    if (!obj || json_is_null(obj))
        return 0;
    const char *type = ps__tok_type(obj);
    if (!type)
        return ps_error_full(err, PS_EFORMAT, tok->file, "post_processor", NULL,
                             "a post-processor without a type");
    if (strcmp(type, "ByteLevel") == 0) /* trims offsets only; ours stay whole */
        return 0;
    if (strcmp(type, "TemplateProcessing") == 0)
        return parse_template(tok, obj, err);
    if (strcmp(type, "Sequence") != 0)
        return ps__tok_unsupported(tok, "post_processor", type, err);
    const json_t *list = json_object_get(obj, "processors");
    if (!json_is_array(list))
        return ps_error_full(err, PS_EFORMAT, tok->file, "post_processor.processors", NULL,
                             "a sequence of post-processors must be an array");
    for (size_t i = 0; i < json_array_size(list); i++) {
        int ret = ps__tok_post_parse(tok, json_array_get(list, i), err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Text of a special token: a string, or an object with "content". NULL: none. */
static const char *token_name(const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

/* Classes of transformers 4 that build their template from add_bos_token and add_eos_token. */
static bool is_llama_class(const char *name)
{
    static const char *const names[] = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        size_t n = strlen(names[i]);
        if (strncmp(name, names[i], n) == 0 && (!name[n] || strcmp(name + n, "Fast") == 0))
            return true;
    }
    return false;
}

static int override_side(struct ps_tokenizer *tok, const char *key, const char *token, bool on,
                         int32_t id, int32_t *ids, size_t *count, struct ps_error *err)
{
    *count = 0;
    if (!on)
        return 0;
    if (id < 0)
        return ps_error_full(err, PS_EFORMAT, config_file, key, NULL,
                             "%s is true, but %s names no token of %s", key, token, tok->file);
    ids[0] = id;
    *count = 1;
    return 0;
}

static int override_template(struct ps_tokenizer *tok, const json_t *config, struct ps_error *err)
{
    const char *class_name;
    bool bos, eos;
    int ret = ps_json_get_string(config, "tokenizer_class", "", config_file, &class_name, err);
    if (ret == 0)
        ret = ps_json_get_bool(config, "add_bos_token", true, config_file, &bos, err);
    if (ret == 0)
        ret = ps_json_get_bool(config, "add_eos_token", false, config_file, &eos, err);
    if (ret < 0)
        return ret;
    bool given = json_is_boolean(json_object_get(config, "add_bos_token")) ||
                 json_is_boolean(json_object_get(config, "add_eos_token"));
    if (!given || !is_llama_class(class_name))
        return 0;
    ret = override_side(tok, "add_bos_token", "bos_token", bos, tok->special_ids[0],
                        tok->prefix_ids, &tok->prefix_count, err);
    if (ret == 0)
        ret = override_side(tok, "add_eos_token", "eos_token", eos, tok->special_ids[1],
                            tok->suffix_ids, &tok->suffix_count, err);
    return ret;
}

/* Write the integer text[begin, end), too large for 64 bits, as a real of the same length. */
static void shorten(char *text, size_t begin, size_t end)
{
    enum { DIGITS_KEPT = 10 };
    char exponent[24];
    int n = snprintf(exponent, sizeof exponent, "e%zu", end - begin - 1);
    memmove(text + begin + 2, text + begin + 1, DIGITS_KEPT);
    text[begin + 1] = '.';
    memcpy(text + begin + 2 + DIGITS_KEPT, exponent, (size_t)n);
    size_t used = 2 + DIGITS_KEPT + (size_t)n;
    memset(text + begin + used, ' ', end - begin - used);
}

/* transformers writes "no limit" as 10^30, an integer that no JSON parser of 64 bits takes. */
static void mend_integers(char *text, size_t len)
{
    bool in_string = false;
    for (size_t i = 0; i < len;) {
        if (in_string || text[i] < '0' || text[i] > '9') {
            if (text[i] == '"')
                in_string = !in_string;
            i += in_string && text[i] == '\\' ? 2 : 1;
            continue;
        }
        size_t begin = i;
        while (i < len && text[i] >= '0' && text[i] <= '9')
            i++;
        bool whole = begin == 0 || !strchr(".eE+", text[begin - 1]);
        bool fraction = i < len && text[i] && strchr(".eE", text[i]);
        if (i - begin > 18 && whole && !fraction)
            shorten(text, begin, i);
    }
}

int ps__tok_config_read(json_t **out, const char *text, size_t len, const char *file,
                        struct ps_error *err)
{
    char *copy = malloc(len + 1);
    if (!copy)
        return ps_error_set(err, -ENOMEM, "out of memory");
    memcpy(copy, text, len);
    mend_integers(copy, len);
    int ret = ps_json_parse(copy, len, PS_JSON_STRICT, file, out, err);
    free(copy);
    return ret;
}

int ps__tok_config_parse(struct ps_tokenizer *tok, const json_t *config, struct ps_error *err)
{
    static const char *const names[4] = {"bos_token", "eos_token", "pad_token", "unk_token"};
    if (!json_is_object(config))
        return ps_error_full(err, PS_EFORMAT, config_file, NULL, NULL,
                             "the file must hold a JSON object");
    for (size_t i = 0; i < 4; i++) {
        const char *name = token_name(config, names[i]);
        tok->special_ids[i] = name ? ps_tokenizer_token_id(tok, name) : -1;
    }
    int ret = ps_json_get_bool(config, "clean_up_tokenization_spaces", false, config_file,
                               &tok->clean_up, err);
    return ret < 0 ? ret : override_template(tok, config, err);
}
