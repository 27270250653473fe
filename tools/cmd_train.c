/* penstock train: the plan, the run with its progress, the summary. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "tools/tool.h"

enum progress { PROGRESS_NONE, PROGRESS_PLAIN, PROGRESS_REDRAW, PROGRESS_JSON };

struct view {
    const struct ps_options *opt;
    struct ps_session_info info;
    enum progress progress;
    bool line_open;                  /* a line to be redrawn stands on the terminal */
    uint64_t steps, tokens, skipped; /* of this call */
    uint64_t last_step;
    double step_s; /* sum over steps */
    double mean_s; /* moving average, for the time that remains */
    double first_loss, last_loss, eval_loss;
    bool evaluated;
};

static enum progress choose_progress(const struct ps_options *opt)
{
    if (!strcmp(opt->progress, "none"))
        return PROGRESS_NONE;
    if (!strcmp(opt->progress, "json"))
        return PROGRESS_JSON;
    if (!strcmp(opt->progress, "plain"))
        return PROGRESS_PLAIN;
    if (opt->json)
        return PROGRESS_JSON;
    return isatty(STDOUT_FILENO) ? PROGRESS_REDRAW : PROGRESS_PLAIN;
}

/* End the line that was being redrawn, so that what follows stands alone. */
static void close_line(struct view *v)
{
    if (v->line_open)
        putchar('\n');
    v->line_open = false;
}

/* null where there is no limit */
static json_t *budget_json(uint64_t bytes)
{
    return bytes > INT64_MAX ? json_null() : json_integer((json_int_t)bytes);
}

static json_t *plan_json(const struct view *v)
{
    const struct ps_session_info *i = &v->info;
    json_t *items = json_object();
    for (size_t k = 0; k < i->plan_count; k++) {
        char name[96]; /* what lies in two tiers is told apart */
        const struct ps_plan_item *item = &i->plan[k];
        bool again = json_object_get(items, item->name) != NULL;
        PS_IGNORE(snprintf(name, sizeof name, again ? "%s (%s)" : "%s", item->name,
                           item->tier ? item->tier : "") < 0,
                  "truncation is fine");
        PS_IGNORE(json_object_set_new(items, name, json_integer((json_int_t)item->bytes)),
                  "without memory the item is missing from the report");
    }
    return json_pack(
        "{s:s,s:s?,s:s?,s:s?,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:i,s:s?,s:b,s:I,"
        "s:I,s:o,s:s,s:s?,s:I,s:o,s:I,s:o,s:o}",
        "event", "plan", "model_type", i->model_type, "method", i->method, "optimizer",
        i->optimizer, "parameters", (json_int_t)i->parameters, "trainable_parameters",
        (json_int_t)i->trainable_parameters, "step_count", (json_int_t)i->step_count, "step",
        (json_int_t)i->step, "rows", (json_int_t)i->rows, "rows_dropped",
        (json_int_t)i->rows_dropped, "eval_rows", (json_int_t)i->eval_rows, "tokens_per_epoch",
        (json_int_t)i->tokens_per_epoch, "labels_per_epoch", (json_int_t)i->labels_per_epoch,
        "dropped_per_epoch", (json_int_t)i->dropped_per_epoch, "packing_efficiency",
        tool_real(i->packing_efficiency), "threads", i->threads, "isa", i->isa, "recompute",
        i->recompute, "host_bytes", (json_int_t)i->host_bytes, "host_budget",
        (json_int_t)i->host_budget, "plan", items, "device", i->device ? i->device : "cpu",
        "strategy", i->strategy, "device_bytes", (json_int_t)i->device_bytes, "device_budget",
        budget_json(i->device_budget), "disk_bytes", (json_int_t)i->disk_bytes, "disk_budget",
        budget_json(i->disk_budget), "predicted_step_s",
        i->predicted_step_s > 0 ? tool_real(i->predicted_step_s) : json_null());
}

static void print_rows(const struct ps_session_info *i)
{
    printf("data      %s: %llu rows as %s, loss on %s", i->data_path, (unsigned long long)i->rows,
           i->data_format, i->loss_on);
    if (i->rows_dropped)
        printf(", %llu dropped", (unsigned long long)i->rows_dropped);
    if (i->rows_truncated)
        printf(", %llu truncated", (unsigned long long)i->rows_truncated);
    if (i->eval_rows)
        printf(", %llu rows for evaluation", (unsigned long long)i->eval_rows);
    printf("\n          %llu tokens an epoch, %llu in the loss",
           (unsigned long long)i->tokens_per_epoch, (unsigned long long)i->labels_per_epoch);
    if (i->dropped_per_epoch)
        printf(", %llu after the last label not computed",
               (unsigned long long)i->dropped_per_epoch);
    printf("; packing fills %.0f%%\n", 100 * i->packing_efficiency);
}

