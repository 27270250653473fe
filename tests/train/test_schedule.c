/* Schedules: building, deriving dependencies, and the checker, which is held against a plain search
 * for paths in the graph of starts and ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/train/schedule.h"
#include "tests/helpers/random_schedule.h"

/* Memory that runs out at the n-th call. The sanitizers bring allocators of their own. */
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CAN_FAIL 1
void *__libc_malloc(size_t n);
void *__libc_realloc(void *p, size_t n);
void *__libc_calloc(size_t a, size_t b);
static int calls_left = -1;

static int out_of_memory(void)
{
    return calls_left >= 0 && calls_left-- == 0;
}

void *malloc(size_t n)
{
    return out_of_memory() ? NULL : __libc_malloc(n);
}

void *realloc(void *p, size_t n)
{
    return out_of_memory() ? NULL : __libc_realloc(p, n);
}

void *calloc(size_t a, size_t b)
{
    return out_of_memory() ? NULL : __libc_calloc(a, b);
}
#else
#define CAN_FAIL 0
static int calls_left = -1;
#endif

static int validate(const struct ps_schedule *s, struct ps_error *err)
{
    memset(err, 0, sizeof *err);
    int ret = ps_schedule_validate(s, err);
    assert_int_equal(err->code, ret);
    return ret;
}

static void derive(struct ps_schedule *s)
{
    struct ps_error err = {0};
    assert_int_equal(ps_schedule_derive(s, &err), 0);
}

/* ---- what is refused, by hand ---- */

/* Two tasks on two lanes; the second reads what the first writes, `shift` bytes on. */
static void two_tasks(struct ps_schedule *s, enum ps_lane lane, uint64_t shift, bool write)
{
    ps_schedule_init(s, "pair");
    uint32_t b = ps_schedule_buffer(s, PS_TIER_HOST, 100, "bytes of %s", "two");
    ps_schedule_task(s, PS_TASK_EMBED, PS_LANE_COMPUTE, 3);
    s->task[0].micro = 1;
    ps_schedule_access(s, b, write, 10, 20);
    ps_schedule_task(s, PS_TASK_HEAD, lane, PS_UNIT_HEAD);
    ps_schedule_access(s, b, false, 10 + shift, 20);
}

static void unordered_conflict_is_refused_and_named(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    two_tasks(&s, PS_LANE_H2D, 19, true);
    assert_int_equal(validate(&s, &err), PS_EUSAGE);
    assert_non_null(strstr(err.message, "tasks 0 (embed, unit 3, micro-batch 1, compute) and 1 "
                                        "(head, unit head, h2d) both touch"));
    assert_non_null(strstr(err.message, "bytes [29, 30) of buffer bytes of two"));
    assert_string_equal(err.advice, "task 1 needs a dependency on task 0, distance 0");
    ps_schedule_fini(&s);
}

static void conflict_with_the_next_period_is_refused_and_named(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    two_tasks(&s, PS_LANE_H2D, 0, true);
    ps_schedule_dep(&s, 0, 0);
    assert_int_equal(validate(&s, &err), PS_EUSAGE);
    assert_non_null(strstr(err.message, "tasks 1 (head, unit head, h2d) and 0 (embed, unit 3, "
                                        "micro-batch 1, compute) of the next period"));
    assert_string_equal(err.advice, "task 0 needs a dependency on task 1, distance 1");
    ps_schedule_fini(&s);
}

static void ordered_or_disjoint_or_read_only_tasks_are_accepted(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    ps_schedule_init(&s, "both ways");
    uint32_t b = ps_schedule_buffer(&s, PS_TIER_HOST, 8, "b");
    ps_schedule_task(&s, PS_TASK_EMBED, PS_LANE_COMPUTE, 0);
    ps_schedule_dep(&s, 1, 1);
    ps_schedule_access(&s, b, true, 0, 8);
    ps_schedule_task(&s, PS_TASK_HEAD, PS_LANE_H2D, 0);
    ps_schedule_dep(&s, 0, 0);
    ps_schedule_access(&s, b, false, 0, 8);
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
    two_tasks(&s, PS_LANE_COMPUTE, 0, true); /* the same lane */
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
    two_tasks(&s, PS_LANE_H2D, 20, true); /* the next byte */
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
    two_tasks(&s, PS_LANE_H2D, 0, false); /* two readers */
    assert_int_equal(validate(&s, &err), 0);
    ps_schedule_fini(&s);
}

