/* The spill store at work: what is committed is found again, what is not is not. */
#include "tests/offload/spill_check.h"

#include <pthread.h>

static int teardown(void **state)
{
    (void)state;
    remove_store();
    return 0;
}

static void a_commit_is_found_again(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    uint64_t step = 0;
    make_store(1, 3);
    OK(run_open(&r, &opt, &step, err));
    assert_int_equal(step, 3);
    assert_int_equal(r.state->ops->generation(r.state), 3);
    assert_int_equal(ps_spill_store_config_hash(r.store), 77);
    assert_true(r.state->ops->shadow(r.state));
    OK(holds_step(&r, 3, PS_COPY_LATEST, err));
    for (uint64_t i = 4; i < 9; i++) {
        OK(do_step(&r, i, err));
        OK(holds_step(&r, i, PS_COPY_COMMITTED, err));
    }
    run_close(&r);
    OK(run_open(&r, &opt, &step, err));
    assert_int_equal(step, 8);
    OK(holds_step(&r, 8, PS_COPY_COMMITTED, err));
    run_close(&r);
}

static void what_was_not_committed_is_not_found(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    uint64_t step = 0;
    make_store(1, 2);
    OK(run_open(&r, &opt, &step, err));
    OK(write_step(&r, 3, err));
    OK(holds_step(&r, 3, PS_COPY_LATEST, err));
    OK(holds_step(&r, 2, PS_COPY_COMMITTED, err));
    OK(write_step(&r, 5, err)); /* again, before a commit: the committed copy is left alone */
    OK(holds_step(&r, 2, PS_COPY_COMMITTED, err));
    run_close(&r);
    OK(run_open(&r, &opt, &step, err));
    assert_int_equal(step, 2);
    OK(holds_step(&r, 2, PS_COPY_LATEST, err));
    run_close(&r);
}

static void revert_brings_the_committed_copy_back(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    uint64_t step = 0;
    make_store(1, 2);
    OK(run_open(&r, &opt, &step, err));
    OK(write_step(&r, 3, err));
    r.state->ops->revert(r.state);
    OK(holds_step(&r, 2, PS_COPY_LATEST, err));
    OK(commit_step(&r, 2, err)); /* a skipped step: the state stays, the counter goes on */
    OK(holds_step(&r, 2, PS_COPY_COMMITTED, err));
    OK(do_step(&r, 3, err));
    OK(holds_step(&r, 3, PS_COPY_COMMITTED, err));
    run_close(&r);
}

/* Some chunks written, the extent not noted: latest and committed stay as they were. */
static void an_extent_half_written_is_not_taken(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    uint64_t step = 0;
    make_store(1, 2);
    OK(run_open(&r, &opt, &step, err));
    OK(write_chunk(&r, 9, 0, 1, err));
    OK(write_chunk(&r, 9, 4, 3, err));
    OK(holds_step(&r, 2, PS_COPY_LATEST, err));
    OK(commit_step(&r, 2, err));
    OK(holds_step(&r, 2, PS_COPY_COMMITTED, err));
    run_close(&r);
    OK(run_open(&r, &opt, &step, err));
    OK(holds_step(&r, 2, PS_COPY_COMMITTED, err));
    run_close(&r);
}

static void a_chunk_never_written_is_refused(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    struct ps_error e = {0};
    OK(run_create(&r, &opt, err));
    assert_int_equal(holds_step(&r, 1, PS_COPY_LATEST, &e), PS_ECHECKSUM);
    assert_non_null(strstr(e.message, "before it was ever written"));
    assert_string_equal(e.field, "layer.0.weights");
    run_close(&r);
}

