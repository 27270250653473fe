/* A serial run in a random order that the schedule allows: see ps_executor_run_random.
 *
 * Each lane is a list of tasks, unrolled over the periods; only the head of each can be next.
 * Whether it may start is decided by its dependencies alone. Opening the next period is one more
 * thing that can be next once the tasks that do not trail are done, so that what trails runs before
 * it or after it. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "runtime/train/executor_internal.h"

struct random_run {
    struct ps_executor *ex;
    const struct ps__bound *b;
    const struct ps_random_run *r;
    uint64_t *done; /* (task_count) periods completed */
    uint32_t at[PS_LANE_COUNT];
    uint64_t period[PS_LANE_COUNT]; /* of the head of each lane */
    uint64_t open;                  /* periods whose tasks may start */
    uint64_t must_left;             /* of the newest open period */
    uint64_t left;                  /* of all periods */
    uint64_t picks;
};

/* The task at the head of a lane if it may start now, else NULL. */
static const struct ps_task *candidate(const struct random_run *q, int lane)
{
    const struct ps__bound *b = q->b;
    if (b->lane_begin[lane] == b->lane_begin[lane + 1] || q->period[lane] >= q->open)
        return NULL;
    const struct ps_task *t = &b->s->task[b->lane_task[q->at[lane]]];
    const struct ps_dep *d = b->s->dep + t->dep_begin;
    for (uint32_t i = 0; i < t->dep_count; i++)
        if (q->done[d[i].task] + d[i].distance < q->period[lane] + 1)
            return NULL;
    return t;
}

static int open_period(struct random_run *q, struct ps_error *err)
{
    assert(q->must_left == 0);
    if (q->r->between) {
        int ret = q->r->between(q->r->arg, (uint32_t)q->open, err);
        if (ret < 0)
            return ret;
    }
    q->open++;
    q->must_left = q->b->must_count;
    return 0;
}

static int do_task(struct random_run *q, const struct ps_task *t, struct ps_error *err)
{
    int ret = q->r->before ? q->r->before(q->r->arg, t, err) : 0;
    if (ret >= 0)
        ret = ps__task_work(q->ex, t, err);
    if (ret >= 0 && q->r->after)
        ret = q->r->after(q->r->arg, t, err);
    if (ret < 0)
        return ret;
    if (!(t->flags & PS_TASK_TRAILS) && q->period[t->lane] + 1 == q->open)
        q->must_left--;
    q->left--;
    q->done[t->id]++;
    if (++q->at[t->lane] == q->b->lane_begin[t->lane + 1]) {
        q->at[t->lane] = q->b->lane_begin[t->lane];
        q->period[t->lane]++;
    }
    return 0;
}

/* Pick one of the things that can be next and do it. */
static int step(struct random_run *q, struct ps_error *err)
{
    const struct ps_task *choice[PS_LANE_COUNT + 1];
    uint32_t count = 0;
    for (int i = 0; i < PS_LANE_COUNT; i++) {
        choice[count] = candidate(q, i);
        count += choice[count] != NULL;
    }
    if (q->must_left == 0 && q->open < q->r->periods)
        choice[count++] = NULL;
    if (count == 0)
        return ps_error_set(err, PS_EUSAGE, "the schedule \"%s\" cannot go on", q->b->s->name);
    const struct ps_task *t = choice[ps__hash(q->r->seed, q->picks++, 0) % count];
    return t ? do_task(q, t, err) : open_period(q, err);
}

int ps_executor_run_random(struct ps_executor *ex, int handle, const struct ps_random_run *r,
                           struct ps_error *err)
{
    assert(handle >= 0);
    assert(handle < ex->bound_count);
    const struct ps__bound *b = &ex->bound[handle];
    size_t n = b->s->task_count;
    if (r->periods == 0)
        return 0;
    pthread_mutex_lock(&ex->m);
    assert(ex->left == 0);
    assert(!ex->failed);
    pthread_mutex_unlock(&ex->m);
    struct random_run q = {.ex = ex, .b = b, .r = r, .open = 1, .must_left = b->must_count};
    q.left = (uint64_t)n * r->periods;
    for (int i = 0; i < PS_LANE_COUNT; i++)
        q.at[i] = b->lane_begin[i];
    q.done = calloc(n ? n : 1, sizeof *q.done);
    if (!q.done)
        return ps_error_set(err, -ENOMEM, "no memory to run in random order");
    int ret = 0;
    while (ret >= 0 && (q.left > 0 || q.open < r->periods))
        ret = step(&q, err);
    free(q.done);
    return ret < 0 ? ret : 0;
}
