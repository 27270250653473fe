/* From the chosen layout to the plan: simulation in full, break-even, words. See planner.h. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "offload/planner_internal.h"

#define GIB 1073741824.0

static bool streams_updates(const struct ps_step_shape *p, const struct ps_step_layout *l)
{
    return p->trains && l->update != PS_UPDATE_RESIDENT;
}

static int build_schedules(struct ps__schedules *s, const struct ps_step_shape *p,
                           const struct ps_step_layout *l, struct ps_error *err)
{
    enum ps_segment pass = p->trains ? PS_SEGMENT_TRAIN : PS_SEGMENT_EVAL;
    enum ps_segment second = s->streams ? PS_SEGMENT_TRAIN_INNER : PS_SEGMENT_UPDATE;
    ps_schedule_init(&s->pass, ps_segment_name(pass));
    ps_schedule_init(&s->second, ps_segment_name(second));
    int ret = ps_step_build(&s->pass, pass, p, l, &s->map, err);
    if (ret == 0 && p->trains && (!s->streams || s->pass_count > 1))
        ret = ps_step_build(&s->second, second, p, l, &s->map, err);
    return ret;
}

int ps__schedules_build(struct ps__schedules *s, const struct ps_planner_request *req,
                        const struct ps_step_layout *l, bool exact, struct ps_error *err)
{
    struct ps__coarse coarse;
    const struct ps_step_shape *p = req->shape;
    int32_t micros = p->trains ? req->micro_count : req->eval_max;
    int32_t group = p->trains ? l->group : l->eval_group;
    memset(s, 0, sizeof *s);
    s->streams = streams_updates(p, l);
    s->pass_count = (micros + group - 1) / group;
    int ret = s->streams ? ps__coarse_init(&coarse, p, l, exact) : 0;
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    if (s->streams) {
        p = &coarse.shape;
        l = &coarse.layout;
    }
    ret = ps_step_map_create(&s->map, p, l, err);
    if (ret == 0) {
        ret = build_schedules(s, p, l, err);
        if (ret < 0)
            ps__schedules_fini(s);
    }
    if (s->streams)
        ps__coarse_fini(&coarse);
    if (ret < 0)
        return ret;
    /* a step begins with the inner passes; slots and dependencies are handed over at rest */
    bool both = s->streams && s->pass_count > 1;
    struct ps_sim_segment passes = {&s->pass, (uint32_t)(s->streams ? 1 : s->pass_count), both};
    struct ps_sim_segment other = {&s->second, (uint32_t)(s->streams ? s->pass_count - 1 : 1),
                                   both};
    s->segment[both ? 1 : 0] = passes;
    s->segment[both ? 0 : 1] = other;
    s->segment_count = both || (p->trains && !s->streams) ? 2 : 1;
    return 0;
}

void ps__schedules_fini(struct ps__schedules *s)
{
    ps_schedule_fini(&s->pass);
    ps_schedule_fini(&s->second);
    ps_step_map_fini(&s->map);
}

/* Until steps take the same: the writes of updates may trail through a whole step behind them, and
 * fill the buffers up only in the third. */
static uint32_t rounds_of(const struct ps__schedules *s)
{
    return s->streams ? 4 : 2;
}

static int simulate(struct ps_sim_result *out, const struct ps__schedules *s,
                    const struct ps_cost_model *cost, bool serial, struct ps_error *err)
{
    struct ps_sim_options o = {.model = cost,
                               .segment = s->segment,
                               .segment_count = s->segment_count,
                               .rounds = serial ? 1 : rounds_of(s),
                               .serial = serial};
    return ps_simulate(out, &o, err);
}

static bool may_redo(const struct ps_step_layout *l)
{
    return l->update == PS_UPDATE_INSIDE && l->clip == PS_CLIP_EXACT;
}

static uint64_t written_bytes(const struct ps_sim_result *r)
{
    return r->bytes[PS_LANE_DISK_WRITE] + r->bytes[PS_LANE_COMMIT];
}

/* A step that is clipped: everything comes to rest, the updates are made again, and the next step
 * begins with empty slots. One pass has all micro-batches. */