static void order_is_followed_through_other_tasks_and_lanes(void **state)
{
    (void)state;
    struct ps_error err;
    for (int broken = 0; broken < 2; broken++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "chain");
        uint32_t b = ps_schedule_buffer(&s, PS_TIER_DEVICE, 8, "b");
        ps_schedule_task(&s, PS_TASK_EMBED, PS_LANE_H2D, 0);
        ps_schedule_dep(&s, 150, 1);
        ps_schedule_access(&s, b, true, 0, 8);
        for (uint32_t i = 1; i < 150; i++) {
            ps_schedule_task(&s, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, 0);
            if (i == (broken ? 149 : 3))
                ps_schedule_dep(&s, broken ? 140 : 0, 0);
        }
        uint32_t last = ps_schedule_task(&s, PS_TASK_HEAD, PS_LANE_D2H, 0);
        ps_schedule_dep(&s, last - 1, 0);
        ps_schedule_access(&s, b, true, 0, 8);
        assert_int_equal(validate(&s, &err), broken ? PS_EUSAGE : 0);
        ps_schedule_fini(&s);
    }
}

static void cycles_are_refused(void **state)
{
    (void)state;
    struct ps_error err;
    for (uint32_t on = 1; on < 4; on++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "forward");
        ps_schedule_task(&s, PS_TASK_EMBED, PS_LANE_COMPUTE, 0);
        ps_schedule_task(&s, PS_TASK_HEAD, PS_LANE_H2D, 0);
        ps_schedule_dep(&s, on, 0);
        ps_schedule_task(&s, PS_TASK_CLIP, PS_LANE_COMPUTE, 0);
        assert_int_equal(validate(&s, &err), PS_EUSAGE);
        assert_non_null(strstr(err.message, on == 1   ? "depends on itself"
                                            : on == 2 ? "depends on the later task 2 (clip"
                                                      : "which does not exist"));
        s.dep[0].distance = 1; /* of the period before: no cycle */
        assert_int_equal(validate(&s, &err), on < 3 ? 0 : PS_EUSAGE);
        s.dep[0].distance = 2;
        assert_int_equal(validate(&s, &err), PS_EUSAGE);
        ps_schedule_fini(&s);
    }
}

static void accesses_outside_their_buffer_are_refused(void **state)
{
    (void)state;
    static const struct {
        uint32_t buffer;
        uint64_t offset, bytes;
        int want;
    } c[] = {{0, 0, 100, 0},
             {0, 99, 1, 0},
             {0, 100, 0, 0},
             {0, 0, 101, PS_EUSAGE},
             {0, 100, 1, PS_EUSAGE},
             {0, UINT64_MAX, 2, PS_EUSAGE},
             {0, 1, UINT64_MAX, PS_EUSAGE},
             {1, 0, 1, PS_EUSAGE}};
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct ps_schedule s;
        struct ps_error err;
        ps_schedule_init(&s, "range");
        ps_schedule_buffer(&s, PS_TIER_DISK, 100, "b");
        ps_schedule_task(&s, PS_TASK_EMBED, PS_LANE_COMPUTE, 0);
        ps_schedule_access(&s, c[i].buffer, true, c[i].offset, c[i].bytes);
        assert_int_equal(validate(&s, &err), c[i].want);
        ps_schedule_fini(&s);
    }
}

static void broken_fields_are_refused(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    two_tasks(&s, PS_LANE_COMPUTE, 0, true);
    ps_schedule_dep(&s, 0, 0);
    assert_int_equal(validate(&s, &err), 0);
    const struct ps_task good = s.task[1];
#define REFUSED(field, value)                                                                      \
    do {                                                                                           \
        s.task[1].field = value;                                                                   \
        assert_int_equal(validate(&s, &err), PS_EUSAGE);                                           \
        assert_non_null(strstr(err.message, "schedule pair: task"));                               \
        s.task[1] = good;                                                                          \
    } while (0)
    REFUSED(id, 0);
    REFUSED(kind, PS_TASK_KIND_COUNT);
    REFUSED(kind, (enum ps_task_kind) - 1);
    REFUSED(lane, PS_LANE_COUNT);
    REFUSED(lane, (enum ps_lane) - 1);
    REFUSED(unit, -4);
    REFUSED(micro, -2);
    REFUSED(arg[PS_ARG_COUNT - 1], -2);
    REFUSED(flags, 2);
    REFUSED(flops, -1);
    REFUSED(flops, NAN);
    REFUSED(flops, INFINITY);
    REFUSED(dep_begin, 1);
    REFUSED(dep_count, 2);
    REFUSED(dep_begin, UINT32_MAX);
    REFUSED(access_begin, 2);
    REFUSED(access_count, 2);
    REFUSED(access_count, UINT32_MAX);
#undef REFUSED
    s.task[1].access_begin = 0; /* both ranges, the first for the second time */
    s.task[1].access_count = 2;
    assert_int_equal(validate(&s, &err), PS_EUSAGE);
    assert_non_null(strstr(err.message, "share"));
    s.task[1] = good;
    s.buffer[0].tier = PS_TIER_COUNT;
    assert_int_equal(validate(&s, &err), PS_EUSAGE);
    s.buffer[0].tier = PS_TIER_HOST;
    memset(s.buffer[0].name, 'x', sizeof s.buffer[0].name);
    assert_int_equal(validate(&s, &err), PS_EUSAGE);
    s.buffer[0].name[0] = '\0';
    assert_int_equal(validate(&s, &err), 0);
    s.fault = -ENOMEM;
    assert_int_equal(validate(&s, &err), -ENOMEM);
    ps_schedule_fini(&s);
}

