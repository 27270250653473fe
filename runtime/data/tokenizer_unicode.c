/* Unicode for the tokenizer: characters, classes, and the four normalization forms with
 * alignments, on utf8proc's tables.
 *
 * Design: utf8proc_map gives no alignments, so the text is cut into segments that normalise on
 * their own: a starter that cannot combine backwards begins a new one. Within a segment the marks
 * are ordered by a stable counting sort (utf8proc orders by insertion, which is quadratic in a run
 * of marks). What a segment becomes stands for the whole segment, unless nothing changed.
 * Source: Unicode Standard Annex 15. */
#include "runtime/data/tokenizer_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

int32_t ps__tok_char_at(const char *bytes, size_t len, size_t at, size_t *size)
{
    unsigned char b = (unsigned char)bytes[at];
    if (b < 0x80) {
        *size = 1;
        return b;
    }
    utf8proc_int32_t c;
    utf8proc_ssize_t n =
        utf8proc_iterate((const utf8proc_uint8_t *)bytes + at, (utf8proc_ssize_t)(len - at), &c);
    *size = n > 0 ? (size_t)n : 1;
    return n > 0 ? c : 0xFFFD;
}

size_t ps__tok_utf8_valid(const char *bytes, size_t len)
{
    size_t i = 0;
    while (i < len) {
        uint64_t word;
        if (len - i >= 8) {
            memcpy(&word, bytes + i, 8);
            if (!(word & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        if (!(bytes[i] & 0x80)) {
            i++;
            continue;
        }
        utf8proc_int32_t c;
        utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)bytes + i, (utf8proc_ssize_t)(len - i), &c);
        if (n <= 0)
            return i;
        i += (size_t)n;
    }
    return len;
}

bool ps__tok_is_space(int32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool ps__tok_is_numeric(int32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    utf8proc_category_t g = utf8proc_category(c);
    return g == UTF8PROC_CATEGORY_ND || g == UTF8PROC_CATEGORY_NL || g == UTF8PROC_CATEGORY_NO;
}

/* Alphabetic is approximated as L, M and Nl and the circled letters, the only symbols in it. */
bool ps__tok_is_word(int32_t c)
{
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
               (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
               (c >= 0x1F170 && c <= 0x1F189);
    }
}

/* Printable bytes of Latin-1 spell themselves; the other 68 take U+0100 onward, in order. */
static bool spells_itself(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

size_t ps__tok_byte_spell(unsigned byte, char out[2])
{
    unsigned c = byte;
    if (!spells_itself(byte))
        c = 0x100 + (byte <= 0x20 ? byte : byte <= 0xA0 ? byte - 0x7F + 0x21 : 0x43);
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xC0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3F));
    return 2;
}

int ps__tok_byte_unspell(int32_t c)
{
    if (c >= 0 && c < 0x100)
        return spells_itself((unsigned)c) ? c : -1;
    if (c < 0x100 || c > 0x143)
        return -1;
    int k = c - 0x100;
    return k <= 0x20 ? k : k == 0x43 ? 0xAD : k - 0x21 + 0x7F;
}

/* Starters (combining class 0) that can be the second half of a composition: Unicode 14, with the
 * additions of Unicode 16 (a character too many here only makes a segment longer). */
static bool combines_backwards(int32_t c)
{
    static const int32_t range[][2] = {
        {0x9BE, 0x9BE},     {0x9D7, 0x9D7},     {0xB3E, 0xB3E},     {0xB56, 0xB57},
        {0xBBE, 0xBBE},     {0xBD7, 0xBD7},     {0xCC2, 0xCC2},     {0xCD5, 0xCD6},
        {0xD3E, 0xD3E},     {0xD57, 0xD57},     {0xDCF, 0xDCF},     {0xDDF, 0xDDF},
        {0xFB5, 0xFB5},     {0xFB7, 0xFB7},     {0x102E, 0x102E},   {0x1161, 0x1175},
        {0x11A8, 0x11C2},   {0x1B35, 0x1B35},   {0x11127, 0x11127}, {0x1133E, 0x1133E},
        {0x11357, 0x11357}, {0x113B8, 0x113C9}, {0x114B0, 0x114B0}, {0x114BA, 0x114BA},
        {0x114BD, 0x114BD}, {0x115AF, 0x115AF}, {0x11930, 0x11930}, {0x1611E, 0x16129},
        {0x16D63, 0x16D67},
    };
    for (size_t i = 0; i < sizeof range / sizeof range[0] && c >= range[i][0]; i++)
        if (c <= range[i][1])
            return true;
    return false;
}

static unsigned combining_class(int32_t c)
{
    return c < 0x300 ? 0 : (unsigned)utf8proc_get_property(c)->combining_class;
}

/* Append the decomposition of c to tok->code_points. *starts: c may begin a segment. */
static int decompose(struct ps_tokenizer *tok, int32_t c, utf8proc_option_t options, size_t *n,
                     bool *starts)
{
    enum { EXPANSION_MAX = 32 }; /* the longest decomposition, U+FDFA, has 18 */
    int ret = ps__tok_reserve((void **)&tok->code_points, &tok->code_point_capacity,
                              *n + EXPANSION_MAX, sizeof *tok->code_points);
    if (ret < 0)
        return ret;
    int32_t *to = tok->code_points + *n;
    int boundary = 0;
    utf8proc_ssize_t k = utf8proc_decompose_char(c, to, EXPANSION_MAX, options, &boundary);
    if (k <= 0 || k > EXPANSION_MAX) {
        to[0] = c; /* not reached with utf8proc's tables */
        k = 1;
    }
    *starts = combining_class(to[0]) == 0 && !combines_backwards(to[0]);
    *n += (size_t)k;
    return 0;
}

/* Stable sort by combining class of each run of non-starters in cp[0..n). */
static int order_marks(int32_t *cp, size_t n)
{
    for (size_t i = 0, end; i < n; i = end) {
        end = i + 1;
        if (combining_class(cp[i]) == 0)
            continue;
        while (end < n && combining_class(cp[end]) != 0)
            end++;
        if (end - i <= 16) {
            for (size_t a = i + 1; a < end; a++)
                for (size_t b = a; b > i && combining_class(cp[b - 1]) > combining_class(cp[b]);
                     b--) {
                    int32_t swap = cp[b];
                    cp[b] = cp[b - 1];
                    cp[b - 1] = swap;
                }
            continue;
        }
        size_t first[257] = {0};
        int32_t *sorted = malloc((end - i) * sizeof *sorted);
        if (!sorted)
            return -ENOMEM;
        for (size_t a = i; a < end; a++)
            first[combining_class(cp[a]) + 1]++;
        for (size_t k = 0; k < 256; k++)
            first[k + 1] += first[k];
        for (size_t a = i; a < end; a++)
            sorted[first[combining_class(cp[a])]++] = cp[a];
        memcpy(cp + i, sorted, (end - i) * sizeof *sorted);
        free(sorted);
    }
    return 0;
}

/* Write the segment in[begin, end), decomposed to n code points. */
static int put_segment(struct ps_tokenizer *tok, const struct ps__tok_view *in, size_t begin,
                       size_t end, size_t n, bool compose, struct ps__tok_text *out)
{
    int32_t *cp = tok->code_points;
    int ret = order_marks(cp, n);
    if (ret < 0)
        return ret;
    if (compose && n > 1) {
        utf8proc_ssize_t k =
            utf8proc_normalize_utf32(cp, (utf8proc_ssize_t)n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (k > 0)
            n = (size_t)k;
    }
    struct ps__tok_span all = {ps__tok_view_begin(in, begin), ps__tok_view_end(in, end)};
    size_t before = out->len;
    for (size_t i = 0; i < n; i++) {
        utf8proc_uint8_t text[4];
        utf8proc_ssize_t size = utf8proc_encode_char(cp[i], text);
        ret = ps__tok_text_put(out, (const char *)text, (size_t)size, all);
        if (ret < 0)
            return ret;
    }
    size_t written = out->len - before;
    if (written == end - begin && memcmp(out->bytes + before, in->bytes + begin, written) == 0) {
        out->len = before;
        return ps__tok_text_copy(out, in, begin, end);
    }
    if (written > tok->growth_left)
        return -E2BIG;
    tok->growth_left -= written;
    return 0;
}

int ps__tok_norm_form(struct ps_tokenizer *tok, enum ps__tok_norm_kind form,
                      const struct ps__tok_view *in, struct ps__tok_text *out)
{
    bool compose = form == PS__TOK_NORM_NFC || form == PS__TOK_NORM_NFKC;
    bool compat = form == PS__TOK_NORM_NFKC || form == PS__TOK_NORM_NFKD;
    utf8proc_option_t options =
        UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    size_t begin = 0, n = 0, size;
    /* Characters below `plain` are unchanged and never combine with what precedes them. */
    int32_t plain = form == PS__TOK_NORM_NFC ? 0x300 : 0x80;
    for (size_t i = 0; i < in->len; i += size) {
        bool starts = true;
        size_t before = n;
        int32_t c = ps__tok_char_at(in->bytes, in->len, i, &size);
        int ret = decompose(tok, c, options, &n, &starts);
        if (ret == 0 && starts && before) {
            /* c belongs to the next segment: finish the one before it. */
            size_t own = n - before;
            int32_t keep[32];
            memcpy(keep, tok->code_points + before, own * sizeof keep[0]);
            ret = put_segment(tok, in, begin, i, before, compose, out);
            memcpy(tok->code_points, keep, own * sizeof keep[0]);
            n = own;
            begin = i;
        }
        /* A stretch of plain characters is copied at once, up to the last, which may combine. */
        size_t last = i, next = i + size, next_size;
        while (ret == 0 && c < plain && next < in->len) {
            int32_t d = ps__tok_char_at(in->bytes, in->len, next, &next_size);
            if (d >= plain)
                break;
            last = next;
            next += next_size;
        }
        if (ret == 0 && last > i) {
            ret = ps__tok_text_copy(out, in, i, last);
            begin = i = last;
            n = 0;
            size = 0;
        }
        if (ret < 0)
            return ret;
    }
    return n ? put_segment(tok, in, begin, in->len, n, compose, out) : 0;
}