static int simulate_redone(struct ps__trial *t, const struct ps__coarse *coarse,
                           const struct ps_cost_model *cost, uint64_t *tasks, struct ps_error *err)
{
    static const enum ps_segment part[] = {PS_SEGMENT_PROLOGUE_TRAIN, PS_SEGMENT_TRAIN,
                                           PS_SEGMENT_UPDATE};
    enum { COUNT = sizeof part / sizeof *part };
    struct ps_step_map map;
    struct ps_schedule made[COUNT];
    struct ps_sim_segment segment[COUNT];
    struct ps_sim_result r;
    const struct ps_step_shape *shape = &coarse->shape;
    int ret = ps_step_map_create(&map, shape, &coarse->layout, err);
    if (ret < 0)
        return ret;
    for (int i = 0; i < COUNT; i++)
        ps_schedule_init(&made[i], ps_segment_name(part[i]));
    for (int i = 0; ret == 0 && i < COUNT; i++) {
        ret = ps_step_build(&made[i], part[i], shape, &coarse->layout, &map, err);
        segment[i] = (struct ps_sim_segment){.schedule = &made[i], .repeat = 1, .drained = true};
        *tasks += made[i].task_count;
    }
    struct ps_sim_options o = {
        .model = cost, .segment = segment, .segment_count = COUNT, .rounds = 2};
    if (ret == 0)
        ret = ps_simulate(&r, &o, err);
    if (ret == 0)
        t->redo_s = r.seconds > t->step_s ? r.seconds - t->step_s : 0;
    if (ret == 0 && written_bytes(&r) > written_bytes(&t->sim))
        t->redo_write_bytes = written_bytes(&r) - written_bytes(&t->sim);
    for (int i = 0; i < COUNT; i++)
        ps_schedule_fini(&made[i]);
    ps_step_map_fini(&map);
    return ret;
}

static int simulate_redo(struct ps__trial *t, const struct ps_planner_request *req,
                         const struct ps_cost_model *cost, bool exact, uint64_t *tasks,
                         struct ps_error *err)
{
    struct ps__coarse coarse;
    int ret = ps__coarse_init(&coarse, req->shape, &t->layout, exact);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    ret = simulate_redone(t, &coarse, cost, tasks, err);
    t->redo_share_s = req->clip_share * t->redo_s;
    ps__coarse_fini(&coarse);
    return ret;
}

int ps__trial_simulate(struct ps__trial *t, const struct ps_planner_request *req,
                       const struct ps_cost_model *cost, bool exact, uint64_t *tasks,
                       struct ps_error *err)
{
    struct ps__schedules s;
    int ret = ps__schedules_build(&s, req, &t->layout, exact, err);
    if (ret < 0)
        return ret;
    for (int i = 0; i < s.segment_count; i++)
        *tasks += (uint64_t)rounds_of(&s) * s.segment[i].schedule->task_count * s.segment[i].repeat;
    ret = simulate(&t->sim, &s, cost, false, err);
    t->step_s = t->sim.seconds;
    t->simulated = ret == 0;
    ps__schedules_fini(&s);
    if (ret == 0 && s.streams && may_redo(&t->layout))
        ret = simulate_redo(t, req, cost, exact, tasks, err);
    return ret;
}

int ps__grow_eval_group(struct ps__trial *t, const struct ps_planner_request *req,
                        const struct ps_cost_model *cost, struct ps_error *err)
{
    struct ps_step_layout *l = &t->layout;
    if (!req->shape->trains || l->near_slots == 0 || l->eval_group >= req->eval_max)
        return 0;
    struct ps_step_shape eval = *req->shape;
    struct ps_planner_request of = *req;
    struct ps__estimate e;
    eval.trains = false;
    of.shape = &eval;
    of.eval_max = l->eval_group; /* one pass */
    int ret = ps__estimate_layout(&e, &of, cost, l);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    double moved = e.lane_s[PS_LANE_DISK_WEIGHTS] > e.lane_s[PS_LANE_H2D]
                       ? e.lane_s[PS_LANE_DISK_WEIGHTS]
                       : e.lane_s[PS_LANE_H2D];
    double one = e.lane_s[PS_LANE_COMPUTE] / l->eval_group;
    double wanted = one > 0 ? 2 * moved / one + 1 : req->eval_max;
    int32_t low = l->eval_group;
    int32_t high = wanted < req->eval_max ? (int32_t)wanted : req->eval_max;
    while (low < high) {
        uint64_t bytes[PS_TIER_COUNT];
        l->eval_group = low + (high - low + 1) / 2;
        ret = ps__layout_bytes(req, l, bytes, err);
        if (ret < 0)
            return ret;
        if (ps__bytes_fit(req, bytes))
            low = l->eval_group;
        else
            high = l->eval_group - 1;
    }
    l->eval_group = low;
    return ps__layout_bytes(req, l, t->bytes, err);
}