static void an_empty_schedule_is_legal(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    ps_schedule_init(&s, "empty");
    derive(&s);
    assert_int_equal(validate(&s, &err), 0);
    struct ps_edge *edge = NULL;
    size_t count = 1;
    assert_int_equal(ps_schedule_reduction(&s, &edge, &count), 0);
    assert_int_equal(count, 0);
    free(edge);
    ps_schedule_fini(&s);
}

/* ---- disk lanes ---- */

static uint32_t add(struct ps_schedule *s, enum ps_task_kind kind, enum ps_lane lane, bool write,
                    uint64_t offset)
{
    uint32_t t = ps_schedule_task(s, kind, lane, 0);
    ps_schedule_access(s, 0, write, offset, 1);
    return t;
}

static void one_disk_request_does_not_wait_for_the_end_of_the_one_before(void **state)
{
    (void)state;
    struct ps_error err;
    for (int dep = 0; dep < 2; dep++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "two reads into one slot");
        ps_schedule_buffer(&s, PS_TIER_HOST, 8, "slot");
        add(&s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, true, 0);
        ps_schedule_dep(&s, 1, 1);
        add(&s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, true, 0);
        if (dep)
            ps_schedule_dep(&s, 0, 0);
        assert_int_equal(validate(&s, &err), dep ? 0 : PS_EUSAGE);
        ps_schedule_fini(&s);
    }
}

static void a_slot_read_once_a_period_needs_the_read_of_the_period_before(void **state)
{
    (void)state;
    struct ps_error err;
    for (int dep = 0; dep < 2; dep++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "one read");
        ps_schedule_buffer(&s, PS_TIER_HOST, 8, "slot");
        add(&s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, true, 0);
        if (dep)
            ps_schedule_dep(&s, 0, 1);
        assert_int_equal(validate(&s, &err), dep ? 0 : PS_EUSAGE);
        ps_schedule_fini(&s);
    }
}

/* Requests end in order: who waits for the second has the first too. */
static void the_end_of_a_disk_request_implies_that_of_those_before(void **state)
{
    (void)state;
    struct ps_error err;
    for (uint32_t on = 0; on < 2; on++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "two reads, one user");
        ps_schedule_buffer(&s, PS_TIER_HOST, 8, "slots");
        add(&s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, true, 0);
        ps_schedule_dep(&s, 2, 1);
        add(&s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, true, 1);
        uint32_t user = add(&s, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, false, 0);
        ps_schedule_access(&s, 0, false, 1, 1);
        ps_schedule_dep(&s, on, 0);
        assert_int_equal(user, 2);
        assert_int_equal(validate(&s, &err), on == 1 ? 0 : PS_EUSAGE);
        ps_schedule_fini(&s);
    }
}

/* Requests start in order: what the first waited for is behind the second too. */
static void the_start_of_a_disk_request_implies_what_those_before_waited_for(void **state)
{
    (void)state;
    struct ps_error err;
    for (int late = 0; late < 2; late++) {
        struct ps_schedule s;
        ps_schedule_init(&s, "one user, two reads");
        ps_schedule_buffer(&s, PS_TIER_HOST, 8, "slots");
        add(&s, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, false, 1);
        ps_schedule_access(&s, 0, false, 0, 1);
        ps_schedule_dep(&s, 2, 1);
        add(&s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, true, 0);
        if (!late)
            ps_schedule_dep(&s, 0, 0);
        add(&s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, true, 1);
        if (late)
            ps_schedule_dep(&s, 0, 0);
        assert_int_equal(validate(&s, &err), late ? PS_EUSAGE : 0);
        struct ps_edge lane = {.from = 1, .to = 2, .dep_idx = UINT32_MAX};
        assert_int_equal(ps_schedule_validate_without(&s, &lane, &err), PS_EUSAGE);
        assert_non_null(strstr(err.message, "share a lane and are not ordered"));
        ps_schedule_fini(&s);
    }
}