/* ", 1 GiB of 8 GiB device"; nothing for a tier that is not used. */
static void print_tier(const char *tier, uint64_t used, uint64_t budget)
{
    char text[32];
    if (!used && !budget)
        return;
    printf(", %s", tool_bytes(text, sizeof text, used));
    if (budget && budget != UINT64_MAX)
        printf(" of %s", tool_bytes(text, sizeof text, budget));
    printf(" %s", tier);
}

/* A line a statement. */
static void print_note(const char *note)
{
    printf("plan      ");
    for (const char *end; (end = strstr(note, "; ")); note = end + 2)
        printf("%.*s\n          ", (int)(end - note), note);
    puts(note);
}

static int print_plan(const struct view *v, struct ps_error *err)
{
    const struct ps_session_info *i = &v->info;
    char a[32];
    char b[32];
    if (v->progress == PROGRESS_JSON || v->opt->json)
        return tool_print_json(plan_json(v), err);
    if (v->progress == PROGRESS_NONE && !v->opt->dry_run)
        return 0;
    printf("model     %s: %s, %llu parameters, %llu trained (%.2f%%)\n", v->opt->model,
           i->model_type, (unsigned long long)i->parameters,
           (unsigned long long)i->trainable_parameters,
           i->parameters ? 100.0 * (double)i->trainable_parameters / (double)i->parameters : 0.0);
    print_rows(i);
    printf("run       %s with %s, %llu steps of %d x %d sequences of at most %d tokens\n",
           i->method, i->optimizer, (unsigned long long)i->step_count, v->opt->grad_accum,
           v->opt->batch_size, v->opt->max_seq_len);
    if (i->step)
        printf("          resumes after step %llu\n", (unsigned long long)i->step);
    printf("machine   %s, %d thread%s, %s, activations %s\n", i->device ? i->device : "cpu",
           i->threads, i->threads == 1 ? "" : "s", i->isa, i->recompute ? "recomputed" : "kept");
    if (i->plan_note && i->plan_note[0]) /* names the strategy too */
        print_note(i->plan_note);
    else if (i->strategy)
        printf("plan      %s\n", i->strategy);
    if (i->predicted_step_s > 0)
        printf("predicted %.3g s/step\n", i->predicted_step_s);
    printf("memory    %s of %s host", tool_bytes(a, sizeof a, i->host_bytes),
           tool_bytes(b, sizeof b, i->host_budget));
    print_tier("device", i->device_bytes, i->device_budget);
    print_tier("disk", i->disk_bytes, i->disk_budget);
    putchar('\n');
    for (size_t k = 0; k < i->plan_count; k++)
        printf("  %-24s %12s  %s\n", i->plan[k].name, tool_bytes(a, sizeof a, i->plan[k].bytes),
               i->plan[k].tier ? i->plan[k].tier : "");
    putchar('\n');
    return tool_flush(err);
}

/* Append to the line; what does not fit is cut off. */
static void PS_PRINTF(3, 4) append(char *buf, size_t size, const char *fmt, ...)
{
    size_t len = strlen(buf);
    va_list ap;
    va_start(ap, fmt);
    PS_IGNORE(vsnprintf(buf + len, size - len, fmt, ap) < 0, "truncation is fine");
    va_end(ap);
}

/* "  host 512 MiB/600 MiB"; without a budget "  host 512 MiB"; nothing for a tier that is not used.
 */
static void append_tier(char *buf, size_t size, const char *tier, uint64_t used, uint64_t budget)
{
    char text[32];
    if (!used && !budget)
        return;
    append(buf, size, "  %s %s", tier, tool_bytes(text, sizeof text, used));
    if (budget && budget != UINT64_MAX)
        append(buf, size, "/%s", tool_bytes(text, sizeof text, budget));
}

