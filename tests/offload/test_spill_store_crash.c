/* A spill store after crashes: whatever of the unsynced writes is lost, torn or reordered, and at
 * whatever instant a process is killed, the last acknowledged step is found, whole.
 *
 * `make test` runs a part, `make crash` (PENSTOCK_CRASH=1) the whole. */
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/offload/spill_world.h"

static int teardown(void **state)
{
    (void)state;
    world_free();
    remove_store();
    return 0;
}

/* --- power failures --- */

enum verdict { GOOD, BAD_LOST, BAD_CORRUPT, BAD_OTHER };

/* Steps on the simulated disk until about `steps`, then a crash at any moment; what is found then.
 * *step is the step that the disk holds, before and after. */
static enum verdict crash_once(const struct ps_spill_store_options *opt, uint64_t *step,
                               uint64_t *seed)
{
    struct spill_run r;
    struct ps_error e = {0};
    uint64_t found = 0, last = *step;
    OK(run_open(&r, opt, &found, err));
    int steps = 1 + (int)(world_random(seed) % 4);
    for (int i = 0; i < steps; i++) {
        OK(do_step(&r, ++last, err));
        world_ack(last);
    }
    OK(write_step(&r, last + 1, err)); /* under way, never committed */
    run_close(&r);
    uint64_t acked = world_crash((int)(world_random(seed) % (uint64_t)(world.events + 1)), seed);
    acked = acked > *step ? acked : *step;
    int rc = run_open(&r, opt, &found, &e);
    if (rc < 0)
        return BAD_OTHER;
    rc = holds_step(&r, found, PS_COPY_COMMITTED, &e);
    bool lost = found < acked || found > last;
    run_close(&r);
    *step = found;
    return rc != 0 ? BAD_CORRUPT : lost ? BAD_LOST : GOOD;
}

static void load_world(uint32_t paths)
{
    world_load(STORE "/data-0");
    if (paths == 2)
        world_load("p1/penstock-" UUID "/data-1");
}

/* `seeds` times three crashes in a row; how often each verdict came. */
static void crash_often(uint32_t paths, enum ps_spill_mode mode, bool lies, int seeds,
                        int verdicts[4])
{
    struct ps_spill_store_options opt = spill_options(paths);
    struct spill_run r;
    opt.mode = mode;
    OK(run_create(&r, &opt, err));
    OK(do_step(&r, 1, err));
    run_close(&r);
    load_world(paths);
    opt.open = world_open;
    unsigned char *base[WORLD_FILES];
    for (int i = 0; i < world.files; i++) {
        base[i] = malloc((size_t)world.size[i]);
        assert_non_null(base[i]);
        memcpy(base[i], world.image[i], (size_t)world.size[i]);
    }
    world.lies = lies;
    for (int k = 0; k < seeds; k++) {
        uint64_t seed = (uint64_t)k * 7919 + 1, step = 1;
        for (int i = 0; i < world.files; i++) {
            memcpy(world.image[i], base[i], (size_t)world.size[i]);
            memcpy(world.start[i], base[i], (size_t)world.size[i]);
        }
        for (int crash = 0; crash < 3; crash++) {
            enum verdict v = crash_once(&opt, &step, &seed);
            verdicts[v]++;
            if (v == GOOD)
                continue;
            if (mode == PS_SPILL_SHADOW && !lies)
                print_error("seed %d, crash %d: verdict %d\n", k, crash, (int)v);
            break;
        }
        world_clear();
    }
    for (int i = 0; i < world.files; i++)
        free(base[i]);
}

static void no_power_failure_loses_an_acknowledged_step(void **state)
{
    (void)state;
    int verdicts[4] = {0}, seeds = count_of(50, 1000);
    crash_often(1, PS_SPILL_SHADOW, false, seeds, verdicts);
    assert_int_equal(verdicts[GOOD], 3 * seeds);
}

static void nor_on_two_disks(void **state)
{
    (void)state;
    int verdicts[4] = {0}, seeds = count_of(15, 300);
    crash_often(2, PS_SPILL_SHADOW, false, seeds, verdicts);
    assert_int_equal(verdicts[GOOD], 3 * seeds);
}

/* Before each single write and flush of three steps: what was not flushed lost (a power failure),
 * there (kill -9: the kernel has it), torn. */