static void only_edges_that_exist_can_be_left_out(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err = {0};
    two_tasks(&s, PS_LANE_COMPUTE, 0, true);
    static const struct {
        struct ps_edge edge;
        int want;
    } c[] = {{{0, 1, 0, UINT32_MAX}, PS_EUSAGE}, {{1, 0, 1, UINT32_MAX}, PS_EUSAGE},
             {{1, 0, 0, UINT32_MAX}, -EINVAL},   {{0, 1, 1, UINT32_MAX}, -EINVAL},
             {{0, 0, 1, UINT32_MAX}, -EINVAL},   {{0, 1, 0, 0}, -EINVAL}};
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++)
        assert_int_equal(ps_schedule_validate_without(&s, &c[i].edge, &err), c[i].want);
    /* a dependency beside the lane's edge orders them as well */
    ps_schedule_dep(&s, 0, 0);
    struct ps_edge lane = {0, 1, 0, UINT32_MAX}, dep = {0, 1, 0, 0};
    assert_int_equal(ps_schedule_validate_without(&s, &lane, &err), 0);
    assert_int_equal(ps_schedule_validate_without(&s, &dep, &err), 0);
    ps_schedule_fini(&s);
}

/* ---- random schedules and the plain oracle ---- */

enum { TASKS_MAX = 14 };

/* Bit 2 i is the start of instance i, bit 2 i + 1 its end. to[e]: events that come after e. */
struct events {
    uint64_t to[4 * TASKS_MAX];
};

static bool same_edge(const struct ps_edge *e, uint32_t from, uint32_t to, uint32_t distance,
                      uint32_t dep_idx)
{
    return e && e->dep_idx == dep_idx &&
           (dep_idx != UINT32_MAX || (e->from == from && e->to == to && e->distance == distance));
}

static uint32_t lane_successor(const struct ps_schedule *s, uint32_t instance)
{
    uint32_t n = s->task_count;
    for (uint32_t j = instance + 1; j < 2 * n; j++)
        if (s->task[j % n].lane == s->task[instance % n].lane)
            return j;
    return UINT32_MAX;
}

static void reach(struct events *g, const struct ps_schedule *s, const struct ps_edge *without)
{
    const uint32_t n = s->task_count;
    memset(g, 0, sizeof *g);
    for (uint32_t i = 0; i < 2 * n; i++) {
        const struct ps_task *t = &s->task[i % n];
        g->to[2 * i] |= (uint64_t)1 << (2 * i + 1);
        for (uint32_t k = 0; k < t->dep_count; k++) {
            const struct ps_dep *d = &s->dep[t->dep_begin + k];
            if ((d->distance && i < n) ||
                same_edge(without, d->task, t->id, d->distance, t->dep_begin + k))
                continue;
            uint32_t from = d->distance == 0 && i >= n ? n + d->task : d->task;
            g->to[2 * from + 1] |= (uint64_t)1 << (2 * i);
        }
        uint32_t next = lane_successor(s, i);
        if (next == UINT32_MAX || same_edge(without, t->id, next % n, next / n - i / n, UINT32_MAX))
            continue;
        if (ps_lane_is_async(t->lane)) {
            g->to[2 * i] |= (uint64_t)1 << (2 * next);
            g->to[2 * i + 1] |= (uint64_t)1 << (2 * next + 1);
        } else {
            g->to[2 * i + 1] |= (uint64_t)1 << (2 * next);
        }
    }
    for (uint32_t k = 0; k < 4 * n; k++)
        for (uint32_t e = 0; e < 4 * n; e++)
            if (g->to[e] >> k & 1)
                g->to[e] |= g->to[k];
}