const struct ps__trial *ps__plan_smallest(const struct ps__trials *t, int strategy,
                                          const struct ps_planner_request *req)
{
    const struct ps__trial *least = NULL;
    for (int i = 0; i < t->count; i++) {
        const struct ps__trial *c = &t->trial[i];
        bool disk = c->bytes[PS_TIER_DISK] <= req->disk_budget;
        bool least_disk = least && least->bytes[PS_TIER_DISK] <= req->disk_budget;
        if (strategy >= 0 && c->strategy != strategy)
            continue;
        if (!least || disk > least_disk ||
            (disk == least_disk && ps__trial_memory(c) < ps__trial_memory(least)))
            least = c;
    }
    return least;
}

/* Simulate what may write least in a day, by the longest that its step can take. */
static int simulate_least_written(struct ps__trials *t, const struct ps_planner_request *req,
                                  const struct ps_cost_model *cost, struct ps_error *err)
{
    struct ps__trial *least = NULL;
    double least_day = 0;
    uint64_t tasks = 0;
    for (int i = 0; i < t->count; i++) {
        struct ps__trial *c = &t->trial[i];
        double day = ps__per_day(c->estimate.write_bytes, c->estimate.serial_s);
        if (!c->fits || !c->wears || (least && day >= least_day))
            continue;
        least = c;
        least_day = day;
    }
    return least && !least->simulated ? ps__trial_simulate(least, req, cost, false, &tasks, err)
                                      : 0;
}

/* Something fits, but all of that writes too much: PS_ENOFIT; else 0. */
static int wears_out(struct ps_plan *out, struct ps__trials *t,
                     const struct ps_planner_request *req, const struct ps_cost_model *cost,
                     struct ps_error *err)
{
    const struct ps__trial *least = NULL;
    double least_day = 0;
    int ret = simulate_least_written(t, req, cost, err);
    if (ret < 0)
        return ret;
    for (int i = 0; i < t->count; i++) {
        const struct ps__trial *c = &t->trial[i];
        double day = ps__trial_day(c);
        if (!c->fits || !c->wears || !c->simulated || (least && day >= least_day))
            continue;
        least = c;
        least_day = day;
    }
    if (!least)
        return 0;
    out->device_bytes = least->bytes[PS_TIER_DEVICE];
    out->host_bytes = least->bytes[PS_TIER_HOST];
    out->disk_bytes = least->bytes[PS_TIER_DISK];
    out->needs_write_limit = (uint64_t)least_day + 1;
    return ps_error_full(err, PS_ENOFIT, NULL, "nvme-write-limit",
                         "raise the limit, or the memory budget so that less is written, or give "
                         "more tokens a step",
                         "a day of %s would write %.1f GiB to the disk and %.1f GiB may be "
                         "written; nothing that fits writes less",
                         least->layout.strategy, least_day / GIB, (double)req->write_limit / GIB);
}

int ps__plan_no_fit(struct ps_plan *out, struct ps__trials *t, const struct ps_planner_request *req,
                    const struct ps_cost_model *cost, struct ps_error *err)
{
    const struct ps__trial *least = ps__plan_smallest(t, -1, req);
    assert(least);
    int ret = wears_out(out, t, req, cost, err);
    if (ret < 0)
        return ret;
    out->device_bytes = least->bytes[PS_TIER_DEVICE];
    out->host_bytes = least->bytes[PS_TIER_HOST];
    out->disk_bytes = least->bytes[PS_TIER_DISK];
    const struct {
        const char *flag, *what;
        uint64_t need, budget;
    } tier[] = {
        {req->discrete ? "gpu-mem" : "host-mem", req->discrete ? "device memory" : "memory",
         out->device_bytes, req->device_budget},
        {"host-mem", "host memory", out->host_bytes, req->host_budget},
        {"nvme-mem", "disk", out->disk_bytes, req->disk_budget},
    };
    char text[512] = "";
    size_t len = 0;
    const char *field = NULL;
    for (size_t i = 0; i < sizeof tier / sizeof *tier; i++) {
        if (tier[i].need <= tier[i].budget)
            continue;
        int n =
            snprintf(text + len, sizeof text - len, "%s%.1f MiB of %s (%.1f MiB are left for it)",
                     len ? " and " : "", (double)tier[i].need / 1048576.0, tier[i].what,
                     (double)tier[i].budget / 1048576.0);
        len += n > 0 && (size_t)n < sizeof text - len ? (size_t)n : 0;
        field = field ? field : tier[i].flag;
    }
    return ps_error_full(
        err, PS_ENOFIT, NULL, field,
        req->shape->trains ? "raise the budget, or lower --max-seq-len or --batch-size"
                           : "raise the budget, or lower --max-seq-len",
        "%s needs at least %s",
        req->placement ? "the placement" : ps_strategy_at(least->strategy)->name, text);
}