static void no_crash_at_any_io_call_of_three_steps_loses_one(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(2);
    unsigned char *base[WORLD_FILES];
    int last_event = 1, recovered[5] = {0};
    make_store(2, 1);
    load_world(2);
    for (int i = 0; i < world.files; i++) {
        base[i] = malloc((size_t)world.size[i]);
        assert_non_null(base[i]);
        memcpy(base[i], world.image[i], (size_t)world.size[i]);
    }
    opt.open = world_open;
    for (int end = 0; end <= last_event; end++) {
        for (enum fate fate = FATE_LOST; fate <= FATE_TORN; fate++) {
            struct spill_run r;
            uint64_t found = 0, seed = (uint64_t)end;
            OK(run_open(&r, &opt, &found, err));
            for (uint64_t step = 2; step <= 4; step++) {
                OK(do_step(&r, step, err));
                world_ack(step);
            }
            run_close(&r);
            last_event = world.events;
            uint64_t acked = world_crash_as(end, fate, &seed);
            OK(run_open(&r, &opt, &found, err));
            OK(holds_step(&r, found, PS_COPY_COMMITTED, err));
            assert_true(found >= acked && found <= (acked ? acked : 1) + 1);
            recovered[found]++;
            run_close(&r);
            for (int i = 0; i < world.files; i++) {
                memcpy(world.image[i], base[i], (size_t)world.size[i]);
                memcpy(world.start[i], base[i], (size_t)world.size[i]);
            }
            world_clear();
        }
    }
    for (int i = 0; i < world.files; i++)
        free(base[i]);
    assert_true(last_event > 3 * 15);
    assert_true(recovered[1] && recovered[2] && recovered[3] && recovered[4]);
}

/* Negative controls: the simulator notices a disk that lies, and a store with one slot. */
static void a_disk_that_ignores_flushes_is_noticed(void **state)
{
    (void)state;
    int verdicts[4] = {0}, seeds = count_of(20, 100);
    crash_often(1, PS_SPILL_SHADOW, true, seeds, verdicts);
    assert_true(verdicts[BAD_LOST] + verdicts[BAD_CORRUPT] + verdicts[BAD_OTHER] > seeds / 2);
}

static void one_slot_does_not_survive_and_says_so(void **state)
{
    (void)state;
    int verdicts[4] = {0}, seeds = count_of(20, 100);
    crash_often(1, PS_SPILL_INPLACE, false, seeds, verdicts);
    assert_true(verdicts[BAD_CORRUPT] >
                seeds / 2); /* and every one by a checksum, see crash_once */
}

/* The very first commit: nothing, or step 1. */
static void a_crash_in_the_first_commit_leaves_nothing_or_all(void **state)
{
    (void)state;
    int none = 0, all = 0;
    for (int k = 0; k < count_of(12, 200); k++) {
        uint64_t seed = (uint64_t)k, found = 0;
        struct spill_run r;
        struct ps_error e = {0};
        make_store(1, 0);
        load_world(1);
        memset(world.image[0] + 4096, 0, (size_t)world.size[0] - 4096);
        memset(world.start[0] + 4096, 0, (size_t)world.size[0] - 4096);
        remove_store();
        struct ps_spill_store_options opt = spill_options(1);
        opt.open = world_open; /* the layout and all that follows go to the simulated disk */
        OK(run_create(&r, &opt, err));
        OK(do_step(&r, 1, err));
        world_ack(1);
        run_close(&r);
        int end = (int)(world_random(&seed) % (uint64_t)(world.events + 1));
        if (k % 2) /* the last events are the commit */
            end = world.events - k / 2 % 6;
        uint64_t acked = world_crash(end, &seed);
        int rc = run_open(&r, &opt, &found, &e);
        if (rc == 0) {
            OK(holds_step(&r, 1, PS_COPY_COMMITTED, err));
            run_close(&r);
        } else {
            assert_int_equal(acked, 0);
            assert_int_equal(rc, PS_EFORMAT);
            assert_non_null(strstr(e.message, "nothing has been committed"));
        }
        all += rc == 0;
        none += rc != 0;
        remove_store();
        world_free();
    }
    assert_true(none > 0 && all > 0);
}

/* --- kill -9 --- */

/* A child that opens the store and steps for ever; every acknowledged step goes to the pipe. */
static void child_steps(const struct ps_spill_store_options *opt, int ack)
{
    struct spill_run r;
    struct ps_error e = {0};
    uint64_t step = 0;
    int rc = run_open(&r, opt, &step, &e);
    if (rc == 0 && write(ack, &step, sizeof step) != (ssize_t)sizeof step)
        rc = -EPIPE;
    while (rc == 0) {
        rc = do_step(&r, ++step, &e);
        if (rc == 0 && write(ack, &step, sizeof step) != (ssize_t)sizeof step)
            rc = -EPIPE;
    }
    fprintf(stderr, "child: %s %s\n", e.message, e.file);
    _exit(1);
}

static void pause_us(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&t, NULL);
}

/* Kill a child `us` after it has opened the store (at_once: after it was born); the last step that
 * it acknowledged, 0: none. */