static bool conflict(const struct ps_schedule *s, uint32_t a, uint32_t b)
{
    const struct ps_task *ta = &s->task[a % s->task_count], *tb = &s->task[b % s->task_count];
    for (uint32_t i = 0; i < ta->access_count; i++)
        for (uint32_t k = 0; k < tb->access_count; k++) {
            const struct ps_access *x = &s->access[ta->access_begin + i];
            const struct ps_access *y = &s->access[tb->access_begin + k];
            if (x->buffer == y->buffer && (x->write || y->write) &&
                x->offset < y->offset + y->bytes && y->offset < x->offset + x->bytes)
                return true;
        }
    return false;
}

static bool follows(const struct events *g, uint32_t a, uint32_t b)
{
    return g->to[2 * a + 1] >> (2 * b) & 1;
}

static bool oracle(const struct ps_schedule *s, const struct ps_edge *without)
{
    struct events g;
    const uint32_t n = s->task_count;
    reach(&g, s, without);
    for (uint32_t a = 0; a < 2 * n; a++) {
        for (uint32_t b = 0; b < 2 * n; b++)
            if (a != b && conflict(s, a, b) && !follows(&g, a, b) && !follows(&g, b, a))
                return false;
        uint32_t next = lane_successor(s, a);
        if (next == UINT32_MAX)
            continue;
        bool starts = g.to[2 * a] >> (2 * next) & 1, ends = g.to[2 * a + 1] >> (2 * next + 1) & 1;
        if (ps_lane_is_async(s->task[a % n].lane) ? !starts || !ends : !follows(&g, a, next))
            return false;
    }
    return true;
}

/* Derived with nothing beside: every edge of the reduction is needed, no dependency lies outside
 * it. */
static void deleting_each_edge_of_the_reduction_is_noticed(void **state)
{
    (void)state;
    size_t deleted = 0, spare = 0, next_period = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        uint64_t at = seed;
        struct ps_schedule s;
        struct ps_error err;
        random_schedule(&s, "random", &at, TASKS_MAX);
        derive(&s);
        if (validate(&s, &err) != 0)
            fail_msg("seed %d: %s", (int)seed, err.message);
        assert_true(oracle(&s, NULL));
        struct ps_edge *edge;
        size_t count;
        assert_int_equal(ps_schedule_reduction(&s, &edge, &count), 0);
        bool *needed = calloc(s.dep_count + 1, sizeof *needed);
        assert_non_null(needed);
        size_t lane_edges = 0;
        for (size_t i = 0; i < count; i++) {
            if (ps_schedule_validate_without(&s, &edge[i], &err) != PS_EUSAGE ||
                oracle(&s, &edge[i]))
                fail_msg("seed %d: edge %u -> %u (%u) may go unnoticed", (int)seed, edge[i].from,
                         edge[i].to, edge[i].distance);
            if (edge[i].dep_idx < s.dep_count)
                needed[edge[i].dep_idx] = true;
            else
                lane_edges++;
            next_period += edge[i].distance;
        }
        for (uint32_t d = 0; d < s.dep_count; d++)
            if (!needed[d])
                fail_msg("seed %d: dependency %u is implied by others", (int)seed, d);
        deleted += count;
        spare += s.task_count - lane_edges;
        free(needed);
        free(edge);
        ps_schedule_fini(&s);
    }
    assert_true(deleted > 2000);
    assert_true(next_period > 200);
    assert_true(spare > 50); /* disk lanes whose neighbours a dependency orders */
}