/* Chunks of more than a stripe unit over two files, at offsets of no unit. */
static void two_paths_hold_one_store(void **state)
{
    (void)state;
    const uint64_t mib = 1 << 20, ends[] = {0, 5 * mib, 11 * mib + 4096};
    const struct ps_store_extent big[] = {{"a", 4096, ends_c, 1}, {"b", 11 * mib + 4096, ends, 2}};
    struct ps_spill_store_options opt = spill_options(2);
    opt.extent = big;
    opt.extent_count = 2;
    opt.unit_bytes = 0;
    struct spill_run r;
    OK(run_create(&r, &opt, err));
    free(r.memory);
    r.memory = aligned(7 * mib);
    const struct ps_state_store_ops *ops = r.state->ops;
    assert_int_equal(ops->map_max(r.state), 3);
    for (int round = 0; round < 2; round++) {
        for (uint32_t c = 0; c < 2; c++) {
            fill_chunk(r.memory, ends[c + 1] - ends[c], 1, 1, c);
            ops->seal(r.state, 1, c, r.memory);
            OK(lane_move(&r, true, 1, c, PS_COPY_LATEST, err));
        }
        ops->note_written(r.state, 1);
        OK(ops->commit(r.state, "{\"step\": 1}", 11, err));
    }
    run_close(&r);
    struct stat sb;
    uint64_t sum = 0;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(stat(i ? "p1/penstock-" UUID "/data-1" : STORE "/data-0", &sb), 0);
        sum += (uint64_t)sb.st_size;
    }
    assert_int_equal(sum, ps_spill_store_bytes(big, 2, PS_SPILL_SHADOW, 256, 2));
    const char *const swapped[] = {"p1", "p0"}; /* disks moved: found by their headers */
    opt.path = swapped;
    uint64_t step;
    OK(run_open(&r, &opt, &step, err));
    free(r.memory);
    r.memory = aligned(7 * mib);
    for (uint32_t c = 0; c < 2; c++) {
        OK(lane_move(&r, false, 1, c, PS_COPY_COMMITTED, err));
        OK(r.state->ops->check(r.state, 1, c, PS_COPY_COMMITTED, r.memory, err));
        assert_true(chunk_is(r.memory, ends[c + 1] - ends[c], 1, 1, c));
    }
    run_close(&r);
    assert_int_equal(ps_spill_verify(STORE, NULL, NULL, NULL), 0);
}

/* --- several lanes --- */

struct lane {
    struct spill_run r;
    uint32_t first; /* extents first, first + 2, ... */
    uint64_t step;
    int rc;
};

static void *lane_main(void *arg)
{
    struct lane *l = arg;
    for (uint32_t e = l->first; l->rc == 0 && e < EXTENTS; e += 2) {
        for (uint32_t c = 0; l->rc == 0 && c < extents[e].chunk_count; c++) {
            l->rc = write_chunk(&l->r, l->step, e, c, NULL);
            if (l->rc == 0 && l->step > 1) /* the committed copy is read meanwhile */
                l->rc = lane_move(&l->r, false, e, c, PS_COPY_COMMITTED, NULL);
            if (l->rc == 0 && l->step > 1)
                l->rc =
                    l->r.state->ops->check(l->r.state, e, c, PS_COPY_COMMITTED, l->r.memory, NULL);
        }
        if (l->rc == 0)
            l->r.state->ops->note_written(l->r.state, e);
    }
    return NULL;
}

static void several_lanes_write_and_read_at_a_time(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(2);
    struct lane lane[2];
    memset(lane, 0, sizeof lane);
    OK(run_create(&lane[0].r, &opt, err));
    lane[1].r.store = lane[0].r.store;
    OK(run_attach(&lane[1].r, opt.open, err));
    lane[1].first = 1;
    for (uint64_t step = 1; step <= 9; step += 4) { /* steps that write all extents alike */
        pthread_t t;
        for (int i = 0; i < 2; i++)
            lane[i].step = step;
        assert_int_equal(pthread_create(&t, NULL, lane_main, &lane[1]), 0);
        lane_main(&lane[0]);
        assert_int_equal(pthread_join(t, NULL), 0);
        assert_int_equal(lane[0].rc, 0);
        assert_int_equal(lane[1].rc, 0);
        OK(commit_step(&lane[0].r, step, err));
    }
    for (uint32_t e = 0; e < EXTENTS; e++) {
        for (uint32_t c = 0; c < extents[e].chunk_count; c++) {
            OK(lane_move(&lane[0].r, false, e, c, PS_COPY_COMMITTED, err));
            assert_true(chunk_is(lane[0].r.memory, chunk_bytes(e, c), 9, e, c));
        }
    }
    lane[1].r.lane->ops->close(lane[1].r.lane);
    free(lane[1].r.memory);
    run_close(&lane[0].r);
}

