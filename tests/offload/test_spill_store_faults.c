/* Everything that can fail in two steps of a spill store, one at a time: the error is clean, the
 * commit before is intact, nothing is written or flushed afterwards, no memory is lost. */
#include "offload/storage_fault.h"
#include "tests/helpers/fail_alloc.h"
#include "tests/offload/spill_world.h"

static int teardown(void **state)
{
    (void)state;
    fail_alloc_in = 0;
    world_free();
    remove_store();
    return 0;
}

/* Two steps after step 1; what was acknowledged, and the error. */
static int two_steps(struct spill_run *r, uint64_t *acked, struct ps_error *e)
{
    int rc = 0;
    for (uint64_t step = 2; rc == 0 && step <= 3; step++) {
        rc = do_step(r, step, e);
        if (rc == 0)
            *acked = step;
    }
    return rc;
}

static void assert_holds(const struct ps_spill_store_options *opt, uint64_t acked)
{
    struct spill_run r;
    uint64_t found = 0;
    OK(run_open(&r, opt, &found, err));
    assert_true(found == acked || found == acked + 1); /* a failed flush may have done its work */
    OK(holds_step(&r, found, PS_COPY_COMMITTED, err));
    run_close(&r);
}

/* --- on a simulated disk, which also loses what was not flushed --- */

static int fail_each(enum event_kind kind, uint32_t paths)
{
    struct ps_spill_store_options opt = spill_options(paths);
    make_store(paths, 1);
    world_load(STORE "/data-0");
    if (paths == 2)
        world_load("p1/penstock-" UUID "/data-1");
    opt.open = world_open;
    int n = 1;
    for (bool hit = true; hit; n++) {
        unsigned char *base[WORLD_FILES];
        struct spill_run r;
        struct ps_error e = {0};
        uint64_t step = 0, acked = 1, seed = (uint64_t)n;
        for (int i = 0; i < world.files; i++) {
            base[i] = malloc((size_t)world.size[i]);
            memcpy(base[i], world.image[i], (size_t)world.size[i]);
        }
        OK(run_open(&r, &opt, &step, err));
        world.fail_at = n;
        world.fail_op = (int)kind;
        world.ops = world.after = 0;
        world.failed = false;
        int rc = two_steps(&r, &acked, &e);
        hit = world.failed;
        assert_int_equal(rc, hit ? -EIO : 0);
        if (hit) {
            assert_true(e.message[0] && e.file[0]);
            bool in_commit = r.state->ops->commit(r.state, NULL, 0, &e) == -EIO &&
                             strstr(e.message, "an earlier commit failed");
            if (in_commit) {
                assert_int_equal(world.after, 0);
                assert_non_null(strstr(e.advice, "--resume"));
            }
        }
        run_close(&r);
        world.fail_at = 0;
        if (hit && world.after == 0) {
            world_crash(world.events, &seed);
            assert_holds(&opt, acked);
        }
        for (int i = 0; i < world.files; i++) {
            memcpy(world.image[i], base[i], (size_t)world.size[i]);
            memcpy(world.start[i], base[i], (size_t)world.size[i]);
            free(base[i]);
        }
        world_clear();
    }
    return n - 2;
}

static void each_failing_flush_leaves_the_commit_before(void **state)
{
    (void)state;
    assert_int_equal(fail_each(EVENT_FLUSH, 1), 2 * 3); /* data, table, superblock */
    remove_store();
    world_free();
    assert_int_equal(fail_each(EVENT_FLUSH, 2), 2 * 4);
}

static void each_failing_write_leaves_the_commit_before(void **state)
{
    (void)state;
    assert_true(fail_each(EVENT_WRITE, 2) > 2 * (11 + 2) - 8);
}

/* --- through the real back ends --- */

static struct ps_storage_fault fault;
static struct ps_storage *own; /* the store's, the first that a store opens */
static const char *fault_inner;

static int open_faulty(struct ps_storage **out, const struct ps_storage_options *opt,
                       struct ps_error *err)
{
    int rc = own ? ps_storage_open_auto(out, fault_inner, opt, NULL, err)
                 : ps_storage_open_fault(out, fault_inner, &fault, opt, NULL, err);
    if (rc == 0 && !own)
        own = *out;
    return rc;
}

static uint64_t requests(void)
{
    struct ps_storage_counters c;
    own->ops->counters(own, &c);
    return c.requests;
}

/* One fault in the store's own storage; returns whether it struck. */
static bool fault_once(const char *what, int n, const char *action, uint64_t *base)
{
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_spill_store_options plain = opt;
    struct spill_run r;
    struct ps_error e = {0};
    uint64_t step = 0, acked = 0;
    char text[64];
    snprintf(text, sizeof text, "%s:%d:%s", what, n, action);
    OK(ps_storage_fault_parse(&fault, text, err));
    opt.open = open_faulty;
    own = NULL;
    int rc = run_open(&r, &opt, &acked, &e);
    if (rc < 0) { /* a read of recovery: nothing has changed */
        assert_true(e.message[0] != '\0');
        assert_holds(&plain, *base);
        return true;
    }
    step = acked;
    for (int i = 0; rc == 0 && i < 2; i++) {
        rc = do_step(&r, ++step, &e);
        if (rc == 0)
            acked = step;
    }
    if (rc < 0) {
        uint64_t before = requests();
        assert_true(e.message[0] && e.file[0] && e.advice[0]);
        assert_int_equal(r.state->ops->commit(r.state, NULL, 0, &e), rc);
        assert_int_equal(requests(), before); /* no flush, no write */
    }
    run_close(&r);
    assert_holds(&plain, acked);
    /* where the next one begins */
    OK(run_open(&r, &plain, base, err));
    run_close(&r);
    return rc < 0;
}