/* Leave out, add, move and widen at random: the checker and the oracle see the same. */
static void the_checker_agrees_with_a_search_for_paths(void **state)
{
    (void)state;
    size_t good = 0, bad = 0;
    for (uint64_t seed = 1; seed <= 3000; seed++) {
        uint64_t at = seed * 1000003;
        struct ps_schedule s;
        struct ps_error err;
        random_schedule(&s, "random", &at, TASKS_MAX);
        derive(&s);
        for (uint32_t k = random_below(&at, 3); k > 0; k--) {
            struct ps_task *t = &s.task[random_below(&at, s.task_count)];
            uint32_t what = random_below(&at, 4);
            if (what == 0 && t->dep_count) {
                t->dep_count--;
            } else if (what == 1 && t->dep_count) {
                struct ps_dep *d = &s.dep[t->dep_begin];
                d->distance = t->id == 0 || random_below(&at, 2);
                d->task = random_below(&at, d->distance ? s.task_count : t->id);
            } else if (what == 2) {
                t->lane = (enum ps_lane)random_below(&at, PS_LANE_COUNT);
            } else if (t->access_count) {
                struct ps_access *a = &s.access[t->access_begin];
                a->bytes = s.buffer[a->buffer].bytes - a->offset;
                a->write = true;
            }
        }
        bool want = oracle(&s, NULL);
        if (validate(&s, &err) != (want ? 0 : PS_EUSAGE))
            fail_msg("seed %d: expected %d: %s", (int)seed, want, err.message);
        good += want;
        bad += !want;
        /* and without any one edge, needed or not */
        for (uint32_t d = 0; d < s.dep_count && want; d++) {
            struct ps_edge e = {.dep_idx = d};
            bool used = false;
            for (uint32_t t = 0; t < s.task_count; t++)
                used |= d - s.task[t].dep_begin < s.task[t].dep_count;
            if (used)
                assert_int_equal(ps_schedule_validate_without(&s, &e, &err),
                                 oracle(&s, &e) ? 0 : PS_EUSAGE);
        }
        for (uint32_t a = 0; a < s.task_count && want; a++) {
            uint32_t b = lane_successor(&s, a);
            struct ps_edge e = {a, b % s.task_count, b / s.task_count, UINT32_MAX};
            assert_int_equal(ps_schedule_validate_without(&s, &e, &err),
                             oracle(&s, &e) ? 0 : PS_EUSAGE);
        }
        ps_schedule_fini(&s);
    }
    assert_true(good > 500);
    assert_true(bad > 500);
}

static void the_reduction_holds_the_edges_that_nothing_replaces(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 500; seed++) {
        uint64_t at = seed * 7919;
        struct ps_schedule s;
        ps_schedule_init(&s, "edges");
        uint32_t n = 1 + random_below(&at, TASKS_MAX);
        for (uint32_t i = 0; i < n; i++) {
            ps_schedule_task(&s, PS_TASK_HEAD, (enum ps_lane)random_below(&at, 5), 0);
            for (uint32_t k = random_below(&at, 3); k > 0; k--) {
                uint32_t distance = i == 0 || random_below(&at, 4) == 0;
                ps_schedule_dep(&s, random_below(&at, distance ? n : i), distance);
            }
        }
        struct ps_edge *edge;
        size_t count, found = 0;
        assert_int_equal(ps_schedule_reduction(&s, &edge, &count), 0);
        for (uint32_t i = n; i < 2 * n; i++)
            for (uint32_t k = 0; k <= s.task[i - n].dep_count; k++) {
                struct ps_edge e = {.to = i - n, .dep_idx = UINT32_MAX};
                uint32_t from = 0;
                if (k > 0) {
                    e.dep_idx = s.task[i - n].dep_begin + k - 1;
                    e.from = s.dep[e.dep_idx].task;
                    e.distance = s.dep[e.dep_idx].distance;
                    from = e.distance ? e.from : n + e.from;
                } else {
                    while (lane_successor(&s, from) != i)
                        from++;
                    e.from = from % n;
                    e.distance = from < n;
                }
                struct events g;
                reach(&g, &s, &e);
                bool needed = !follows(&g, from, i), reported = false;
                for (size_t r = 0; r < count; r++)
                    reported |= same_edge(&edge[r], e.from, e.to, e.distance, e.dep_idx);
                assert_int_equal(needed, reported);
                found += needed;
            }
        assert_int_equal(found, count);
        free(edge);
        ps_schedule_fini(&s);
    }
}

/* ---- derive ---- */

static void given_dependencies_stay_and_others_are_not_doubled(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    ps_schedule_init(&s, "given");
    ps_schedule_buffer(&s, PS_TIER_DEVICE, 8, "b");
    add(&s, PS_TASK_EMBED, PS_LANE_COMPUTE, true, 0);
    add(&s, PS_TASK_HEAD, PS_LANE_H2D, false, 0);
    ps_schedule_dep(&s, 0, 0);
    ps_schedule_task(&s, PS_TASK_CLIP, PS_LANE_D2H, 0);
    ps_schedule_dep(&s, 1, 0); /* no range asks for it */
    derive(&s);
    assert_int_equal(validate(&s, &err), 0);
    assert_int_equal(s.dep_count, 3);
    assert_int_equal(s.task[0].dep_count, 1);
    assert_int_equal(s.dep[s.task[0].dep_begin].task, 1);
    assert_int_equal(s.dep[s.task[0].dep_begin].distance, 1);
    assert_int_equal(s.task[1].dep_count, 1);
    assert_int_equal(s.dep[s.task[1].dep_begin].task, 0);
    assert_int_equal(s.task[2].dep_count, 1);
    assert_int_equal(s.dep[s.task[2].dep_begin].task, 1);
    ps_schedule_fini(&s);
}

