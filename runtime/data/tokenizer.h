/* Hugging Face `tokenizer.json` BPE tokenizers: byte-level (GPT-2, Llama 3, Qwen, SmolLM) and
 * SentencePiece style with byte fallback (Llama 2, Mistral, stories260K).
 *
 * Reads `tokenizer.json` and, for the names of the special tokens, `tokenizer_config.json`.
 * Unknown component types are refused by name (PS_EUNSUPPORTED), broken files with PS_EFORMAT.
 * Source: the format of huggingface/tokenizers. */
#ifndef PS_DATA_TOKENIZER_H
#define PS_DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ps_tokenizer;

/* Token ids of one text and, for each, the half-open byte range [begin, end) of the original text
 * that it came from (tokens added by the post-processor have begin == end). Grown by
 * ps_tokenizer_encode with realloc, kept by the caller between calls, freed by ps_encoding_fini. */
struct ps_encoding {
    int32_t *ids;   /* (count,) */
    size_t *begin;  /* (count,) */
    size_t *end;    /* (count,) */
    size_t count;
    size_t capacity;
};

void ps_encoding_fini(struct ps_encoding *enc);

/* Open the tokenizer of a model directory. Returns 0, -errno, PS_EFORMAT, PS_EUNSUPPORTED. */
int ps_tokenizer_open(struct ps_tokenizer **out, const char *model_dir,
                      struct ps_error *err) PS_WARN_UNUSED;

/* Open from the text of a tokenizer.json (for tests and fuzzing); config_text may be NULL. */
int ps_tokenizer_parse(struct ps_tokenizer **out, const char *text, size_t len,
                       const char *config_text, size_t config_len,
                       struct ps_error *err) PS_WARN_UNUSED;

/* NULL is legal. */
void ps_tokenizer_close(struct ps_tokenizer *tok);

/* Encode `len` bytes of UTF-8 (invalid UTF-8 is PS_EDATA). The result replaces what enc held.
 * With add_special the post-processor's template (BOS, EOS) is applied; v4 add_bos_token and
 * add_eos_token of tokenizer_config.json override it for Llama-style classes. Added tokens inside
 * the text are always recognised. One thread at a time per tokenizer. O(n log n).
 * Also PS_EDATA: more than 1 GiB of text. PS_EFORMAT: a pattern of the file exceeds its limits, or
 * its normalizer makes the text more than 64 times longer. enc is then empty. */
int ps_tokenizer_encode(struct ps_tokenizer *tok, const char *text, size_t len, bool add_special,
                        struct ps_encoding *enc, struct ps_error *err) PS_WARN_UNUSED;

/* Decode ids to text: a new NUL-terminated buffer (free with free()), *len without the NUL.
 * Ids out of range are PS_EDATA; ids in a gap of the vocabulary have no text. Incomplete UTF-8
 * becomes U+FFFD, as the official decoder does. clean_up_tokenization_spaces is honoured where
 * tokenizer_config.json sets it to true. */
int ps_tokenizer_decode(struct ps_tokenizer *tok, const int32_t *ids, size_t count,
                        bool skip_special, char **text, size_t *len,
                        struct ps_error *err) PS_WARN_UNUSED;

/* Id of a token by its exact content (added tokens first), or -1. */
int32_t ps_tokenizer_token_id(const struct ps_tokenizer *tok, const char *token);

/* Content of a token (the vocabulary spelling), or NULL. Lives as long as the tokenizer. */
const char *ps_tokenizer_token_text(const struct ps_tokenizer *tok, int32_t id);

/* bos_token, eos_token, pad_token, unk_token of tokenizer_config.json as an id, or -1. `name` is
 * "bos_token" and so on. */
int32_t ps_tokenizer_special_id(const struct ps_tokenizer *tok, const char *name);

/* Largest id plus one. */
size_t ps_tokenizer_vocab_size(const struct ps_tokenizer *tok);

#ifdef __cplusplus
}
#endif
#endif
