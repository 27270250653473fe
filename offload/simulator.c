/* The simulator: see simulator.h and runtime/train/cost.h.
 *
 * Design. At most one task of a lane works at a time, so at most PS_LANE_COUNT are active and an
 * event costs O(lanes * resources). An async lane starts tasks ahead, but the device serves its
 * requests in order and one that waits in the queue takes nothing: what counts is when it is
 * served, max(end of the one before, dependencies done), as on every other lane.
 *
 * A task is not an object: its instances end in the order of the periods, so a count of ended
 * periods a task answers "has the dependency of period p ended?". The ends of the last two periods
 * are kept, to say which dependency ended last. Every dependency is looked at once until it is
 * satisfied and once more if the lane stood still.
 *
 * A task whose pace does not change ends at start + solo exactly: remaining work is only brought
 * forward when the pace does.
 *
 * Invariants.
 * 1. Runs (periods of segments) are released one after the other; tasks that do not trail and are
 * not done belong to the run released last.
 * 2. A period begins when the last but one of the same schedule has ended, trailing tasks included
 * (the executor keeps two periods). The first of a drained segment begins when all have.
 * 3. Something is active or every released task has ended: dependencies point to earlier tasks or
 * to the period before (checked beforehand), and lanes follow program order. */
#include "offload/simulator.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A schedule that occurs in the sequence. */
struct book {
    const struct ps_schedule *schedule;
    double *work;   /* (task_count) solo seconds */
    double *hold;   /* (task_count) shortest stay, by the throttle */
    uint32_t *list; /* (task_count) ids by lane, in program order */
    uint32_t lane_begin[PS_LANE_COUNT + 1];
    uint32_t *done;   /* (task_count) periods in which the task has ended */
    double (*end)[2]; /* (task_count) when, by parity of the period */
    uint32_t waited;  /* tasks that do not trail */
    uint32_t periods; /* released */
    uint32_t left[2]; /* tasks that have not ended, of the last two periods, by parity */
};

struct lane {
    /* place in the sequence */
    uint64_t run;
    int segment;
    uint32_t repeat;
    uint32_t at; /* in the book's list */
    bool waits;  /* the task at `at` is released and has not started */
    uint32_t dep_next;
    double ready; /* since when it waits */
    /* the task being served */
    bool active, works; /* works: uses resources; else only held by the throttle */
    uint32_t task, period;
    double start, since, left, pace; /* `left` solo seconds at time `since` */
    double event;                    /* when its work, or its stay, ends */
    double work_end;
    int32_t waited_on;
    double waited_since;
};

struct sim {
    const struct ps_sim_options *opt;
    struct ps_sim_result *out;
    struct book *book; /* (segment_count at most) */
    int book_count;
    int *book_of;     /* (segment_count) */
    uint32_t *period; /* (PS_LANE_COUNT, book_count) of the lane's place */
    struct lane lane[PS_LANE_COUNT];
    uint64_t run_total, run_round, released; /* runs: all, of one round, released */
    uint64_t run_recorded;                   /* UINT64_MAX: none */
    int segment;                             /* of the run to release next, and its repetition */
    uint32_t repeat;
    uint32_t waiting;          /* tasks that the run released last still waits for */
    bool held;                 /* the next run waits for trailing tasks (invariant 2) */
    double now, begin, finish; /* last round: [begin, finish); INFINITY while ahead */
};

static void sim_fini(struct sim *s)
{
    for (int i = 0; i < s->book_count; i++) {
        free(s->book[i].work);
        free(s->book[i].hold);
        free(s->book[i].list);
        free(s->book[i].done);
        free(s->book[i].end);
    }
    free(s->book);
    free(s->book_of);
    free(s->period);
}

static int check_task(const struct ps_schedule *s, const struct ps_task *t, double work,
                      double hold, struct ps_error *err)
{
    if ((unsigned)t->kind >= PS_TASK_KIND_COUNT || (unsigned)t->lane >= PS_LANE_COUNT)
        return ps_error_set(err, PS_EUSAGE, "schedule %s: task %u is of no known kind or lane",
                            s->name, t->id);
    if (!(isfinite(work) && isfinite(hold) && work >= 0 && hold >= 0))
        return ps_error_set(err, PS_EUSAGE, "schedule %s: task %u (%s) lasts %g s", s->name, t->id,
                            ps_task_kind_name(t->kind), work > hold ? work : hold);
    for (uint32_t i = 0; i < t->dep_count; i++) {
        const struct ps_dep *d = &s->dep[t->dep_begin + i];
        if (d->task >= s->task_count || d->distance > 1 || (!d->distance && d->task >= t->id))
            return ps_error_set(err, PS_EUSAGE,
                                "schedule %s cannot go on: task %u waits for task %u, which does "
                                "not come before it",
                                s->name, t->id, d->task);
    }
    return 0;
}