/* A second derive finds nothing to add. */
static void deriving_twice_changes_nothing(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        uint64_t at = seed * 31;
        struct ps_schedule s;
        struct ps_error err;
        random_schedule(&s, "random", &at, 40);
        derive(&s);
        uint32_t count = s.dep_count;
        derive(&s);
        assert_int_equal(s.dep_count, count);
        assert_int_equal(validate(&s, &err), 0);
        ps_schedule_fini(&s);
    }
}

/* ---- size ---- */

/* Layers streamed through slots, boundaries spilled and read back, every task with several ranges;
 * one buffer is cut finely and read as a whole again and again. */
static void large_schedule(struct ps_schedule *s, uint32_t layers, uint32_t micros)
{
    ps_schedule_init(s, "large");
    uint32_t slots = ps_schedule_buffer(s, PS_TIER_DEVICE, 4 * 1000, "slots");
    uint32_t x = ps_schedule_buffer(s, PS_TIER_DEVICE, 8 * micros, "x");
    uint32_t spill = ps_schedule_buffer(s, PS_TIER_DISK, (uint64_t)layers * micros, "spill");
    uint32_t grad = ps_schedule_buffer(s, PS_TIER_DEVICE, (uint64_t)layers * 3, "gradients");
    for (uint32_t l = 0; l < layers; l++) {
        ps_schedule_task(s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, (int32_t)l);
        ps_schedule_access(s, slots, true, l % 4 * 1000, 1000);
        for (uint32_t m = 0; m < micros; m++) {
            ps_schedule_task(s, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, (int32_t)l);
            ps_schedule_access(s, slots, false, l % 4 * 1000, 1000);
            ps_schedule_access(s, x, true, 8 * m, 8);
            ps_schedule_access(s, grad, true, l * 3 + m % 3, 1);
            ps_schedule_task(s, PS_TASK_SPILL_WRITE, PS_LANE_DISK_WRITE, (int32_t)l);
            ps_schedule_access(s, x, false, 8 * m, 8);
            ps_schedule_access(s, spill, true, (uint64_t)l * micros + m, 1);
            ps_schedule_task(s, PS_TASK_SPILL_READ, PS_LANE_DISK_STATE, (int32_t)l);
            ps_schedule_access(s, spill, false, (uint64_t)l * micros + m, 1);
        }
        if (l % 4 == 0) {
            ps_schedule_task(s, PS_TASK_CLIP, PS_LANE_CPU_OPTIM, PS_UNIT_ALL);
            ps_schedule_access(s, grad, false, 0, (uint64_t)layers * 3);
        }
    }
}

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fifty_thousand_tasks_are_checked_within_a_second(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_error err;
    large_schedule(&s, 1040, 16);
    assert_true(s.task_count > 50000);
    double begin = cpu_s();
    derive(&s);
    double derived = cpu_s();
    assert_int_equal(validate(&s, &err), 0);
    double done = cpu_s();
    print_message("%u tasks, %u ranges, %u dependencies: derived in %.3f s, checked in %.3f s\n",
                  s.task_count, s.access_count, s.dep_count, derived - begin, done - derived);
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(done - derived < 1);
#endif
    /* and one missing dependency in all that is found */
    struct ps_edge e = {.dep_idx = s.dep_count / 2};
    assert_int_equal(ps_schedule_validate_without(&s, &e, &err), PS_EUSAGE);
    ps_schedule_fini(&s);
}

/* ---- memory, names, sums ---- */

static int everything(struct ps_schedule *s, struct ps_error *err)
{
    uint64_t seed = 12;
    random_schedule(s, "random", &seed, 100);
    int ret = ps_schedule_derive(s, err);
    if (!ret)
        ret = ps_schedule_validate(s, err);
    struct ps_edge *edge = NULL;
    size_t count;
    if (!ret)
        ret = ps_schedule_reduction(s, &edge, &count);
    free(edge);
    return ret;
}

static void the_nth_failed_allocation_is_reported(void **state)
{
    (void)state;
    if (!CAN_FAIL) {
        print_message("skip: the sanitizer's allocator cannot be made to fail here\n");
        skip();
    }
    int failures = 0;
    bool spent = true; /* the n-th call was reached; qsort does without its one */
    for (int n = 0; spent; n++) {
        assert_true(n < 100);
        struct ps_schedule s;
        struct ps_error err = {0};
        calls_left = n;
        int ret = everything(&s, &err);
        spent = calls_left < 0;
        calls_left = -1;
        if (ret != 0) {
            assert_int_equal(ret, -ENOMEM);
            failures++;
        }
        ps_schedule_fini(&s);
    }
    assert_true(failures >= 20);
}