/* Seconds of a schedule's tasks on a lane, alone; of one kind, or (PS_TASK_KIND_COUNT) all. */
static double alone_s(const struct ps_schedule *s, const struct ps_cost_model *cost,
                      enum ps_lane lane, enum ps_task_kind kind)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->task_count; i++) {
        const struct ps_task *t = &s->task[i];
        if (t->lane != lane || (kind != PS_TASK_KIND_COUNT && t->kind != kind))
            continue;
        double solo = ps_cost_solo_s(cost, t);
        double stay = ps_cost_throttle_s(cost, t);
        sum += stay > solo ? stay : solo;
    }
    return sum;
}

/* A lane's seconds in a step, alone. */
static double step_alone_s(const struct ps__schedules *s, const struct ps_cost_model *cost,
                           enum ps_lane lane, enum ps_task_kind kind)
{
    double sum = 0;
    for (int i = 0; i < s->segment_count; i++)
        sum += s->segment[i].repeat * alone_s(s->segment[i].schedule, cost, lane, kind);
    return sum;
}

/* What compute must hide, in a step: weights, and where the updates are streamed all that the disk
 * does. */
static double moved_s(const struct ps__schedules *s, const struct ps_cost_model *cost)
{
    double read = step_alone_s(s, cost, PS_LANE_DISK_WEIGHTS, PS_TASK_READ_WEIGHTS);
    double copy = step_alone_s(s, cost, PS_LANE_H2D, PS_TASK_COPY_WEIGHTS);
    double most = read > copy ? read : copy;
    double disk = 0;
    for (int i = 0; s->streams && i < PS_LANE_COUNT; i++) {
        double lane = step_alone_s(s, cost, (enum ps_lane)i, PS_TASK_KIND_COUNT);
        if (i != PS_LANE_COMPUTE && lane > most)
            most = lane;
        disk += lane * cost->use[i][PS_RESOURCE_DISK];
    }
    return disk > most ? disk : most;
}

/* Break-even, serial time, slowdown: what needs the schedules again. */
static int measure(struct ps_plan *out, const struct ps_planner_request *req,
                   const struct ps_cost_model *cost, struct ps_error *err)
{
    struct ps__schedules s;
    struct ps_sim_result serial, update;
    int ret = ps__schedules_build(&s, req, &out->layout, false, err);
    if (ret < 0)
        return ret;
    ret = simulate(&serial, &s, cost, true, err);
    double compute = alone_s(&s.pass, cost, PS_LANE_COMPUTE, PS_TASK_KIND_COUNT) * s.pass_count;
    if (s.streams)
        compute = step_alone_s(&s, cost, PS_LANE_COMPUTE, PS_TASK_KIND_COUNT);
    double moved = moved_s(&s, cost);
    double updates = 0;
    if (ret == 0 && s.segment_count == 2 && !s.streams) {
        struct ps_sim_options o = {
            .model = cost, .segment = &s.segment[1], .segment_count = 1, .rounds = 1};
        ret = ps_simulate(&update, &o, err);
        updates = update.seconds;
    }
    out->commits = s.streams && s.map.commits;
    ps__schedules_fini(&s);
    if (ret < 0)
        return ret;
    out->serial_s = serial.seconds;
    out->break_even_tokens = compute > 0 ? out->tokens_per_pass * moved / compute : 0;
    double bare = compute + updates;
    out->slowdown = bare > 0 ? out->step_s / bare : 1;
    return 0;
}

