/* Status codes and error details: see status.h. */
#include "runtime/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Names from files may hold anything: no control character reaches a terminal, and no character is
 * cut in half where the text was truncated. */
static void clean_text(char *text)
{
    size_t len = 0;
    for (; text[len]; len++)
        if ((unsigned char)text[len] < 0x20 || text[len] == 0x7f)
            text[len] = ' ';
    size_t lead = len;
    while (lead > 0 && len - lead < 3 && ((unsigned char)text[lead - 1] & 0xc0) == 0x80)
        lead--;
    if (lead == 0 || (unsigned char)text[lead - 1] < 0xc0)
        return;
    unsigned char c = (unsigned char)text[lead - 1];
    size_t need = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (len - lead + 1 < need)
        text[lead - 1] = '\0';
}

static void copy_text(char *dst, size_t size, const char *src)
{
    PS_IGNORE(snprintf(dst, size, "%s", src ? src : "") < 0, "truncation is acceptable here");
    clean_text(dst);
}

int ps_error_set(struct ps_error *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    memset(err, 0, sizeof *err);
    err->code = code;
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(err->message, sizeof err->message, fmt, ap) < 0, "truncation is fine");
    va_end(ap);
    clean_text(err->message);
    return code;
}

int ps_error_full(struct ps_error *err, int code, const char *file, const char *field,
                  const char *advice, const char *fmt, ...)
{
    if (!err)
        return code;
    /* file or field may point into *err itself, so build the new value aside. */
    struct ps_error next = {.code = code};
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(next.message, sizeof next.message, fmt, ap) < 0, "truncation is fine");
    va_end(ap);
    clean_text(next.message);
    copy_text(next.file, sizeof next.file, file);
    copy_text(next.field, sizeof next.field, field);
    copy_text(next.advice, sizeof next.advice, advice);
    *err = next;
    return code;
}

static int fill(struct ps_error *err, int code, char *dst, size_t size, const char *text)
{
    if (!err)
        return code;
    if (!dst[0])
        copy_text(dst, size, text);
    return err->code ? err->code : code;
}

int ps_error_file(struct ps_error *err, int code, const char *file)
{
    return fill(err, code, err ? err->file : NULL, sizeof err->file, file);
}

int ps_error_field(struct ps_error *err, int code, const char *field)
{
    return fill(err, code, err ? err->field : NULL, sizeof err->field, field);
}

int ps_error_advice(struct ps_error *err, int code, const char *advice)
{
    return fill(err, code, err ? err->advice : NULL, sizeof err->advice, advice);
}

const char *ps_status_text(int status)
{
    switch (status) {
    case 0:
        return "success";
    case PS_EUSAGE:
        return "bad option or configuration";
    case PS_ENOFIT:
        return "does not fit the budget";
    case PS_EFORMAT:
        return "malformed file";
    case PS_EUNSUPPORTED:
        return "not supported";
    case PS_EDATA:
        return "unusable data";
    case PS_ECHECKSUM:
        return "checksum mismatch";
    case PS_EDIVERGED:
        return "training diverged";
    case PS_ESTOPPED:
        return "stopped by a signal";
    case PS_ENUMERIC:
        return "non-finite value";
    case PS_ECUDA:
        return "a CUDA call failed";
    default:
        return strerror(status < 0 ? -status : status);
    }
}

int ps_status_exit_code(int status)
{
    switch (status) {
    case PS_EUSAGE:
        return 2;
    case PS_ENOFIT:
        return 3;
    case PS_EFORMAT:
    case PS_EUNSUPPORTED:
    case PS_EDATA:
    case PS_ECHECKSUM:
        return 4;
    case PS_EDIVERGED:
        return 5;
    default:
        return status < 0 ? 1 : 0;
    }
}
