/* The planner: see planner.h.
 *
 * Design. The strategies propose layouts that fill the budgets. A bound from the layout alone (how
 * much each lane and resource must do) orders them; from the best on they are built and simulated
 * until no bound is left below the best time. The choice is a function of the request alone: it
 * never looks at a clock.
 *
 * Of plans that are equally fast (TIE) the one that writes less to the disk wins, then the strategy
 * that comes first in the registry (what streams needlessly has more to lose when the disk is
 * slower than its profile), then the one with less memory. */
#include "offload/planner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "offload/planner_internal.h"

#define TIE 0.005
/* A plan that writes to the disk in every step must be so much faster than one that does not:
 * writes wear a drive out, and no profile knows how long it keeps its pace. */
#define WRITE_PENALTY 0.05
/* And one that writes optimizer states or kept activations, as many bytes as a drive can take, all
 * day long. */
#define STATE_WRITE_PENALTY 0.25
/* Layouts that can at best tie with what was found are simulated only where they take less memory,
 * and not too many of them. */
#define TIES_MAX 8
#define PROPOSALS_MAX 640
/* Tasks to simulate, all candidates together: building them takes longest, about a second. */
#define TASKS_MAX 1000000

static void trial_fini(struct ps__trial *t)
{
    ps_step_layout_fini(&t->layout);
}

static void trials_fini(struct ps__trials *t)
{
    for (int i = 0; i < t->count; i++)
        trial_fini(&t->trial[i]);
    free(t->trial);
}

static bool same_layout(const struct ps_step_shape *p, const struct ps_step_layout *a,
                        const struct ps_step_layout *b)
{
    size_t n = (size_t)p->n_layer;
    return a->group == b->group && a->eval_group == b->eval_group &&
           a->near_slots == b->near_slots && a->raw_slots == b->raw_slots &&
           a->x_ring == b->x_ring && a->host_ring == b->host_ring &&
           a->interleave == b->interleave && a->update == b->update &&
           a->deferred == b->deferred && a->ends_own == b->ends_own &&
           a->grad_slots == b->grad_slots && a->grad_ring == b->grad_ring &&
           a->state_slots == b->state_slots && a->image_pairs == b->image_pairs &&
           memcmp(a->state, b->state, (n + 2) * sizeof *a->state) == 0 &&
           memcmp(a->grad, b->grad, (n + 2) * sizeof *a->grad) == 0 &&
           memcmp(a->weight, b->weight, (n + 2) * sizeof *a->weight) == 0 &&
           memcmp(a->recompute, b->recompute, n * sizeof *a->recompute) == 0 &&
           a->saved_ring == b->saved_ring &&
           memcmp(a->saved, b->saved, n * sizeof *a->saved) == 0 &&
           memcmp(a->boundary, b->boundary, n * sizeof *a->boundary) == 0;
}

/* Takes over *l. One that is there already is dropped. */
static int add_trial(struct ps__trials *t, const struct ps_planner_request *req,
                     const struct ps_cost_model *cost, struct ps_step_layout *l, int strategy,
                     struct ps_error *err)
{
    for (int i = 0; i < t->count; i++) {
        if (same_layout(req->shape, &t->trial[i].layout, l)) {
            ps_step_layout_fini(l);
            return 0;
        }
    }
    if (t->count == t->capacity) {
        int capacity = t->capacity ? 2 * t->capacity : 64;
        struct ps__trial *grown = realloc(t->trial, (size_t)capacity * sizeof *grown);
        if (!grown) {
            ps_step_layout_fini(l);
            return ps_error_set(err, -ENOMEM, "out of memory");
        }
        t->trial = grown;
        t->capacity = capacity;
    }
    struct ps__trial *n = &t->trial[t->count++];
    memset(n, 0, sizeof *n);
    n->layout = *l;
    n->strategy = strategy;
    int ret = ps__layout_bytes(req, &n->layout, n->bytes, err);
    if (ret < 0)
        return ret;
    n->fits = ps__bytes_fit(req, n->bytes);
    ret = ps__estimate_layout(&n->estimate, req, cost, &n->layout);
    n->writes = n->estimate.write_bytes > 0;
    for (int32_t i = 0; n->writes && i < req->shape->n_layer + 2; i++)
        n->writes_states |= l->update != PS_UPDATE_RESIDENT && l->state[i] == PS_TIER_DISK;
    for (int32_t i = 0; n->writes && i < req->shape->n_layer; i++)
        n->writes_states |= l->saved[i] == PS_TIER_DISK; /* as many bytes as those */
    /* too much even if it were as slow as can be */
    n->wears = req->write_limit > 0 && ps__per_day(n->estimate.write_bytes, n->estimate.serial_s) >
                                           (double)req->write_limit;
    return ret < 0 ? ps_error_set(err, ret, "out of memory") : 0;
}