static void *commit_main(void *arg)
{
    struct lane *l = arg;
    l->rc = commit_step(&l->r, l->step, NULL);
    return NULL;
}

static void the_latest_copy_can_be_read_beside_a_commit(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(2);
    struct lane lane;
    memset(&lane, 0, sizeof lane);
    OK(run_create(&lane.r, &opt, err));
    for (lane.step = 1; lane.step < 6; lane.step++) {
        pthread_t t;
        OK(write_step(&lane.r, lane.step, err));
        assert_int_equal(pthread_create(&t, NULL, commit_main, &lane), 0);
        int rc = holds_step(&lane.r, lane.step, PS_COPY_LATEST, NULL);
        assert_int_equal(pthread_join(t, NULL), 0);
        assert_int_equal(rc, 0);
        assert_int_equal(lane.rc, 0);
    }
    run_close(&lane.r);
}

static void in_place_there_is_one_slot(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct heard heard;
    struct spill_run r;
    uint64_t step = 0;
    heard_init(&heard);
    opt.log = &heard.log;
    opt.mode = PS_SPILL_INPLACE;
    OK(run_create(&r, &opt, err));
    assert_int_equal(heard_count(&heard, "loses the run"), 1);
    assert_false(r.state->ops->shadow(r.state));
    OK(do_step(&r, 1, err));
    OK(do_step(&r, 2, err));
    run_close(&r);
    assert_true(ps_spill_store_bytes(extents, EXTENTS, PS_SPILL_INPLACE, 256, 1) <
                ps_spill_store_bytes(extents, EXTENTS, PS_SPILL_SHADOW, 256, 1));
    opt.mode = PS_SPILL_SHADOW; /* the store knows what it is */
    OK(run_open(&r, &opt, &step, err));
    assert_int_equal(step, 2);
    assert_false(r.state->ops->shadow(r.state));
    OK(holds_step(&r, 2, PS_COPY_COMMITTED, err));
    OK(write_chunk(&r, 3, 0, 0, err));
    run_close(&r);
    OK(run_open(&r, &opt, &step, err)); /* as after a kill in the middle of a step */
    struct ps_error e = {0};
    assert_int_equal(holds_step(&r, 2, PS_COPY_COMMITTED, &e), PS_ECHECKSUM);
    assert_non_null(strstr(e.message, "layer.0.weights, chunk 0 of generation 2"));
    run_close(&r);
}

static void a_run_state_over_the_limit_is_refused_and_harmless(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    static const char big[257];
    OK(run_create(&r, &opt, err));
    OK(do_step(&r, 1, err));
    assert_int_equal(r.state->ops->commit(r.state, big, 257, NULL), PS_EUSAGE);
    OK(r.state->ops->commit(r.state, big, 256, err));
    OK(r.state->ops->commit(r.state, NULL, 0, err));
    assert_int_equal(r.state->ops->generation(r.state), 3);
    run_close(&r);
}

