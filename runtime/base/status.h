/* Status codes and error details shared by every part of Penstock.
 *
 * Fallible functions return 0 (or a count) on success and a negative value on failure: -errno, or
 * one of the codes below (all under -4095, so that they never collide with an errno). What a user
 * needs to know (file, field, remedy) travels in a caller-owned struct ps_error. */
#ifndef PS_BASE_STATUS_H
#define PS_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#define PS_WARN_UNUSED __attribute__((warn_unused_result))
#define PS_PRINTF(fmt_idx, arg_idx) __attribute__((format(printf, fmt_idx, arg_idx)))

/* Ignore the result of a fallible call; `reason` is a string that says why that is right. */
#define PS_IGNORE(expr, reason)                                                                    \
    do {                                                                                           \
        if (expr) { /* reason: given by the caller */                                              \
        }                                                                                          \
        (void)sizeof(reason);                                                                      \
    } while (0)

enum ps_status {
    PS_EUSAGE = -5000,       /* bad option, configuration or combination: exit 2 */
    PS_ENOFIT = -5001,       /* does not fit into the memory or disk budget: exit 3 */
    PS_EFORMAT = -5002,      /* a model, tokenizer or data file breaks its format: exit 4 */
    PS_EUNSUPPORTED = -5003, /* a valid file that asks for something Penstock does not do: exit 4 */
    PS_EDATA = -5004,        /* data rows are unusable (nothing to train on, bad field): exit 4 */
    PS_ECHECKSUM = -5005,    /* stored bytes do not match their checksum: exit 4 */
    PS_EDIVERGED = -5006,    /* non-finite or exploding loss: exit 5 */
    PS_ESTOPPED = -5007,     /* stopped by a signal after committing: exit 130/143 */
    PS_ENUMERIC = -5008,     /* a non-finite value where none is allowed: exit 1 */
    PS_ECUDA = -5009,        /* a CUDA call failed: exit 1 */
};

/* Error details for a person. Zero-initialise; every string is NUL-terminated. */
struct ps_error {
    int code;          /* the status that the failing function returns; 0 while unset */
    char message[768]; /* what is wrong, one sentence without a trailing newline */
    char file[512];    /* file at fault, or "" */
    char field[128];   /* field, option or tensor at fault, or "" */
    char advice[384];  /* what to do about it, or "" */
};

/* Set code and message (file, field and advice are cleared). err may be NULL. Returns `code`. */
int ps_error_set(struct ps_error *err, int code, const char *fmt, ...) PS_PRINTF(3, 4);

/* As ps_error_set with file, field and advice too; each may be NULL. Returns `code`. */
int ps_error_full(struct ps_error *err, int code, const char *file, const char *field,
                  const char *advice, const char *fmt, ...) PS_PRINTF(6, 7);

/* Fill in the file, field or advice where it is still empty. err may be NULL. Returns err->code,
 * or `code` if err is NULL. */
int ps_error_file(struct ps_error *err, int code, const char *file);
int ps_error_field(struct ps_error *err, int code, const char *field);
int ps_error_advice(struct ps_error *err, int code, const char *advice);

/* Short text for a status: strerror for -errno, own words for PS_E codes. Static storage. */
const char *ps_status_text(int status);

/* Process exit code of a status as the command line's contract has it: 0, 1, 2, 3, 4 or 5. */
int ps_status_exit_code(int status);

#ifdef __cplusplus
}
#endif
#endif
