/* What the commands of the program share: reporting, errors, JSON. Nothing here is part of the
 * library. */
#ifndef PS_TOOLS_TOOL_H
#define PS_TOOLS_TOOL_H

#include <jansson.h>
#include <stdbool.h>

#include "session/options.h"
#include "session/penstock.h"

/* One function a command: opt holds its parsed arguments, not yet resolved. Each returns 0 or a
 * status with details in err; what it reports goes to standard output. */
int cmd_train(struct ps_options *opt, struct ps_error *err);
int cmd_eval(struct ps_options *opt, struct ps_error *err);
int cmd_generate(struct ps_options *opt, struct ps_error *err);
int cmd_export(struct ps_options *opt, struct ps_error *err);
int cmd_init(struct ps_options *opt, struct ps_error *err);
int cmd_inspect(struct ps_options *opt, struct ps_error *err);
int cmd_list(struct ps_options *opt, struct ps_error *err);
int cmd_version(struct ps_options *opt, struct ps_error *err);
int cmd_plan(struct ps_options *opt, struct ps_error *err);
int cmd_bench(struct ps_options *opt, struct ps_error *err);
int cmd_doctor(struct ps_options *opt, struct ps_error *err);
int cmd_data_inspect(struct ps_options *opt, struct ps_error *err);
int cmd_data_tokenize(struct ps_options *opt, struct ps_error *err);
int cmd_data_render(struct ps_options *opt, struct ps_error *err);

/* Where the library's messages go: standard error, a line each ("penstock: warning: ..."); with
 * --json only the warnings, as `{"warning":{"message"}}`. */
const struct ps_log *tool_log(const struct ps_options *opt);

/* Print an error on standard error: `penstock: FILE: message (field)` and the advice on a second
 * line, or with json `{"error":{...}}`. code is the exit code. */
void tool_print_error(const struct ps_error *err, int code, bool json);

/* A JSON real; null where it is not finite. */
json_t *tool_real(double v);

/* Print a JSON value as one line on standard output and release it. -ENOMEM if it is NULL, -EIO if
 * it cannot be written. */
int tool_print_json(json_t *value, struct ps_error *err) PS_WARN_UNUSED;

/* "1.23 GiB" into buf. Returns buf. */
const char *tool_bytes(char *buf, size_t size, uint64_t bytes);

/* "1h02m", "3m20s", "12s" into buf. Returns buf. */
const char *tool_duration(char *buf, size_t size, double seconds);

/* Flush standard output; -EIO when something could not be written (a full disk, a closed pipe). */
int tool_flush(struct ps_error *err) PS_WARN_UNUSED;

/* SIGINT and SIGTERM ask `s` to stop (the second one ends the program at once), SIGUSR1 asks it to
 * save; with s == NULL, before a session exists, the first ends the program at once. SIGPIPE and
 * SIGXFSZ are ignored: the failing write is reported instead. */
void tool_catch_signals(struct ps_session *s);

/* The signal that asked to stop, or 0. */
int tool_signal(void);

#endif