static void format_step(const struct view *v, const struct ps_step_stats *s, char *buf, size_t size)
{
    char eta[32];
    double left = (double)(s->step_count - s->step) * v->mean_s;
    buf[0] = '\0';
    append(buf, size,
           "step %llu/%llu  eta %s  loss %.4f  grad %.3g  lr %.2e  %.0f tok/s  %.3g s/step  "
           "epoch %.2f",
           (unsigned long long)s->step, (unsigned long long)s->step_count,
           tool_duration(eta, sizeof eta, left), s->loss, s->grad_norm, s->learning_rate,
           s->tokens_per_s, s->step_s, s->epoch);
    if (v->info.device_budget)
        append_tier(buf, size, "device", s->device_bytes, v->info.device_budget);
    append_tier(buf, size, "host", s->host_bytes, v->info.host_budget);
    append_tier(buf, size, "disk", s->disk_bytes, v->info.disk_budget);
    if (s->disk_read_bytes || s->disk_write_bytes)
        append(buf, size, "  read %.3g write %.3g GB/s",
               s->step_s > 0 ? 1e-9 * (double)s->disk_read_bytes / s->step_s : 0,
               s->step_s > 0 ? 1e-9 * (double)s->disk_write_bytes / s->step_s : 0);
    if (s->stall_s > 0 && s->step_s > 0)
        append(buf, size, "  stall %.0f%%", 100 * s->stall_s / s->step_s);
    if (s->skipped)
        append(buf, size, "  SKIPPED: not finite, nothing updated");
}

/* Overwrite the terminal's line; what is too long for it would wrap and stay behind. */
static void redraw(struct view *v, char *line)
{
    struct winsize w;
    size_t columns = ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 1 ? w.ws_col : 80;
    if (strlen(line) >= columns)
        line[columns - 1] = '\0';
    printf("\r\033[K%s", line);
    v->line_open = true;
}

static json_t *step_json(const struct ps_step_stats *s)
{
    json_t *predicted = s->predicted_step_s > 0 ? tool_real(s->predicted_step_s) : json_null();
    return json_pack(
        "{s:s,s:I,s:I,s:o,s:o,s:o,s:o,s:I,s:I,s:I,s:o,s:o,s:I,s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o}",
        "event", "step", "step", (json_int_t)s->step, "step_count", (json_int_t)s->step_count,
        "epoch", tool_real(s->epoch), "loss", tool_real(s->loss), "grad_norm",
        tool_real(s->grad_norm), "learning_rate", tool_real(s->learning_rate), "tokens",
        (json_int_t)s->tokens, "label_tokens", (json_int_t)s->label_tokens, "dropped_tokens",
        (json_int_t)s->dropped_tokens, "tokens_per_s", tool_real(s->tokens_per_s), "step_s",
        tool_real(s->step_s), "host_bytes", (json_int_t)s->host_bytes, "skipped", s->skipped,
        "device_bytes", (json_int_t)s->device_bytes, "disk_bytes", (json_int_t)s->disk_bytes,
        "disk_read_bytes", (json_int_t)s->disk_read_bytes, "disk_write_bytes",
        (json_int_t)s->disk_write_bytes, "h2d_bytes", (json_int_t)s->h2d_bytes, "d2h_bytes",
        (json_int_t)s->d2h_bytes, "stall_s", tool_real(s->stall_s), "predicted_step_s", predicted);
}

static void on_step(void *arg, const struct ps_step_stats *s)
{
    struct view *v = arg;
    if (v->steps == 0)
        v->first_loss = s->loss;
    v->steps++;
    v->tokens += s->tokens;
    v->skipped += s->skipped;
    v->step_s += s->step_s;
    v->mean_s = v->steps == 1 ? s->step_s : 0.9 * v->mean_s + 0.1 * s->step_s;
    v->last_loss = s->loss;
    v->last_step = s->step;
    bool logged = s->step % (uint64_t)v->opt->logging_steps == 0 || s->step == s->step_count ||
                  s->step == 1 || s->skipped;
    char line[512];
    if (v->progress == PROGRESS_REDRAW) {
        format_step(v, s, line, sizeof line);
        redraw(v, line);
        if (s->skipped)
            close_line(v);
    } else if (v->progress == PROGRESS_PLAIN && logged) {
        format_step(v, s, line, sizeof line);
        puts(line);
    } else if (v->progress == PROGRESS_JSON && logged) {
        PS_IGNORE(tool_print_json(step_json(s), NULL), "a lost progress line does not end a run");
    }
    PS_IGNORE(tool_flush(NULL), "a lost progress line does not end a run");
}