static uint64_t kill_child(const struct ps_spill_store_options *opt, long us, bool at_once)
{
    int ack[2], status = 0;
    uint64_t step = 0, x;
    assert_int_equal(pipe(ack), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(ack[0]);
        child_steps(opt, ack[1]);
    }
    close(ack[1]);
    if (!at_once)
        assert_int_equal(read(ack[0], &step, sizeof step), (ssize_t)sizeof step);
    pause_us(us);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    while (read(ack[0], &x, sizeof x) == (ssize_t)sizeof x)
        step = x;
    close(ack[0]);
    return step;
}

static void kill_often(enum ps_spill_mode mode, const char *back_end, int kills, int *steps,
                       int *corrupt)
{
    struct ps_spill_store_options opt = spill_options(2);
    struct spill_run r;
    uint64_t seed = 3, last = 1, found = 0;
    opt.mode = mode;
    opt.open = ps_storage_find(back_end);
    OK(run_create(&r, &opt, err));
    OK(do_step(&r, 1, err));
    run_close(&r);
    *corrupt = 0;
    for (int i = 0; i < kills; i++) {
        struct ps_error e = {0};
        uint64_t acked = kill_child(&opt, (long)(world_random(&seed) % 40000), i % 5 == 0);
        OK(run_open(&r, &opt, &found, err)); /* at once: the lock went with the process */
        assert_true(found >= acked && found >= last);
        int rc = holds_step(&r, found, PS_COPY_COMMITTED, &e);
        if (rc == PS_ECHECKSUM) { /* found out, never taken for good */
            ++*corrupt;
            OK(write_step(&r, 1, err)); /* begin anew */
            OK(commit_step(&r, 1, err));
            found = 1;
        } else {
            assert_int_equal(rc, 0);
        }
        *steps += (int)(found > last ? found - last : 0);
        last = found;
        run_close(&r);
    }
}

static void no_kill_loses_an_acknowledged_step(void **state)
{
    (void)state;
    int steps = 0, corrupt = 0, kills = count_of(20, 200);
    kill_often(PS_SPILL_SHADOW, "io_uring", kills, &steps, &corrupt);
    assert_int_equal(corrupt, 0);
    assert_true(steps > kills / 8);
    print_message("%d kills, %d steps between them, none lost\n", kills, steps);
}

static void one_slot_is_found_corrupt_after_kills(void **state)
{
    (void)state;
    int steps = 0, corrupt = 0, kills = count_of(10, 200);
    kill_often(PS_SPILL_INPLACE, "threads", kills, &steps, &corrupt);
    print_message("%d kills, %d of them corrupt the single slot\n", kills, corrupt);
    assert_true(corrupt > kills / 4);
}

/* --- kills while a store is made --- */

static void a_killed_creation_is_finished_by_the_next(void **state)
{
    (void)state;
    const uint64_t mib = 1 << 20, ends[] = {0, 24 * mib};
    const struct ps_store_extent big = {"a", 24 * mib, ends, 1};
    struct ps_spill_store_options opt = spill_options(2);
    uint64_t seed = 5;
    int unfinished = 0;
    opt.extent = &big;
    opt.extent_count = 1;
    for (int i = 0; i < count_of(10, 100); i++) {
        struct ps_spill_store *s = NULL;
        int status = 0;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            int rc = ps_spill_store_create(&s, &opt, NULL);
            _exit(rc == 0 ? 0 : 1);
        }
        pause_us((long)(world_random(&seed) % 30000));
        PS_IGNORE(kill(pid, SIGKILL), "it may have ended");
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
        unfinished += WIFSIGNALED(status);
        if (i % 3 == 0) { /* three in a row, then one that may finish */
            OK(ps_spill_store_create(&s, &opt, err));
            assert_int_equal(system("test \"$(cd p0/* && echo *)\" = 'data-0 lock'"), 0);
            OK(ps_spill_store_remove(s, err));
            assert_int_not_equal(access(STORE, F_OK), 0);
        }
    }
    assert_true(unfinished > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(no_power_failure_loses_an_acknowledged_step, teardown),
        cmocka_unit_test_teardown(nor_on_two_disks, teardown),
        cmocka_unit_test_teardown(no_crash_at_any_io_call_of_three_steps_loses_one, teardown),
        cmocka_unit_test_teardown(a_disk_that_ignores_flushes_is_noticed, teardown),
        cmocka_unit_test_teardown(one_slot_does_not_survive_and_says_so, teardown),
        cmocka_unit_test_teardown(a_crash_in_the_first_commit_leaves_nothing_or_all, teardown),
        cmocka_unit_test_teardown(no_kill_loses_an_acknowledged_step, teardown),
        cmocka_unit_test_teardown(one_slot_is_found_corrupt_after_kills, teardown),
        cmocka_unit_test_teardown(a_killed_creation_is_finished_by_the_next, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