static int book_open(struct book *b, const struct ps_schedule *s, const struct ps_cost_model *m,
                     struct ps_error *err)
{
    size_t n = s->task_count ? s->task_count : 1;
    b->schedule = s;
    b->work = malloc(n * sizeof *b->work);
    b->hold = malloc(n * sizeof *b->hold);
    b->list = malloc(n * sizeof *b->list);
    b->done = calloc(n, sizeof *b->done);
    b->end = calloc(n, sizeof *b->end);
    if (!b->work || !b->hold || !b->list || !b->done || !b->end)
        return ps_error_set(err, -ENOMEM, "out of memory while simulating the schedule %s",
                            s->name);
    for (uint32_t i = 0; i < s->task_count; i++) {
        const struct ps_task *t = &s->task[i];
        bool known = (unsigned)t->kind < PS_TASK_KIND_COUNT && (unsigned)t->lane < PS_LANE_COUNT;
        b->work[i] = known ? ps_cost_solo_s(m, t) : 0;
        b->hold[i] = known ? ps_cost_throttle_s(m, t) : 0;
        int ret = check_task(s, t, b->work[i], b->hold[i], err);
        if (ret < 0)
            return ret;
        b->lane_begin[t->lane + 1]++;
        b->waited += !(t->flags & PS_TASK_TRAILS);
    }
    for (int l = 0; l < PS_LANE_COUNT; l++)
        b->lane_begin[l + 1] += b->lane_begin[l];
    uint32_t fill[PS_LANE_COUNT];
    memcpy(fill, b->lane_begin, sizeof fill);
    for (uint32_t i = 0; i < s->task_count; i++)
        b->list[fill[s->task[i].lane]++] = i;
    return 0;
}

static int sim_open(struct sim *s, struct ps_error *err)
{
    const struct ps_sim_options *o = s->opt;
    size_t n = o->segment_count > 0 ? (size_t)o->segment_count : 1;
    s->book = calloc(n, sizeof *s->book);
    s->book_of = calloc(n, sizeof *s->book_of);
    s->period = calloc(n * PS_LANE_COUNT, sizeof *s->period);
    if (!s->book || !s->book_of || !s->period)
        return ps_error_set(err, -ENOMEM, "out of memory while simulating");
    for (int i = 0; i < o->segment_count; i++) {
        int b = 0;
        while (b < s->book_count && s->book[b].schedule != o->segment[i].schedule)
            b++;
        s->book_of[i] = b;
        if (b == s->book_count) {
            s->book_count++;
            int ret = book_open(&s->book[b], o->segment[i].schedule, o->model, err);
            if (ret < 0)
                return ret;
        }
        s->run_round += o->segment[i].repeat;
    }
    return 0;
}

static struct book *place_book(struct sim *s, const struct lane *l)
{
    return &s->book[s->book_of[l->segment]];
}

static uint32_t *place_period(struct sim *s, const struct lane *l)
{
    return &s->period[(l - s->lane) * s->book_count + s->book_of[l->segment]];
}

/* Step (segment, repeat) on to the next run; segments repeated 0 times are passed over. */
static void next_run(const struct ps_sim_options *o, int *segment, uint32_t *repeat)
{
    ++*repeat;
    while (*repeat >= o->segment[*segment].repeat) {
        *segment = (*segment + 1) % o->segment_count;
        *repeat = 0;
        if (o->segment[*segment].repeat)
            break;
    }
}

/* Bring the lane to its next released task, if there is one. */
static void settle(struct sim *s, struct lane *l)
{
    size_t idx = (size_t)(l - s->lane);
    while (l->run < s->released && l->at == place_book(s, l)->lane_begin[idx + 1]) {
        ++*place_period(s, l);
        l->run++;
        next_run(s->opt, &l->segment, &l->repeat);
        l->at = place_book(s, l)->lane_begin[idx];
    }
    l->waits = l->run < s->released;
    l->dep_next = 0;
    l->ready = s->now;
}

/* Must the next run wait for tasks that trail? */
static bool is_held(const struct sim *s)
{
    const struct book *b = &s->book[s->book_of[s->segment]];
    if (b->left[b->periods & 1] > 0)
        return true;
    if (!s->opt->segment[s->segment].drained || s->repeat > 0)
        return false;
    for (int i = 0; i < s->book_count; i++)
        if (s->book[i].left[0] > 0 || s->book[i].left[1] > 0)
            return true;
    return false;
}