static void on_eval(void *arg, uint64_t step, const struct ps_eval_stats *e)
{
    struct view *v = arg;
    v->eval_loss = e->loss;
    v->evaluated = true;
    if (v->progress == PROGRESS_JSON)
        PS_IGNORE(tool_print_json(json_pack("{s:s,s:I,s:o,s:o}", "event", "eval", "step",
                                            (json_int_t)step, "eval_loss", tool_real(e->loss),
                                            "seconds", tool_real(e->seconds)),
                                  NULL),
                  "a lost progress line does not end a run");
    else if (v->progress != PROGRESS_NONE) {
        close_line(v);
        printf("step %llu  held-out loss %.4f  perplexity %.2f  (%llu rows, %.1f s)\n",
               (unsigned long long)step, e->loss, e->perplexity, (unsigned long long)e->rows,
               e->seconds);
    }
    PS_IGNORE(tool_flush(NULL), "a lost progress line does not end a run");
}

static void on_checkpoint(void *arg, const char *path)
{
    struct view *v = arg;
    if (v->progress == PROGRESS_JSON)
        PS_IGNORE(
            tool_print_json(json_pack("{s:s,s:s}", "event", "checkpoint", "path", path), NULL),
            "a lost progress line does not end a run");
    else if (v->progress != PROGRESS_NONE) {
        close_line(v);
        printf("checkpoint %s\n", path);
    }
    PS_IGNORE(tool_flush(NULL), "a lost progress line does not end a run");
}

static void on_report(void *arg, const char *text)
{
    struct view *v = arg;
    if (v->progress == PROGRESS_NONE || v->progress == PROGRESS_JSON)
        return;
    close_line(v);
    fputs(text, stdout);
    PS_IGNORE(tool_flush(NULL), "a lost report does not end a run");
}

static int print_summary(struct view *v, double seconds, bool stopped, struct ps_error *err)
{
    char time[32];
    double rate = v->step_s > 0 ? (double)v->tokens / v->step_s : 0;
    close_line(v);
    if (v->progress == PROGRESS_JSON || v->opt->json)
        return tool_print_json(
            json_pack("{s:s,s:b,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:s}", "event", "end", "stopped",
                      stopped, "step", (json_int_t)v->last_step, "tokens", (json_int_t)v->tokens,
                      "skipped_steps", (json_int_t)v->skipped, "first_loss",
                      tool_real(v->first_loss), "last_loss", tool_real(v->last_loss), "eval_loss",
                      v->evaluated ? tool_real(v->eval_loss) : json_null(), "tokens_per_s",
                      tool_real(rate), "seconds", tool_real(seconds), "output", v->opt->output),
            err);
    if (v->progress == PROGRESS_NONE)
        return 0;
    if (v->steps == 0 && !stopped) {
        printf("nothing was left to do after step %llu\nresult: %s\n",
               (unsigned long long)v->last_step, v->opt->output);
        return tool_flush(err);
    }
    printf("%s after step %llu: loss %.4f -> %.4f", stopped ? "stopped" : "done",
           (unsigned long long)v->last_step, v->first_loss, v->last_loss);
    if (v->evaluated)
        printf(", held-out %.4f", v->eval_loss);
    printf("; %s, %.0f tokens/s\n", tool_duration(time, sizeof time, seconds), rate);
    if (stopped)
        printf("resume with: --resume; checkpoints are in %s\n", v->opt->output);
    else
        printf("result: %s\n", v->opt->output);
    return tool_flush(err);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int run(struct ps_session *s, struct view *v, struct ps_error *err)
{
    struct ps_train_hooks hooks = {v, on_step, on_eval, on_checkpoint, on_report};
    ps_session_info(s, &v->info);
    v->last_step = v->info.step;
    int ret = print_plan(v, err);
    if (ret || v->opt->dry_run)
        return ret;
    double start = now_s();
    ret = ps_session_train(s, &hooks, err);
    if (ret == 0 || ret == PS_ESTOPPED) {
        int printed = print_summary(v, now_s() - start, ret == PS_ESTOPPED, ret ? NULL : err);
        return ret ? ret : printed;
    }
    close_line(v);
    return ret;
}

int cmd_train(struct ps_options *opt, struct ps_error *err)
{
    int ret = ps_options_resolve(opt, err);
    if (ret)
        return ret;
    struct view v = {
        .opt = opt, .progress = choose_progress(opt), .first_loss = NAN, .last_loss = NAN};
    struct ps_session *s = NULL;
    tool_catch_signals(NULL);
    ret = ps_session_open(&s, opt, tool_log(opt), err);
    if (ret == 0) {
        tool_catch_signals(s);
        ret = run(s, &v, err);
        tool_catch_signals(NULL);
    }
    ps_session_close(s);
    return ret;
}
