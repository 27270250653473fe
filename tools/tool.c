/* What the commands share: see tool.h. */
#include "tools/tool.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void log_line(void *arg, enum ps_log_level level, const char *message)
{
    (void)arg;
    static const char *const prefix[] = {"debug: ", "", "warning: ", "error: "};
    if (level != PS_LOG_DEBUG)
        fprintf(stderr, "penstock: %s%s\n", prefix[level], message);
}

/* With --json: an object a warning, so that every line of standard error is JSON. */
static void log_json(void *arg, enum ps_log_level level, const char *message)
{
    (void)arg;
    if (level < PS_LOG_WARN)
        return;
    json_t *o = json_pack("{s:{s:s}}", "warning", "message", message);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    fprintf(stderr, "%s\n", text ? text : "{\"warning\":{\"message\":\"\"}}");
    free(text);
    json_decref(o);
}

static void log_warning(void *arg, enum ps_log_level level, const char *message)
{
    if (level >= PS_LOG_WARN)
        log_line(arg, level, message);
}

const struct ps_log *tool_log(const struct ps_options *opt)
{
    static const struct ps_log all = {log_line, NULL};
    static const struct ps_log warnings = {log_warning, NULL};
    static const struct ps_log json = {log_json, NULL};
    if (opt->json)
        return &json;
    /* data inspect reports the same and more; who wants no progress wants no news either */
    bool quiet = opt->command == PS_CMD_DATA_INSPECT ||
                 (opt->command == PS_CMD_TRAIN && !strcmp(opt->progress, "none"));
    return quiet ? &warnings : &all;
}

static void print_json_error(const struct ps_error *err, int code)
{
    json_t *o =
        json_pack("{s:{s:i,s:s,s:s,s:s,s:s}}", "error", "code", code, "message", err->message,
                  "file", err->file, "field", err->field, "advice", err->advice);
    /* NULL when a string is not UTF-8 (a file name may be anything) */
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    if (text)
        fprintf(stderr, "%s\n", text);
    else
        fprintf(stderr,
                "{\"error\":{\"code\":%d,\"message\":\"%s\",\"file\":\"\",\"field\":\"\","
                "\"advice\":\"\"}}\n",
                code, ps_status_text(err->code));
    free(text);
    json_decref(o);
}

void tool_print_error(const struct ps_error *err, int code, bool json)
{
    if (json) {
        print_json_error(err, code);
        return;
    }
    const char *bare = err->field + strspn(err->field, "-");
    bool field = bare[0] && !strstr(err->message, bare);
    fprintf(stderr, "penstock: %s%s%s%s%s%s\n", err->file, err->file[0] ? ": " : "", err->message,
            field ? " (" : "", field ? err->field : "", field ? ")" : "");
    if (err->advice[0])
        fprintf(stderr, "  %s\n", err->advice);
}

json_t *tool_real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

int tool_print_json(json_t *value, struct ps_error *err)
{
    int ret = 0;
    if (!value)
        return ps_error_set(err, -ENOMEM, "out of memory");
    if (json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY) || fputc('\n', stdout) == EOF)
        ret = ps_error_set(err, -EIO, "cannot write to standard output");
    json_decref(value);
    return ret;
}

const char *tool_bytes(char *buf, size_t size, uint64_t bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024 && u + 1 < sizeof unit / sizeof unit[0]) {
        v /= 1024;
        u++;
    }
    PS_IGNORE(snprintf(buf, size, u && v < 100 ? "%.2f %s" : "%.0f %s", v, unit[u]) < 0, "fits");
    return buf;
}

const char *tool_duration(char *buf, size_t size, double seconds)
{
    if (!(seconds >= 0) || seconds > 1e9)
        seconds = 1e9;
    long long s = (long long)(seconds + 0.5);
    int n;
    if (s >= 86400)
        n = snprintf(buf, size, "%lldd%02lldh", s / 86400, s / 3600 % 24);
    else if (s >= 3600)
        n = snprintf(buf, size, "%lldh%02lldm", s / 3600, s / 60 % 60);
    else if (s >= 60)
        n = snprintf(buf, size, "%lldm%02llds", s / 60, s % 60);
    else
        n = snprintf(buf, size, "%llds", s);
    PS_IGNORE(n < 0, "fits");
    return buf;
}

int tool_flush(struct ps_error *err)
{
    if (fflush(stdout) || ferror(stdout))
        return ps_error_set(err, -EIO, "cannot write to standard output");
    return 0;
}

/* Read in signal handlers, so they cannot be arguments. */
static _Atomic(struct ps_session *) session;
static atomic_int stop_signal;

static void on_stop(int number)
{
    int none = 0;
    struct ps_session *s = atomic_load_explicit(&session, memory_order_acquire);
    if (!s || !atomic_compare_exchange_strong_explicit(&stop_signal, &none, number,
                                                       memory_order_relaxed, memory_order_relaxed))
        _exit(128 + number);
    ps_session_request_stop(s, number);
}

static void on_save(int number)
{
    (void)number;
    struct ps_session *s = atomic_load_explicit(&session, memory_order_acquire);
    if (s)
        ps_session_request_save(s);
}

static void handle(int number, void (*fn)(int))
{
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = fn;
    a.sa_flags = SA_RESTART;
    sigemptyset(&a.sa_mask);
    PS_IGNORE(sigaction(number, &a, NULL), "fails only for a signal that does not exist");
}

void tool_catch_signals(struct ps_session *s)
{
    atomic_store_explicit(&session, s, memory_order_release);
    handle(SIGINT, on_stop);
    handle(SIGTERM, on_stop);
    handle(SIGUSR1, on_save);
    handle(SIGPIPE, SIG_IGN);
    handle(SIGXFSZ, SIG_IGN);
}

int tool_signal(void)
{
    return atomic_load_explicit(&stop_signal, memory_order_relaxed);
}