/* Begin the next run that can begin; at the end of a round, take the time. */
static void release(struct sim *s)
{
    do {
        if (!s->held && s->released == s->run_total - s->run_round)
            s->begin = s->now;
        if (s->released == s->run_total) {
            s->finish = s->now;
            return;
        }
        struct book *b = &s->book[s->book_of[s->segment]];
        s->held = is_held(s);
        if (s->held)
            return;
        b->left[b->periods++ & 1] = b->schedule->task_count;
        s->waiting = b->waited;
        next_run(s->opt, &s->segment, &s->repeat);
        s->released++;
        for (int l = 0; l < PS_LANE_COUNT; l++)
            if (!s->lane[l].active && !s->lane[l].waits)
                settle(s, &s->lane[l]);
    } while (!s->waiting);
}

/* The part of [from, to) that lies in the last round. */
static double in_round(const struct sim *s, double from, double to)
{
    double a = fmax(from, s->begin), b = fmin(to, s->finish);
    return b > a ? b - a : 0;
}

static bool dep_done(const struct book *b, const struct ps_dep *d, uint32_t period)
{
    return period < d->distance || b->done[d->task] > period - d->distance;
}

/* The dependency of another lane that ended last, or -1. */
static int32_t last_dep(const struct book *b, const struct ps_task *t, uint32_t period)
{
    int32_t best = -1;
    double best_end = 0;
    for (uint32_t i = 0; i < t->dep_count; i++) {
        const struct ps_dep *d = &b->schedule->dep[t->dep_begin + i];
        /* One that has ended in two later periods ended long before this task could wait. */
        if (period < d->distance || b->schedule->task[d->task].lane == t->lane ||
            b->done[d->task] > period - d->distance + 2)
            continue;
        double end = b->end[d->task][(period - d->distance) & 1];
        if (best < 0 || end > best_end) {
            best = (int32_t)d->task;
            best_end = end;
        }
    }
    return best;
}

/* Start the lane's next task if its dependencies are done. */
static void try_start(struct sim *s, struct lane *l)
{
    const struct book *b = place_book(s, l);
    uint32_t id = b->list[l->at], period = *place_period(s, l);
    const struct ps_task *t = &b->schedule->task[id];
    for (; l->dep_next < t->dep_count; l->dep_next++)
        if (!dep_done(b, &b->schedule->dep[t->dep_begin + l->dep_next], period))
            return;
    l->waited_on = -1;
    if (s->now > l->ready) {
        l->waited_on = last_dep(b, t, period);
        if (l->waited_on >= 0)
            s->out->stall_s[t->lane][b->schedule->task[l->waited_on].lane] +=
                in_round(s, l->ready, s->now);
    }
    l->waits = false;
    l->active = l->works = true;
    l->task = id;
    l->period = period;
    l->start = l->since = s->now;
    l->left = b->work[id];
    l->pace = 1;
    l->event = s->now + l->left;
}

/* New paces after the set of working tasks has changed. */
static void set_paces(struct sim *s)
{
    const struct ps_cost_model *m = s->opt->model;
    double load[PS_RESOURCE_COUNT] = {0};
    for (int l = 0; l < PS_LANE_COUNT; l++)
        if (s->lane[l].works)
            for (int r = 0; r < PS_RESOURCE_COUNT; r++)
                load[r] += m->use[l][r];
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        struct lane *l = &s->lane[i];
        if (!l->works)
            continue;
        double most = 1;
        for (int r = 0; r < PS_RESOURCE_COUNT; r++)
            if (m->use[i][r] > 0 && load[r] > most)
                most = load[r];
        double pace = 1 / most;
        if (pace == l->pace)
            continue;
        l->left = fmax(0, l->left - (s->now - l->since) * l->pace);
        l->since = s->now;
        l->pace = pace;
        l->event = s->now + l->left * most;
    }
}

static uint64_t round_ns(const struct sim *s, double t)
{
    return t > s->begin ? (uint64_t)((t - s->begin) * 1e9 + 0.5) : 0;
}