static void list_candidate(struct ps_plan *out, const struct ps_planner_request *req,
                           const struct ps__trial *t)
{
    if (out->candidate_count == PS_PLAN_CANDIDATE_MAX)
        return;
    struct ps_plan_candidate *c = &out->candidate[out->candidate_count++];
    c->strategy = ps_strategy_at(t->strategy)->name;
    c->step_s = t->simulated ? t->step_s : t->estimate.bound_s;
    c->device_bytes = t->bytes[PS_TIER_DEVICE];
    c->host_bytes = t->bytes[PS_TIER_HOST];
    c->disk_bytes = t->bytes[PS_TIER_DISK];
    c->fits = t->fits;
    c->wears = t->fits && t->wears;
    c->write_bytes = t->estimate.write_bytes;
    ps__layout_note(req->shape, &t->layout, c->note, sizeof c->note);
    size_t len = strlen(c->note);
    if (t->fits && t->wears)
        snprintf(c->note + len, sizeof c->note - len, " (writes too much)");
    else if (t->fits && !t->simulated)
        snprintf(c->note + len, sizeof c->note - len, " (at least)");
}

static int by_time(const void *a, const void *b)
{
    const struct ps__trial *x = *(struct ps__trial *const *)a;
    const struct ps__trial *y = *(struct ps__trial *const *)b;
    if (x->fits != y->fits)
        return x->fits ? -1 : 1;
    double s = x->simulated ? x->step_s : x->estimate.bound_s;
    double r = y->simulated ? y->step_s : y->estimate.bound_s;
    if (x->simulated != y->simulated)
        return x->simulated ? -1 : 1;
    if (s != r)
        return s < r ? -1 : 1;
    return ps__trial_memory(x) < ps__trial_memory(y) ? -1
                                                     : ps__trial_memory(x) > ps__trial_memory(y);
}

/* The chosen one first, then by time. */
static int list_candidates(struct ps_plan *out, const struct ps__trials *t, int best,
                           const struct ps_planner_request *req)
{
    const struct ps__trial **order = malloc((size_t)t->count * sizeof *order);
    if (!order)
        return -ENOMEM;
    for (int i = 0; i < t->count; i++)
        order[i] = &t->trial[i];
    qsort(order, (size_t)t->count, sizeof *order, by_time);
    list_candidate(out, req, &t->trial[best]);
    for (int i = 0; i < t->count; i++)
        if (order[i] != &t->trial[best])
            list_candidate(out, req, order[i]);
    free(order);
    return 0;
}

int ps__plan_describe(struct ps_plan *out, struct ps__trials *t, int best,
                      const struct ps_planner_request *req, const struct ps_cost_model *cost,
                      struct ps_error *err)
{
    struct ps__trial *b = &t->trial[best];
    const struct ps_sim_result *r = &b->sim;
    int ret = ps_step_layout_copy(&out->layout, &b->layout, req->shape);
    if (ret == 0)
        ret = list_candidates(out, t, best, req);
    if (ret < 0) {
        ps_step_layout_fini(&out->layout);
        return ps_error_set(err, ret, "out of memory");
    }
    bool trains = req->shape->trains;
    out->cost = *cost;
    out->step = *r;
    out->step_s = r->seconds;
    out->redo_s = b->redo_s;
    out->redo_write_bytes = b->redo_write_bytes;
    double micros = trains ? req->micro_count : req->eval_max;
    micros /= req->shape->zeroth ? 2 : 1; /* each at both points */
    out->tokens_per_s = r->seconds > 0 ? micros * (double)req->tokens / r->seconds : 0;
    out->device_bytes = b->bytes[PS_TIER_DEVICE];
    out->host_bytes = b->bytes[PS_TIER_HOST];
    out->disk_bytes = b->bytes[PS_TIER_DISK];
    out->disk_read = r->bytes[PS_LANE_DISK_WEIGHTS] + r->bytes[PS_LANE_DISK_STATE];
    out->disk_write = r->bytes[PS_LANE_DISK_WRITE] + r->bytes[PS_LANE_COMMIT];
    out->h2d = r->bytes[PS_LANE_H2D];
    out->d2h = r->bytes[PS_LANE_D2H];
    out->tokens_per_pass =
        (double)req->tokens * (trains ? out->layout.group : out->layout.eval_group);
    out->tokens_per_pass /= req->shape->zeroth ? 2 : 1;
    out->bottleneck = PS_LANE_COMPUTE;
    for (int i = 0; i < PS_LANE_COUNT; i++)
        if (r->busy_s[i] > r->busy_s[out->bottleneck])
            out->bottleneck = (enum ps_lane)i;
    ret = measure(out, req, cost, err);
    if (ret < 0) {
        ps_step_layout_fini(&out->layout);
        return ret;
    }
    ps__plan_explain(out, t, req, b->strategy);
    return 0;
}