static void extents_must_be_those_of_the_store(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct ps_store_extent other[EXTENTS];
    struct spill_run r;
    struct ps_error e = {0};
    uint64_t step = 0;
    make_store(1, 1);
    memcpy(other, extents, sizeof other);
    other[3].name[0] = 'x';
    opt.extent = other;
    assert_int_equal(run_open(&r, &opt, &step, &e), PS_EUSAGE);
    assert_string_equal(e.field, "xmbed.weights");
    const uint64_t ends[] = {0, 4096, 12288, 28672};
    memcpy(other, extents, sizeof other);
    other[0].chunk_offset = ends;
    assert_int_equal(run_open(&r, &opt, &step, &e), PS_EUSAGE);
    assert_string_equal(e.field, "layer.0.weights");
    opt.extent_count = EXTENTS - 1;
    opt.extent = extents;
    assert_int_equal(run_open(&r, &opt, &step, &e), PS_EUSAGE);
}

static void info_says_what_a_store_holds(void **state)
{
    (void)state;
    struct ps_spill_info i;
    make_store(1, 3);
    OK(ps_spill_info_read(&i, STORE, err));
    assert_string_equal(i.run_uuid, UUID);
    assert_int_equal(i.generation, 3);
    assert_int_equal(i.config_hash, 77);
    assert_int_equal(i.file_count, 1);
    assert_int_equal(i.extent_count, EXTENTS);
    assert_int_equal(i.damage.code, 0);
    assert_true(i.superblock_ok[0] && i.superblock_ok[1]);
    assert_false(i.locked);
    assert_string_equal(i.extent[4].name, "embed.state");
    assert_string_equal(i.run_state, "{\"step\": 3}");
    for (uint32_t e = 0; e < EXTENTS; e++) { /* as often written as steps up to 3 did */
        int writes = 0;
        for (uint64_t s = 1; s <= 3; s++)
            writes += step_writes(s, e);
        assert_int_equal(i.slot[e], (writes + 1) % 2);
    }
    ps_spill_info_fini(&i);
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    uint64_t step;
    OK(run_open(&r, &opt, &step, err));
    OK(ps_spill_info_read(&i, STORE, err));
    assert_true(i.locked);
    ps_spill_info_fini(&i);
    assert_int_equal(ps_spill_verify(STORE, NULL, NULL, NULL), -EBUSY);
    run_close(&r);
    assert_int_equal(ps_spill_verify(STORE, NULL, NULL, NULL), 0);
    assert_int_equal(ps_spill_info_read(&i, "p0", NULL), -ENOENT);
}

static void nothing_committed_is_said(void **state)
{
    (void)state;
    struct ps_spill_store_options opt = spill_options(1);
    struct spill_run r;
    struct ps_error e = {0};
    struct ps_spill_info i;
    uint64_t step = 0;
    make_store(1, 0);
    assert_int_equal(run_open(&r, &opt, &step, &e), PS_EFORMAT);
    assert_non_null(strstr(e.message, "nothing has been committed"));
    OK(ps_spill_info_read(&i, STORE, err));
    assert_int_equal(i.generation, 0);
    assert_int_equal(i.damage.code, PS_EFORMAT);
    ps_spill_info_fini(&i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_commit_is_found_again, teardown),
        cmocka_unit_test_teardown(what_was_not_committed_is_not_found, teardown),
        cmocka_unit_test_teardown(revert_brings_the_committed_copy_back, teardown),
        cmocka_unit_test_teardown(an_extent_half_written_is_not_taken, teardown),
        cmocka_unit_test_teardown(a_chunk_never_written_is_refused, teardown),
        cmocka_unit_test_teardown(two_paths_hold_one_store, teardown),
        cmocka_unit_test_teardown(several_lanes_write_and_read_at_a_time, teardown),
        cmocka_unit_test_teardown(the_latest_copy_can_be_read_beside_a_commit, teardown),
        cmocka_unit_test_teardown(in_place_there_is_one_slot, teardown),
        cmocka_unit_test_teardown(a_run_state_over_the_limit_is_refused_and_harmless, teardown),
        cmocka_unit_test_teardown(extents_must_be_those_of_the_store, teardown),
        cmocka_unit_test_teardown(info_says_what_a_store_holds, teardown),
        cmocka_unit_test_teardown(nothing_committed_is_said, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