static void end_task(struct sim *s, struct lane *l)
{
    struct book *b = place_book(s, l);
    const struct ps_task *t = &b->schedule->task[l->task];
    s->out->busy_s[t->lane] += in_round(s, l->start, s->now);
    b->end[l->task][l->period & 1] = s->now;
    b->done[l->task] = l->period + 1;
    if (l->run == s->run_recorded)
        s->opt->record[l->task] =
            (struct ps_task_record){.ready_ns = round_ns(s, l->ready),
                                    .start_ns = round_ns(s, l->start),
                                    .end_ns = round_ns(s, s->now),
                                    .throttle_ns = round_ns(s, s->now) - round_ns(s, l->work_end),
                                    .waited_on = l->waited_on};
    l->active = false;
    l->at++;
    settle(s, l);
    assert(b->left[l->period & 1] > 0);
    b->left[l->period & 1]--;
    if (!(t->flags & PS_TASK_TRAILS)) {
        assert(s->waiting > 0);
        if (--s->waiting == 0)
            release(s);
    } else if (s->held) {
        release(s);
    }
}

/* The lane's event has come: its work ends, or its stay. */
static void pass_event(struct sim *s, struct lane *l)
{
    if (l->works) {
        l->works = false;
        l->work_end = s->now;
        double stay = l->start + place_book(s, l)->hold[l->task];
        if (stay > s->now) {
            l->event = stay;
            return;
        }
    }
    end_task(s, l);
}

static void walk(struct sim *s)
{
    s->run_total = s->run_round * s->opt->rounds;
    while (!s->opt->segment[s->segment].repeat)
        s->segment++;
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        s->lane[i].segment = s->segment;
        s->lane[i].at = place_book(s, &s->lane[i])->lane_begin[i];
    }
    release(s);
    for (;;) {
        for (int l = 0; l < PS_LANE_COUNT; l++)
            if (s->lane[l].waits)
                try_start(s, &s->lane[l]);
        set_paces(s);
        struct lane *first = NULL;
        for (int l = 0; l < PS_LANE_COUNT; l++)
            if (s->lane[l].active && (!first || s->lane[l].event < first->event))
                first = &s->lane[l];
        if (!first)
            break;
        s->now = fmax(s->now, first->event);
        pass_event(s, first);
    }
    assert(s->released == s->run_total);
    for (int l = 0; l < PS_LANE_COUNT; l++)
        assert(!s->lane[l].waits);
    s->out->seconds = s->finish - s->begin;
}

/* One task at a time, in program order: a round is a sum. */
static void walk_serial(struct sim *s)
{
    const struct ps_sim_options *o = s->opt;
    for (int i = 0; i < o->segment_count; i++) {
        const struct book *b = &s->book[s->book_of[i]];
        for (uint32_t p = 0; p < o->segment[i].repeat; p++) {
            bool record = o->record && i == o->record_segment && p + 1 == o->segment[i].repeat;
            for (uint32_t t = 0; t < b->schedule->task_count; t++) {
                double from = s->now, stay = fmax(b->work[t], b->hold[t]);
                s->now += stay;
                s->out->busy_s[b->schedule->task[t].lane] += stay;
                if (record)
                    o->record[t] = (struct ps_task_record){
                        .ready_ns = round_ns(s, from),
                        .start_ns = round_ns(s, from),
                        .end_ns = round_ns(s, s->now),
                        .throttle_ns = round_ns(s, s->now) - round_ns(s, from + b->work[t]),
                        .waited_on = -1};
            }
        }
    }
    s->out->seconds = s->now;
}

int ps_simulate(struct ps_sim_result *out, const struct ps_sim_options *opt, struct ps_error *err)
{
    struct ps_sim_result result = {0};
    struct sim s = {.opt = opt,
                    .out = &result,
                    .run_recorded = UINT64_MAX,
                    .begin = opt->serial ? 0 : INFINITY,
                    .finish = INFINITY};
    assert(opt->rounds >= 1);
    assert(opt->segment_count >= 0);
    int ret = sim_open(&s, err);
    if (ret < 0)
        goto done;
    uint64_t run = s.run_round * (opt->rounds - 1);
    for (int i = 0; i < opt->segment_count; i++) {
        const struct ps_schedule *p = opt->segment[i].schedule;
        run += opt->segment[i].repeat;
        if (opt->record && i == opt->record_segment && opt->segment[i].repeat)
            s.run_recorded = run - 1;
        for (uint32_t t = 0; t < p->task_count; t++)
            result.bytes[p->task[t].lane] += p->task[t].bytes * opt->segment[i].repeat;
    }
    if (s.run_round && opt->serial)
        walk_serial(&s);
    else if (s.run_round)
        walk(&s);
    *out = result;
done:
    sim_fini(&s);
    return ret;
}
