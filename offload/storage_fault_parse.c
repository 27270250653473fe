/* The textual form of injected storage faults (storage_fault.h has the grammar). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "offload/storage_fault.h"

enum { ITEM_BYTES_MAX = 96 };

static const struct {
    const char *name;
    enum ps_fault_op op;
    bool transfers;
} op_word[] = {
    {"read", PS_FAULT_READ, false},         {"write", PS_FAULT_WRITE, false},
    {"flush", PS_FAULT_FLUSH, false},       {"any", PS_FAULT_ANY, false},
    {"transfer-read", PS_FAULT_READ, true}, {"transfer-write", PS_FAULT_WRITE, true},
    {"transfer-any", PS_FAULT_ANY, true},
};

static const struct {
    const char *name;
    enum ps_fault_action action;
    enum { VALUE_NONE, VALUE_MAY, VALUE_MUST } value;
} action_word[] = {
    {"short", PS_FAULT_SHORT, VALUE_MAY}, {"delay", PS_FAULT_DELAY, VALUE_MUST},
    {"hang", PS_FAULT_HANG, VALUE_NONE},  {"tear", PS_FAULT_TEAR, VALUE_MAY},
    {"drop", PS_FAULT_DROP, VALUE_NONE},  {"flip", PS_FAULT_FLIP, VALUE_MAY},
};

static const struct {
    const char *name;
    int code;
} errno_word[] = {
    {"eio", EIO},       {"enospc", ENOSPC},       {"edquot", EDQUOT},       {"eagain", EAGAIN},
    {"ebusy", EBUSY},   {"eintr", EINTR},         {"einval", EINVAL},       {"enodata", ENODATA},
    {"eilseq", EILSEQ}, {"erofs", EROFS},         {"eremoteio", EREMOTEIO}, {"efbig", EFBIG},
    {"enomem", ENOMEM}, {"ecanceled", ECANCELED},
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static bool parse_number(const char *s, uint64_t *out)
{
    if (s[0] < '0' || s[0] > '9')
        return false;
    char *end = NULL;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (errno != 0 || *end != '\0' || v > (unsigned long long)INT64_MAX)
        return false;
    *out = v;
    return true;
}

static bool parse_op(struct ps_storage_fault_item *it, const char *s)
{
    for (size_t i = 0; i < COUNT(op_word); i++) {
        if (strcmp(op_word[i].name, s) == 0) {
            it->op = op_word[i].op;
            it->transfers = op_word[i].transfers;
            return true;
        }
    }
    return false;
}

/* ACTION[=VALUE]; cuts s at '='. Returns NULL, or what is wrong. */
static const char *parse_action(struct ps_storage_fault_item *it, char *s)
{
    char *value = strchr(s, '=');
    uint64_t v = 0;
    if (value)
        *value++ = '\0';
    if (value && !parse_number(value, &v))
        return "the value is not a number";
    it->value = value ? (int64_t)v : -1;
    for (size_t i = 0; i < COUNT(errno_word); i++) {
        if (strcmp(errno_word[i].name, s) == 0) {
            it->action = PS_FAULT_FAIL;
            it->code = -errno_word[i].code;
            return value ? "an errno takes no value" : NULL;
        }
    }
    for (size_t i = 0; i < COUNT(action_word); i++) {
        if (strcmp(action_word[i].name, s) != 0)
            continue;
        it->action = action_word[i].action;
        if (value && action_word[i].value == VALUE_NONE)
            return "the action takes no value";
        if (!value && action_word[i].value == VALUE_MUST)
            return "the action needs a value";
        return NULL;
    }
    return "unknown action";
}

static const char *check_item(const struct ps_storage_fault_item *it)
{
    bool moves = it->op != PS_FAULT_FLUSH;
    if (it->action == PS_FAULT_TEAR && it->op != PS_FAULT_WRITE)
        return "tear is for writes";
    if (it->action == PS_FAULT_FLIP && it->op != PS_FAULT_READ)
        return "flip is for reads";
    if (it->action == PS_FAULT_SHORT && !moves)
        return "a flush has no length";
    return NULL;
}

/* OP:N:ACTION[=VALUE][:once|:always]. Returns NULL, or what is wrong. */
static const char *parse_operation(struct ps_storage_fault_item *it, char *s)
{
    char *part[5] = {s, NULL, NULL, NULL, NULL};
    int n = 1;
    for (char *p = s; (p = strchr(p, ':')) != NULL && n < 5;) {
        *p++ = '\0';
        part[n++] = p;
    }
    if (n < 3 || n > 4)
        return "expected OP:N:ACTION[=VALUE][:once|:always]";
    if (!parse_op(it, part[0]))
        return "unknown operation";
    if (strcmp(part[1], "*") != 0 && (!parse_number(part[1], &it->n) || it->n == 0))
        return "N must be 1, 2, ... or *";
    const char *wrong = parse_action(it, part[2]);
    if (wrong)
        return wrong;
    if (n == 4 && strcmp(part[3], "always") == 0)
        it->always = true;
    else if (n == 4 && strcmp(part[3], "once") != 0)
        return "expected once or always";
    return check_item(it);
}

static const char *parse_item(struct ps_storage_fault *f, char *s)
{
    uint64_t v = 0;
    if (strcmp(s, "reorder") == 0) {
        f->reorder = true;
        return NULL;
    }
    if (strncmp(s, "seed=", 5) == 0)
        return parse_number(s + 5, &f->seed) ? NULL : "the seed is not a number";
    if (strncmp(s, "jitter=", 7) == 0) {
        if (!parse_number(s + 7, &v) || v > 10000000)
            return "jitter is at most 10000000 microseconds";
        f->jitter_us = (uint32_t)v;
        return NULL;
    }
    if (f->item_count == PS_STORAGE_FAULT_ITEMS)
        return "too many items";
    struct ps_storage_fault_item *it = &f->item[f->item_count];
    memset(it, 0, sizeof *it);
    const char *wrong = parse_operation(it, s);
    if (!wrong)
        f->item_count++;
    return wrong;
}

int ps_storage_fault_parse(struct ps_storage_fault *out, const char *text, struct ps_error *err)
{
    struct ps_storage_fault f;
    memset(&f, 0, sizeof f);
    f.seed = 1;
    for (const char *p = text; *p;) {
        size_t len = strcspn(p, ",");
        char item[ITEM_BYTES_MAX];
        const char *wrong = "too long";
        if (len < sizeof item) {
            memcpy(item, p, len);
            item[len] = '\0';
            wrong = parse_item(&f, item);
        }
        if (wrong)
            return ps_error_full(err, PS_EUSAGE, NULL, NULL, "for example read:7:eio:always",
                                 "storage fault %.*s: %s", (int)(len < 64 ? len : 64), p, wrong);
        p += len;
        if (*p == ',')
            p++;
    }
    *out = f;
    return 0;
}