/* What a strategy cannot have with this request; NULL: it can. */
static const char *refusal(const struct ps_planner_request *req, const struct ps_strategy *s)
{
    bool resident = s == &ps_strategy_resident;
    bool near = req->offload_weights == PS_TIER_DEVICE ||
                (req->offload_weights == PS_TIER_HOST && !req->discrete);
    bool full = !req->shape->frozen;
    int state = req->offload_optimizer;
    if (!full && state == PS_TIER_DISK)
        return "keeps the optimizer states of adapters in memory, which --offload-optimizer "
               "forbids";
    if (full && !s->full)
        return "streams a frozen base, and here base weights are trained";
    if (!full && !s->frozen)
        return "is for full fine-tuning, and here the base is frozen";
    if (full && req->shape->zeroth && !resident && s != &ps_strategy_update_next_forward)
        return "updates in or after a backward pass, which this method does not have (use "
               "resident or update-next-forward)";
    if (full && resident && req->discrete && state > PS_TIER_DEVICE)
        return "keeps optimizer states on the device, which --offload-optimizer forbids";
    if (full && state == PS_TIER_DISK && !s->disk_states)
        return "keeps optimizer states in memory, which --offload-optimizer forbids";
    if (full && state >= 0 && state != PS_TIER_DISK && !s->memory_states)
        return "keeps optimizer states on disk, which --offload-optimizer forbids";
    if (full && !resident && !s->disk_states && req->offload_weights == PS_TIER_DISK)
        return "keeps weights in memory, which --offload-weights forbids";
    if (full && req->discrete && state == PS_TIER_DEVICE && !resident)
        return "updates on the host, but --offload-optimizer keeps the states on the device";
    if (!full && !resident && near)
        return "streams weights, which --offload-weights keeps in memory";
    if (resident && req->offload_weights >= 0 && !near)
        return "keeps all weights in memory, which --offload-weights forbids";
    return NULL;
}

