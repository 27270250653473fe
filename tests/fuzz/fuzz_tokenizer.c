/* Fuzz target: a tokenizer.json, a NUL, and a text for it; an input that does not begin with '{'
 * is a text for a fixed tokenizer (the first byte chooses which).
 *
 * Whatever is accepted must encode to ids with sane offsets and decode again; the fixed byte-level
 * tokenizer must give every text back. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/data/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "violated: %s\n", what);
    abort();
}

/* UTF-8 of the byte-level alphabet. */
static size_t spell(unsigned byte, char *out)
{
    bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    unsigned c = itself         ? byte
                 : byte <= 0x20 ? 0x100 + byte
                 : byte <= 0xA0 ? 0x100 + byte - 0x7F + 0x21
                                : 0x143;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xC0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3F));
    return 2;
}

/* All bytes and a few merges, with the pre-tokenizer of Llama 3 and one added token. */
static struct ps_tokenizer *make_byte_level(void)
{
    static const char head[] =
        "{\"added_tokens\":[{\"id\":300,\"content\":\"<s>\",\"special\":true}],\"pre_tokenizer\":"
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
        "\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
        "\"use_regex\":false}]},\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"merges\":"
        "[\"a a\",\"a b\",\"aa aa\",\"ab a\"],\"vocab\":{\"aa\":256,\"ab\":257,\"aaaa\":258,"
        "\"aba\":259";
    static char json[8192];
    size_t n = sizeof head - 1;
    memcpy(json, head, n);
    for (unsigned b = 0; b < 256; b++) {
        json[n++] = ',';
        json[n++] = '"';
        if (b == '"' || b == '\\')
            json[n++] = '\\';
        n += spell(b, json + n);
        n += (size_t)snprintf(json + n, sizeof json - n, "\":%u", b);
    }
    n += (size_t)snprintf(json + n, sizeof json - n, "}}}");
    struct ps_tokenizer *tok = NULL;
    struct ps_error err = {0};
    if (ps_tokenizer_parse(&tok, json, n, NULL, 0, &err) != 0)
        fprintf(stderr, "%s\n", err.message);
    require(tok != NULL, "the fixed byte-level tokenizer opens");
    return tok;
}

/* Every normalizer in a row before a SentencePiece-style model with gaps in its fallback. */
static struct ps_tokenizer *make_pieces(void)
{
    static const char json[] =
        "{\"added_tokens\":[{\"id\":20,\"content\":\"<x>\",\"lstrip\":true,\"rstrip\":true},"
        "{\"id\":21,\"content\":\"x\",\"normalized\":true,\"single_word\":true}],\"normalizer\":"
        "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"},{\"type\":\"Lowercase\"},"
        "{\"type\":\"NFD\"},{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"\\\\s+\"},\"content\":"
        "\" \"},{\"type\":\"NFC\"},{\"type\":\"Strip\",\"strip_left\":false},{\"type\":"
        "\"Prepend\",\"prepend\":\" \"}]},\"pre_tokenizer\":{\"type\":\"Metaspace\","
        "\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"split\":false},\"decoder\":{\"type\":"
        "\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},"
        "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\","
        "\"content\":\" \",\"start\":1,\"stop\":0}]},\"model\":{\"unk_token\":\"?\",\"fuse_unk\":"
        "true,\"byte_fallback\":true,\"vocab\":{\"?\":0,\"a\":1,\"b\":2,\"_\":3,\"ab\":4,\"_a\":5,"
        "\"_ab\":6,\"aa\":7,\"<0xC3>\":8,\"<0xA9>\":9,\"<0xE2>\":10,\"<0x80>\":11,\"__\":12},"
        "\"merges\":[\"a b\",\"_ a\",\"_a b\",\"a a\",\"_ _\"]}}";
    struct ps_tokenizer *tok = NULL;
    struct ps_error err = {0};
    if (ps_tokenizer_parse(&tok, json, sizeof json - 1, NULL, 0, &err) != 0)
        fprintf(stderr, "%s\n", err.message);
    require(tok != NULL, "the fixed pieces tokenizer opens");
    return tok;
}

static void check(struct ps_tokenizer *tok, const char *text, size_t len, bool exact)
{
    struct ps_encoding enc = {0};
    struct ps_error err = {0};
    size_t id_count = ps_tokenizer_vocab_size(tok);
    for (int special = 0; special < 2; special++) {
        if (ps_tokenizer_encode(tok, text, len, special, &enc, &err) != 0) {
            require(err.message[0] && err.code < 0, "an error says what is wrong");
            continue;
        }
        size_t covered = 0;
        for (size_t i = 0; i < enc.count; i++) {
            require(enc.ids[i] >= 0 && (size_t)enc.ids[i] < id_count, "ids are in range");
            require(enc.begin[i] <= enc.end[i] && enc.end[i] <= len, "offsets are in range");
            require(ps_tokenizer_token_text(tok, enc.ids[i]) != NULL, "ids have a text");
            require(!exact || enc.begin[i] == covered, "byte-level tokens leave no gap");
            covered = enc.end[i];
        }
        char *out = NULL;
        size_t out_len = 0;
        int ret = ps_tokenizer_decode(tok, enc.ids, enc.count, special, &out, &out_len, &err);
        require(ret == 0 || (!exact && err.message[0]), "own ids decode");
        if (ret == 0 && exact && !special)
            require(out_len == len && memcmp(out, text, len) == 0, "decoding gives the text back");
        if (ret == 0)
            free(out);
    }
    ps_encoding_fini(&enc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ps_tokenizer *byte_level, *pieces;
    if (!byte_level) {
        byte_level = make_byte_level();
        pieces = make_pieces();
    }
    if (size == 0)
        return 0;
    const char *text = (const char *)data;
    if (data[0] != '{') {
        bool first = data[0] & 1;
        check(first ? byte_level : pieces, text + 1, size - 1, first);
        return 0;
    }
    const char *nul = memchr(text, 0, size);
    size_t json_len = nul ? (size_t)(nul - text) : size;
    struct ps_tokenizer *tok = NULL;
    struct ps_error err = {0};
    if (ps_tokenizer_parse(&tok, text, json_len, NULL, 0, &err) != 0) {
        require(err.message[0] && !tok, "a refusal says what is wrong");
        return 0;
    }
    if (nul)
        check(tok, nul + 1, size - json_len - 1, false);
    ps_tokenizer_close(tok);
    return 0;
}
