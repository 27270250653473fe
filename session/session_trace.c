/* The trace of a run: trace.json in the run directory, or --trace FILE. See session_internal.h.
 *
 * The steps after the first are traced (the first fills slots and caches), at most TRACE_STEPS and
 * at most TRACE_TASKS tasks: a file that a viewer still opens. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "offload/simulator.h"
#include "runtime/base/file.h"
#include "runtime/train/trace.h"
#include "session/session_internal.h"

#define TRACE_STEPS 3
#define TRACE_TASKS 60000

static bool streams_updates(const struct ps_session *s)
{
    return s->chosen.layout.update != PS_UPDATE_RESIDENT;
}

/* Where the simulator puts the tasks of the last pass of a step. */
static int predict(struct ps_session *s, struct ps_error *err)
{
    const struct ps_schedule *train = ps_trainer_schedule(s->trainer, PS_SEGMENT_TRAIN);
    const struct ps_schedule *update = ps_trainer_schedule(s->trainer, PS_SEGMENT_UPDATE);
    int32_t group = s->chosen.layout.group;
    int32_t micros = s->trainer_options.micro_max > 0 ? s->trainer_options.micro_max : 1;
    s->predicted = calloc((size_t)train->task_count + 1, sizeof *s->predicted);
    if (!s->predicted)
        return ps_error_set(err, -ENOMEM, "out of memory");
    uint32_t passes = (uint32_t)((micros + group - 1) / group);
    bool streams = streams_updates(s);
    bool inner = streams && passes > 1;
    struct ps_sim_segment segment[] = {
        {.schedule = train, .repeat = streams ? 1 : passes, .drained = inner},
        {.schedule = inner ? ps_trainer_schedule(s->trainer, PS_SEGMENT_TRAIN_INNER) : update,
         .repeat = inner ? passes - 1 : 1,
         .drained = inner}};
    struct ps_sim_options o = {.model = &s->chosen.cost,
                               .segment = segment,
                               .segment_count = streams && !inner ? 1 : 2,
                               .rounds = streams ? 4 : 2,
                               .serial = s->opt->serial,
                               .record_segment = 0,
                               .record = s->predicted};
    struct ps_sim_result r;
    return ps_simulate(&r, &o, err);
}

int ps__trace_begin(struct ps_session *s, struct ps_error *err)
{
    char path[4096];
    if (s->opt->trace) {
        if (snprintf(path, sizeof path, "%s", s->opt->trace) >= (int)sizeof path)
            return ps_error_full(err, -ENAMETOOLONG, s->opt->trace, "trace", NULL,
                                 "the path is too long");
    } else if (!ps_path_join(path, sizeof path, s->opt->output, "trace.json")) {
        return ps_error_full(err, -ENAMETOOLONG, s->opt->output, NULL, NULL,
                             "the path is too long");
    }
    int ret = predict(s, err);
    if (ret == 0)
        ret = ps_trace_open(&s->trace, path, err);
    if (ret == 0)
        ret = ps_trace_announce(s->trace, ps_trainer_schedule(s->trainer, PS_SEGMENT_TRAIN), err);
    if (ret == 0)
        ret = ps_trace_announce(s->trace, ps_trainer_schedule(s->trainer, PS_SEGMENT_UPDATE), err);
    return ret < 0 ? ps_error_field(err, ret, "trace") : 0;
}

static void give_up(struct ps_session *s, const char *message)
{
    ps_log(&s->log, PS_LOG_WARN, "the trace is not written: %s", message);
    ps_trace_discard(s->trace);
    s->trace = NULL;
}

void ps__trace_step(struct ps_session *s)
{
    uint64_t nth = s->step - s->first_step; /* 1: the first step */
    const struct ps_schedule *train = ps_trainer_schedule(s->trainer, PS_SEGMENT_TRAIN);
    bool only = s->step == ps_batcher_step_count(s->batcher) && nth == 1;
    if (!s->trace || (nth < 2 && !only) || nth > TRACE_STEPS + 1 ||
        (nth > 2 && (nth - 1) * train->task_count > TRACE_TASKS))
        return;
    struct ps_error err = {0};
    static const enum ps_segment traced[] = {PS_SEGMENT_TRAIN, PS_SEGMENT_UPDATE};
    int ret = 0;
    for (int i = 0; ret == 0 && i < (streams_updates(s) ? 1 : 2); i++) {
        int handle;
        struct ps_executor *ex = ps_trainer_executor(s->trainer, traced[i], &handle);
        ret = ps_trace_period(s->trace, ps_trainer_schedule(s->trainer, traced[i]),
                              ps_executor_records(ex, handle), s->step, false, &err);
        if (ret == 0 && i == 0)
            ret = ps_trace_period(s->trace, train, s->predicted, s->step, true, &err);
    }
    if (ret < 0)
        give_up(s, err.message);
}

int ps__trace_end(struct ps_session *s, struct ps_error *err)
{
    if (!s->trace)
        return 0;
    int ret = ps_trace_close(s->trace, err);
    s->trace = NULL;
    if (ret < 0 && !s->opt->trace) { /* nobody asked for it by name */
        ps_log(&s->log, PS_LOG_WARN, "the trace is not written: %s", err->message);
        memset(err, 0, sizeof *err);
        ret = 0;
    }
    return ret;
}