static int propose(struct ps__trials *t, const struct ps_planner_request *req,
                   const struct ps_cost_model *cost, int strategy, struct ps_error *err)
{
    const struct ps_strategy *s = ps_strategy_at(strategy);
    for (int i = 0; i <= PROPOSALS_MAX; i++) {
        struct ps_step_layout l;
        int ret = i < PROPOSALS_MAX ? s->candidate(req, i, &l, err) : 1;
        if (ret == 1) {
            ret = s->smallest(req, &l, err);
            i = PROPOSALS_MAX;
        }
        if (ret == 0)
            ret = add_trial(t, req, cost, &l, strategy, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int collect(struct ps__trials *t, const struct ps_planner_request *req,
                   const struct ps_cost_model *cost, struct ps_error *err)
{
    bool automatic = strcmp(req->strategy, "auto") == 0;
    const char *why = NULL;
    int tried = 0;
    for (int i = 0; ps_strategy_at(i); i++) {
        const struct ps_strategy *s = ps_strategy_at(i);
        if (!automatic && strcmp(req->strategy, s->name) != 0)
            continue;
        const char *no = refusal(req, s);
        why = no ? no : why;
        if (no)
            continue;
        tried++;
        int ret = propose(t, req, cost, i, err);
        if (ret < 0)
            return ret;
    }
    if (tried == 0 && !why)
        return ps_error_full(err, PS_EUSAGE, NULL, "strategy",
                             "`penstock list strategies` lists them",
                             "there is no strategy '%.64s'", req->strategy);
    if (tried == 0)
        return ps_error_full(err, PS_EUSAGE, NULL, "strategy", "use --strategy auto",
                             "strategy %.64s %s", req->strategy, why);
    return 0;
}

static double weight(const struct ps__trial *t)
{
    return 1 + (t->writes_states ? STATE_WRITE_PENALTY : t->writes ? WRITE_PENALTY : 0);
}

static int by_guess(const void *a, const void *b)
{
    const struct ps__trial *x = a;
    const struct ps__trial *y = b;
    if (x->fits != y->fits)
        return x->fits ? -1 : 1;
    double a_guess = x->estimate.guess_s * weight(x);
    double b_guess = y->estimate.guess_s * weight(y);
    if (a_guess != b_guess)
        return a_guess < b_guess ? -1 : 1;
    for (int t = 0; t < PS_TIER_COUNT; t++)
        if (x->bytes[t] != y->bytes[t])
            return x->bytes[t] < y->bytes[t] ? -1 : 1;
    return x->strategy - y->strategy;
}

/* A plan that would do its updates again in a step that is clipped is judged by how often that is
 * expected to be. */
static double score(const struct ps__trial *t)
{
    return (t->step_s + t->redo_share_s) * weight(t);
}

/* Is a the better plan? Both are simulated. */
static bool better(const struct ps__trial *a, const struct ps__trial *b)
{
    if (score(a) < score(b) * (1 - TIE))
        return true;
    if (score(b) < score(a) * (1 - TIE))
        return false;
    uint64_t a_write = a->sim.bytes[PS_LANE_DISK_WRITE];
    uint64_t b_write = b->sim.bytes[PS_LANE_DISK_WRITE];
    if (a_write != b_write)
        return a_write < b_write;
    if (a->strategy != b->strategy)
        return a->strategy < b->strategy;
    return ps__trial_memory(a) < ps__trial_memory(b);
}

/* Even where nothing has been found that may be written. */
#define TASKS_AT_ALL_MAX (4 * (uint64_t)TASKS_MAX)

/* What the search knows so far. */
struct search {
    double lowest; /* score */
    int best;      /* -1: none */
    int ties;
    uint64_t tasks;
    bool seen[PS__STRATEGY_MAX];
};

/* Is it worth building and simulating? */
static bool worth(struct search *s, const struct ps__trials *t, const struct ps__trial *c)
{
    if (c->wears)
        return false;
    if (!s->seen[c->strategy] || s->best < 0)
        return s->tasks <= TASKS_AT_ALL_MAX;
    double bound = c->estimate.bound_s * weight(c);
    if (s->tasks > TASKS_MAX || bound > s->lowest * (1 + TIE))
        return false;
    if (bound < s->lowest * (1 - TIE))
        return true;
    return ps__trial_memory(c) < ps__trial_memory(&t->trial[s->best]) && s->ties++ < TIES_MAX;
}

/* Simulate in the order of the guesses. The index of the best, -1: nothing fits. */
static int search(struct ps__trials *t, const struct ps_planner_request *req,
                  const struct ps_cost_model *cost, int *best, struct ps_error *err)
{
    struct search s = {.best = -1};
    qsort(t->trial, (size_t)t->count, sizeof *t->trial, by_guess);
    for (int i = 0; i < t->count && t->trial[i].fits; i++) {
        struct ps__trial *c = &t->trial[i];
        if (!worth(&s, t, c))
            continue;
        s.seen[c->strategy] = true;
        int ret = ps__trial_simulate(c, req, cost, false, &s.tasks, err);
        if (ret < 0)
            return ret;
        c->wears = req->write_limit > 0 && ps__trial_day(c) > (double)req->write_limit;
        if (c->wears)
            continue;
        if (s.best < 0 || score(c) < s.lowest)
            s.lowest = score(c);
        if (s.best < 0 || better(c, &t->trial[s.best]))
            s.best = i;
    }
    *best = s.best;
    return 0;
}

/* The layout that is taken as it is. */
static int take_placement(struct ps__trials *t, const struct ps_planner_request *req,
                          const struct ps_cost_model *cost, struct ps_error *err)
{
    struct ps_step_layout l;
    int ret = ps_step_layout_copy(&l, req->placement, req->shape);
    if (ret < 0)
        return ps_error_set(err, ret, "out of memory");
    l.discrete = req->discrete;
    l.ablate |= req->ablate;
    l.clip = req->clip;
    if (req->shape->trains && (req->ablate & PS_ABLATE_LAYER_MAJOR)) {
        l.group = 1;
        l.interleave = 0;
    }
    const struct ps_strategy *s = ps_strategy_find(l.strategy);
    int strategy = 0;
    for (int i = 0; ps_strategy_at(i); i++)
        strategy = ps_strategy_at(i) == s ? i : strategy;
    return add_trial(t, req, cost, &l, strategy, err);
}

/* Generation takes one token of each sequence a pass but for the first: planned as that. */
static void one_token(struct ps_planner_request *req, struct ps_step_shape *shape)
{
    double share = req->tokens > 0 ? 1 / (double)req->tokens : 1;
    shape->layer_flops *= share;
    shape->head_flops *= share;
    req->shape = shape;
    req->tokens = 1;
    req->cost.tokens = 1;
    req->cost.linear_flops *= share;
    req->cost.attention_flops *= share;
    req->cost.down_flops *= share;
    req->cost.adapter_flops *= share;
}

static int choose(struct ps_plan *out, const struct ps_planner_request *req, struct ps_error *err)
{
    struct ps__trials t = {0};
    struct ps_cost_model cost;
    int best = -1;
    memset(out, 0, sizeof *out);
    ps_profile_cost(req->profile, &req->cost, &cost);
    int ret = req->placement ? take_placement(&t, req, &cost, err) : collect(&t, req, &cost, err);
    if (ret == 0)
        ret = search(&t, req, &cost, &best, err);
    if (ret == 0 && best < 0)
        ret = ps__plan_no_fit(out, &t, req, &cost, err);
    if (ret == 0 && !req->placement)
        ret = ps__grow_eval_group(&t.trial[best], req, &cost, err);
    if (ret == 0 && ps__coarse_differs(req->shape)) { /* chosen from afar: look closely */
        uint64_t tasks = 0;
        ret = ps__trial_simulate(&t.trial[best], req, &cost, true, &tasks, err);
    }
    if (ret == 0)
        ret = ps__plan_describe(out, &t, best, req, &cost, err);
    trials_fini(&t);
    return ret;
}

int ps_planner_choose(struct ps_plan *out, const struct ps_planner_request *req,
                      struct ps_error *err)
{
    struct ps_planner_request of = *req;
    struct ps_step_shape shape = *req->shape;
    of.shape = &shape;
    shape.micro_max = ps__choice_whole_step(req); /* the steps that are planned are among those */
    if (!shape.trains && shape.cache_bytes > 0)
        one_token(&of, &shape);
    return choose(out, &of, err);
}

void ps_plan_fini(struct ps_plan *p)
{
    ps_step_layout_fini(&p->layout);
}