static void each_fault_of_the_stores_own_io_is_final(void **state)
{
    (void)state;
    static const struct {
        const char *op, *action;
        int least; /* how many of the first operations must strike */
    } kind[] = {{"flush", "eio", 6},
                {"flush", "enospc", 6},
                {"write", "eio", 4},
                {"write", "enospc", 4},
                {"read", "eio:always", 4}};
    uint64_t step = 1;
    make_store(1, 1);
    for (size_t k = 0; k < sizeof kind / sizeof kind[0]; k++) {
        fault_inner = k % 2 ? "threads" : "io_uring";
        for (int n = 1; n <= kind[k].least + 1; n++) {
            bool struck = fault_once(kind[k].op, n, kind[k].action, &step);
            if (struck != (n <= kind[k].least))
                print_error("%s:%d:%s\n", kind[k].op, n, kind[k].action);
            assert_int_equal(struck, n <= kind[k].least);
        }
    }
}

static void short_and_interrupted_io_passes(void **state)
{
    (void)state;
    static const char *const what[] = {"read:*:short=4096", "write:1:eagain", "read:2:eio",
                                       "flush:1:eintr", "write:*:delay=3,flush:*:delay=3"};
    uint64_t step = 1;
    make_store(1, 1);
    for (size_t i = 0; i < sizeof what / sizeof what[0]; i++) {
        struct ps_spill_store_options opt = spill_options(1);
        struct spill_run r;
        OK(ps_storage_fault_parse(&fault, what[i], err));
        opt.open = open_faulty;
        fault_inner = "threads";
        own = NULL;
        OK(run_open(&r, &opt, &step, err));
        OK(do_step(&r, ++step, err));
        run_close(&r);
        assert_holds(&opt, step);
    }
}

/* --- memory --- */

/* What ps_spill_store_create, open, info and verify do for want of memory. */
enum call { CALL_CREATE, CALL_OPEN, CALL_INFO, CALL_VERIFY, CALLS };

static int call_once(enum call call, struct ps_error *e)
{
    struct ps_spill_store_options opt = spill_options(2);
    struct ps_spill_store *s = NULL;
    struct ps_spill_info info;
    void *run_state = NULL;
    size_t bytes = 0;
    int rc = -EINVAL;
    opt.open = ps_storage_open_ram;
    if (call == CALL_CREATE)
        rc = ps_spill_store_create(&s, &opt, e);
    else if (call == CALL_OPEN)
        rc = ps_spill_store_open(&s, &opt, &run_state, &bytes, e);
    else if (call == CALL_INFO)
        rc = ps_spill_info_read(&info, STORE, e);
    else
        rc = ps_spill_verify(STORE, NULL, NULL, e);
    fail_alloc_in = 0;
    if (rc == 0 && call == CALL_INFO)
        ps_spill_info_fini(&info);
    free(run_state);
    if (rc == 0 && call == CALL_CREATE)
        OK(ps_spill_store_remove(s, err));
    else if (rc == 0)
        ps_spill_store_close(s);
    return rc;
}

static void each_failing_allocation_is_a_clean_error(void **state)
{
    (void)state;
    if (!FAIL_ALLOC) {
        print_message("skip: the sanitizer brings its own malloc\n");
        skip();
    }
    for (enum call call = CALL_CREATE; call < CALLS; call++) {
        if (call == CALL_OPEN)
            make_store(2, 2);
        bool hit = true;
        for (long n = 1; hit; n++) {
            struct ps_error e = {0};
            assert_true(n < 1000);
            long live = fail_alloc_live;
            fail_alloc_in = n;
            int rc = call_once(call, &e);
            hit = rc != 0;
            if (hit) {
                assert_true(rc == -ENOMEM || rc > 0 || e.code != 0);
                assert_true(e.message[0] != '\0');
            }
            assert_int_equal(fail_alloc_live, live);
        }
        if (call == CALL_CREATE)
            assert_int_equal(system("test -z \"$(ls p0 p1 | grep penstock)\""), 0);
    }
    assert_holds(
        &(struct ps_spill_store_options){
            .path = two_paths, .path_count = 2, .run_uuid = UUID, .open = ps_storage_open_threads},
        2);
}

static void steps_and_commits_allocate_nothing(void **state)
{
    (void)state;
    if (!FAIL_ALLOC) {
        print_message("skip: the sanitizer brings its own malloc\n");
        skip();
    }
    static const char *const back_end[] = {"io_uring", "threads", "ram"};
    for (int i = 0; i < 3; i++) {
        struct ps_spill_store_options opt = spill_options(2);
        struct spill_run r;
        struct ps_error e = {0};
        opt.open = ps_storage_find(back_end[i]);
        OK(run_create(&r, &opt, err));
        int rc = do_step(&r, 1, &e);
        fail_alloc_in = 1;
        for (uint64_t step = 2; rc == 0 && step < 6; step++) {
            rc = do_step(&r, step, &e);
            if (rc == 0)
                rc = holds_step(&r, step, PS_COPY_COMMITTED, &e);
            r.state->ops->revert(r.state);
        }
        long left = fail_alloc_in;
        fail_alloc_in = 0;
        assert_int_equal(rc, 0);
        assert_int_equal(left, 1);
        run_close(&r);
        remove_store();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(each_failing_flush_leaves_the_commit_before, teardown),
        cmocka_unit_test_teardown(each_failing_write_leaves_the_commit_before, teardown),
        cmocka_unit_test_teardown(each_fault_of_the_stores_own_io_is_final, teardown),
        cmocka_unit_test_teardown(short_and_interrupted_io_passes, teardown),
        cmocka_unit_test_teardown(each_failing_allocation_is_a_clean_error, teardown),
        cmocka_unit_test_teardown(steps_and_commits_allocate_nothing, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