static void names_are_distinct_and_found_again(void **state)
{
    (void)state;
    for (int i = 0; i < PS_TASK_KIND_COUNT; i++)
        assert_int_equal(ps_task_kind_find(ps_task_kind_name((enum ps_task_kind)i)), i);
    for (int i = 0; i < PS_LANE_COUNT; i++)
        assert_int_equal(ps_lane_find(ps_lane_name((enum ps_lane)i)), i);
    for (int i = 0; i < PS_TIER_COUNT; i++)
        for (int k = 0; k < i; k++)
            assert_string_not_equal(ps_tier_name((enum ps_tier)i), ps_tier_name((enum ps_tier)k));
    for (int i = 0; i < PS_ARG_COUNT; i++)
        for (int k = 0; k < i; k++)
            assert_string_not_equal(ps_task_arg_name((enum ps_task_arg)i),
                                    ps_task_arg_name((enum ps_task_arg)k));
    assert_int_equal(ps_lane_find(""), -1);
    assert_int_equal(ps_lane_find("disk"), -1);
    assert_int_equal(ps_task_kind_find("EMBED"), -1);
}

static void bytes_are_added_by_kind_and_by_tier(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "sums");
    static const uint64_t bytes[] = {1, 4096, 4097, 0};
    for (uint32_t i = 0; i < 4; i++)
        ps_schedule_buffer(&s, i == 1 ? PS_TIER_DISK : PS_TIER_HOST, bytes[i], "b%u", i);
    for (uint32_t i = 0; i < 4; i++) {
        ps_schedule_task(&s, i % 2 ? PS_TASK_COPY_BATCH : PS_TASK_SPILL_OUT, PS_LANE_H2D, 0);
        s.task[i].bytes = 10 * i;
    }
    assert_int_equal(ps_schedule_tier_bytes(&s, PS_TIER_HOST), 4096 + 8192);
    assert_int_equal(ps_schedule_tier_bytes(&s, PS_TIER_DISK), 4096);
    assert_int_equal(ps_schedule_tier_bytes(&s, PS_TIER_DEVICE), 0);
    assert_int_equal(ps_schedule_kind_bytes(&s, PS_TASK_COPY_BATCH), 40);
    assert_int_equal(ps_schedule_kind_bytes(&s, PS_TASK_SPILL_OUT), 20);
    assert_int_equal(ps_schedule_kind_bytes(&s, PS_TASK_EMBED), 0);
    ps_schedule_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unordered_conflict_is_refused_and_named),
        cmocka_unit_test(conflict_with_the_next_period_is_refused_and_named),
        cmocka_unit_test(ordered_or_disjoint_or_read_only_tasks_are_accepted),
        cmocka_unit_test(order_is_followed_through_other_tasks_and_lanes),
        cmocka_unit_test(cycles_are_refused),
        cmocka_unit_test(accesses_outside_their_buffer_are_refused),
        cmocka_unit_test(broken_fields_are_refused),
        cmocka_unit_test(an_empty_schedule_is_legal),
        cmocka_unit_test(one_disk_request_does_not_wait_for_the_end_of_the_one_before),
        cmocka_unit_test(a_slot_read_once_a_period_needs_the_read_of_the_period_before),
        cmocka_unit_test(the_end_of_a_disk_request_implies_that_of_those_before),
        cmocka_unit_test(the_start_of_a_disk_request_implies_what_those_before_waited_for),
        cmocka_unit_test(only_edges_that_exist_can_be_left_out),
        cmocka_unit_test(deleting_each_edge_of_the_reduction_is_noticed),
        cmocka_unit_test(the_checker_agrees_with_a_search_for_paths),
        cmocka_unit_test(the_reduction_holds_the_edges_that_nothing_replaces),
        cmocka_unit_test(given_dependencies_stay_and_others_are_not_doubled),
        cmocka_unit_test(deriving_twice_changes_nothing),
        cmocka_unit_test(fifty_thousand_tasks_are_checked_within_a_second),
        cmocka_unit_test(the_nth_failed_allocation_is_reported),
        cmocka_unit_test(names_are_distinct_and_found_again),
        cmocka_unit_test(bytes_are_added_by_kind_and_by_tier),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
