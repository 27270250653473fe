/* The storage back ends: the same bytes from each, whatever the depth and the chunk; the ends of
 * files; files that are not what was planned; memory that runs out. */
#include <errno.h>
#include <sys/stat.h>

#include "tests/helpers/fail_alloc.h"
#include "tests/offload/storage_check.h"

enum { PAGE = 4096 };

/* Ends neither at a block nor at a sector. */
#define FILE_BYTES (((uint64_t)1 << 20) + 4196)
#define ASKED ((FILE_BYTES + PAGE - 1) / PAGE * PAGE)

static void every_back_end_reads_the_same_bytes_at_every_depth(void **state)
{
    (void)state;
    static const uint32_t depth[] = {1, 2, 3, 8, 64};
    static const uint32_t chunk[] = {4096, 3 * 4096, 65536, 4 << 20};
    char *to = aligned(ASKED + PAGE);
    make_file("a.bin", FILE_BYTES, 1);
    for (int n = 0; n < NAMES; n++) {
        for (int d = 0; d < 5; d++) {
            for (int c = 0; c < 4; c++) {
                struct ps_storage_options opt = {.depth = depth[d], .chunk_bytes = chunk[c]};
                struct ps_storage *st = open_named(names[n], &opt);
                int f = st->ops->add_file(st, "a.bin", false, NULL, NULL);
                assert_int_equal(f, 0);
                memset(to, 0xa5, ASKED + PAGE);
                struct ps_error err = {0};
                assert_int_equal(read_once(st, f, 0, ASKED, FILE_BYTES, to, &err), 0);
                assert_true(holds_file(to, 0, FILE_BYTES, 1));
                assert_true(holds_byte(to + ASKED, PAGE, 0xa5));
                struct ps_storage_counters k;
                st->ops->counters(st, &k);
                assert_int_equal(k.read_bytes, FILE_BYTES);
                assert_int_equal(k.write_bytes, 0);
                assert_int_equal(k.requests, (ASKED + chunk[c] - 1) / chunk[c]);
                assert_int_equal(k.short_transfers, 0);
                assert_int_equal(k.retries, 0);
                st->ops->close(st);
            }
        }
    }
    free(to);
}

/* Supersets of odd ranges, as the planner asks for them; some reach past the end of the file. */
static void many_odd_ranges_in_flight_arrive_and_may_be_waited_for_in_any_order(void **state)
{
    (void)state;
    enum { RANGES = 200, SLOT = 40 * PAGE };
    char *to = aligned((size_t)RANGES * SLOT);
    make_file("a.bin", FILE_BYTES, 2);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage_options opt = {
            .depth = 16, .chunk_bytes = 2 * PAGE, .arena = to, .arena_bytes = RANGES * SLOT};
        struct ps_storage *st = open_named(names[n], &opt);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), 0);
        memset(to, 0xa5, (size_t)RANGES * SLOT);
        struct ps_transfer x[RANGES];
        uint64_t ticket[RANGES], total = 0, r = 12345;
        for (int i = 0; i < RANGES; i++) {
            r = r * 6364136223846793005ULL + 1442695040888963407ULL;
            uint64_t begin = (r >> 33) % FILE_BYTES, end = begin + 1 + (r >> 20) % (38 * PAGE);
            begin = begin / PAGE * PAGE;
            end = (end + PAGE - 1) / PAGE * PAGE;
            uint64_t expect = (end < FILE_BYTES ? end : FILE_BYTES) - begin;
            x[i] = (struct ps_transfer){.offset = begin,
                                        .bytes = end - begin,
                                        .expect = expect,
                                        .memory = to + (size_t)i * SLOT};
            total += expect;
            assert_int_equal(st->ops->submit(st, &x[i], &ticket[i], NULL), 0);
            assert_int_equal(ticket[i], i + 1);
        }
        for (int i = 0; i < RANGES; i++) {
            int k = (i * 77 + 13) % RANGES;
            assert_int_equal(st->ops->wait(st, ticket[k], NULL), 0);
            assert_true(holds_file(x[k].memory, x[k].offset, x[k].expect, 2));
            char *rest = (char *)x[k].memory + x[k].bytes;
            assert_true(holds_byte(rest, SLOT - x[k].bytes, 0xa5));
        }
        struct ps_storage_counters c;
        st->ops->counters(st, &c);
        assert_int_equal(c.read_bytes, total);
        st->ops->close(st);
    }
    free(to);
}

static void what_one_back_end_writes_another_reads(void **state)
{
    (void)state;
    enum { BYTES = 64 * PAGE };
    char *from = aligned(BYTES), *to = aligned(BYTES);
    for (uint64_t i = 0; i < BYTES; i++)
        from[i] = (char)file_byte(i, 3);
    for (int w = 0; w < 2; w++) {
        make_file("w.bin", BYTES, 99);
        struct ps_storage_options opt = {.depth = 4, .chunk_bytes = 3 * PAGE};
        struct ps_storage *st = open_named(names[w], &opt);
        int f = st->ops->add_file(st, "w.bin", true, NULL, NULL);
        struct ps_error err = {0};
        assert_int_equal(write_once(st, f, PAGE, BYTES - 2 * PAGE, from + PAGE, &err), 0);
        assert_int_equal(st->ops->flush(st, (uint32_t)f, &err), 0);
        struct ps_storage_counters k;
        st->ops->counters(st, &k);
        assert_int_equal(k.write_bytes, BYTES - 2 * PAGE);
        assert_int_equal(k.read_bytes, 0);
        st->ops->close(st);
        for (int r = 0; r < NAMES; r++) {
            st = open_named(names[r], &opt);
            f = st->ops->add_file(st, "w.bin", false, NULL, NULL);
            assert_int_equal(read_once(st, f, 0, BYTES, BYTES, to, &err), 0);
            assert_true(holds_file(to, 0, PAGE, 99));
            assert_true(holds_file(to + PAGE, PAGE, BYTES - 2 * PAGE, 3));
            assert_true(holds_file(to + BYTES - PAGE, BYTES - PAGE, PAGE, 99));
            st->ops->close(st);
        }
    }
    free(from);
    free(to);
}

static void what_one_ram_storage_writes_another_one_reads(void **state)
{
    (void)state;
    make_file("r.bin", 4 * PAGE, 4);
    char *m = aligned(4 * PAGE);
    struct ps_storage *st = open_named("ram", NULL);
    int f = st->ops->add_file(st, "r.bin", true, NULL, NULL);
    struct ps_error err = {0};
    memset(m, 0x11, PAGE);
    assert_int_equal(write_once(st, f, PAGE, PAGE, m, &err), 0);
    assert_int_equal(st->ops->flush(st, (uint32_t)f, &err), 0);
    assert_int_equal(read_once(st, f, 0, 4 * PAGE, 4 * PAGE, m, &err), 0);
    assert_true(holds_file(m, 0, PAGE, 4));
    assert_true(holds_byte(m + PAGE, PAGE, 0x11));
    assert_int_equal(write_once(st, f, 4 * PAGE, PAGE, m, &err), -ENOSPC);
    struct ps_storage *other = open_named("ram", NULL);
    int g = other->ops->add_file(other, "r.bin", true, NULL, NULL);
    assert_int_equal(read_once(other, g, 0, 4 * PAGE, 4 * PAGE, m, &err), 0);
    assert_true(holds_byte(m + PAGE, PAGE, 0x11));
    memset(m, 0x22, PAGE);
    assert_int_equal(write_once(st, f, 2 * PAGE, PAGE, m, &err), 0);
    assert_int_equal(read_once(other, g, 0, 4 * PAGE, 4 * PAGE, m, &err), 0);
    assert_true(holds_file(m, 0, PAGE, 4));
    assert_true(holds_byte(m + PAGE, PAGE, 0x11));
    assert_true(holds_byte(m + 2 * PAGE, PAGE, 0x22));
    assert_true(holds_file(m + 3 * PAGE, 3 * PAGE, PAGE, 4));
    other->ops->close(other);
    st->ops->close(st);
    free(m);
}

static void the_null_back_end_counts_and_leaves_memory_alone(void **state)
{
    (void)state;
    char *m = aligned(16 * PAGE);
    struct ps_storage_options opt = {.depth = 2, .chunk_bytes = PAGE};
    struct ps_storage *st = open_named("null", &opt);
    int f = st->ops->add_file(st, "no such file", true, NULL, NULL);
    assert_int_equal(f, 0);
    assert_int_equal(read_once(st, f, 1 << 20, 16 * PAGE, 16 * PAGE, m, NULL), 0);
    assert_int_equal(write_once(st, f, 0, 4 * PAGE, m, NULL), 0);
    assert_int_equal(st->ops->flush(st, 0, NULL), 0);
    assert_true(holds_byte(m, 16 * PAGE, 0xa5));
    struct ps_storage_counters k;
    st->ops->counters(st, &k);
    assert_int_equal(k.read_bytes, 16 * PAGE);
    assert_int_equal(k.write_bytes, 4 * PAGE);
    assert_int_equal(k.requests, 21);
    st->ops->close(st);
    free(m);
}

static void a_file_cut_after_planning_is_an_error_that_names_it(void **state)
{
    (void)state;
    static const uint64_t left[] = {0, 100, PAGE, 5 * PAGE, 5 * PAGE + 4196, 8 * PAGE - 1};
    char *m = aligned(8 * PAGE);
    for (int n = 0; n < 2; n++) {
        for (int i = 0; i < 6; i++) {
            make_file("cut.bin", 8 * PAGE, 5);
            struct ps_storage_options opt = {.depth = 2, .chunk_bytes = 4 * PAGE};
            struct ps_storage *st = open_named(names[n], &opt);
            int f = st->ops->add_file(st, "cut.bin", false, NULL, NULL);
            assert_int_equal(truncate("cut.bin", (off_t)left[i]), 0);
            struct ps_error err = {0};
            assert_int_equal(read_once(st, f, 0, 8 * PAGE, 8 * PAGE, m, &err), PS_EFORMAT);
            assert_string_equal(err.file, "cut.bin");
            assert_non_null(strstr(err.message, "file shorter than planned"));
            assert_non_null(strstr(err.message, "32768"));
            st->ops->close(st);
        }
    }
    free(m);
}

static void an_empty_range_needs_no_request(void **state)
{
    (void)state;
    make_file("e.bin", 0, 1);
    char *m = aligned(PAGE);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage *st = open_named(names[n], NULL);
        int f = st->ops->add_file(st, "e.bin", false, NULL, NULL);
        assert_int_equal(f, 0);
        assert_int_equal(read_once(st, f, 0, PAGE, 0, m, NULL), 0);
        struct ps_storage_counters k;
        st->ops->counters(st, &k);
        assert_int_equal(k.requests, 0);
        struct ps_error err = {0};
        assert_int_equal(read_once(st, f, 0, PAGE, 1, m, &err), PS_EFORMAT);
        st->ops->close(st);
    }
    free(m);
}

static void symlinks_are_followed_for_reading_and_refused_for_writing(void **state)
{
    (void)state;
    make_file("real.bin", PAGE, 6);
    unlink("link.bin");
    assert_int_equal(symlink("real.bin", "link.bin"), 0);
    char *m = aligned(PAGE);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage *st = open_named(names[n], NULL);
        struct ps_error err = {0};
        int f = st->ops->add_file(st, "link.bin", false, NULL, &err);
        assert_int_equal(f, 0);
        assert_int_equal(read_once(st, f, 0, PAGE, PAGE, m, &err), 0);
        assert_true(holds_file(m, 0, PAGE, 6));
        assert_int_equal(st->ops->add_file(st, "link.bin", true, NULL, &err), -ELOOP);
        assert_string_equal(err.file, "link.bin");
        st->ops->close(st);
    }
    free(m);
}

static void what_is_no_file_is_refused_by_name(void **state)
{
    (void)state;
    unlink("pipe");
    assert_int_equal(mkfifo("pipe", 0600), 0);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage *st = open_named(names[n], NULL);
        struct ps_error err = {0};
        assert_int_equal(st->ops->add_file(st, "absent", false, NULL, &err), -ENOENT);
        assert_string_equal(err.file, "absent");
        assert_int_equal(st->ops->add_file(st, "pipe", false, NULL, &err), PS_EFORMAT);
        assert_int_equal(st->ops->add_file(st, ".", false, NULL, &err), PS_EFORMAT);
        assert_string_equal(err.file, ".");
        st->ops->close(st);
    }
}

static void transfers_that_break_the_contract_are_refused(void **state)
{
    (void)state;
    make_file("a.bin", 4 * PAGE, 1);
    char *m = aligned(4 * PAGE);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage *st = open_named(names[n], NULL);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), 0);
        const struct ps_transfer bad[] = {
            {.offset = 512, .bytes = PAGE, .expect = PAGE, .memory = m},
            {.offset = 0, .bytes = 512, .expect = 512, .memory = m},
            {.offset = 0, .bytes = PAGE, .expect = PAGE, .memory = m + 512},
            {.offset = 0, .bytes = PAGE, .expect = PAGE + 1, .memory = m},
            {.offset = 0, .bytes = PAGE, .expect = PAGE, .memory = NULL},
            {.offset = UINT64_MAX / PAGE * PAGE, .bytes = PAGE, .expect = PAGE, .memory = m},
            {.file = 1, .bytes = PAGE, .expect = PAGE, .memory = m},
            {.write = true, .bytes = PAGE, .expect = PAGE, .memory = m},
        };
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            struct ps_error err = {0};
            uint64_t ticket = 0;
            assert_int_equal(st->ops->submit(st, &bad[i], &ticket, &err), -EINVAL);
            assert_int_equal(ticket, 0);
            assert_true(err.message[0] != '\0');
        }
        assert_int_equal(st->ops->wait(st, 0, NULL), -EINVAL);
        assert_int_equal(st->ops->wait(st, 1, NULL), -EINVAL);
        assert_int_equal(st->ops->flush(st, 1, NULL), -EINVAL);
        st->ops->close(st);
    }
    free(m);
    struct ps_storage *st = NULL;
    const struct ps_storage_options odd[] = {{.chunk_bytes = 1000}, {.depth = 100000}};
    assert_int_equal(ps_storage_open_threads(&st, &odd[0], NULL), -EINVAL);
    assert_int_equal(ps_storage_open_threads(&st, &odd[1], NULL), -EINVAL);
    assert_int_equal(ps_storage_open_auto(&st, "tape", NULL, NULL, NULL), PS_EUSAGE);
    assert_null(ps_storage_find("tape"));
    assert_true(ps_storage_find("threads") == ps_storage_open_threads);
}

static void the_queue_is_bounded_and_finished_tickets_need_no_wait(void **state)
{
    (void)state;
    make_file("a.bin", 64 * PAGE, 7);
    char *m = aligned(64 * PAGE);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage_options opt = {
            .depth = 1, .chunk_bytes = PAGE, .transfer_max = 4, .file_max = 1};
        struct ps_storage *st = open_named(names[n], &opt);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), 0);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), -EMFILE);
        uint64_t last = 0;
        int refused = 0;
        for (int i = 0; i < 16; i++) {
            uint64_t at = (uint64_t)i * 4 * PAGE;
            struct ps_transfer x = {
                .offset = at, .bytes = 4 * PAGE, .expect = 4 * PAGE, .memory = m + at};
            int rc;
            while ((rc = st->ops->submit(st, &x, &last, NULL)) == -EAGAIN) {
                refused++;
                assert_int_equal(st->ops->wait(st, last - 3, NULL), 0);
            }
            assert_int_equal(rc, 0);
            assert_int_equal(last, i + 1);
        }
        assert_int_equal(st->ops->wait(st, last, NULL), 0);
        for (uint64_t t = 1; t <= last; t++)
            assert_int_equal(st->ops->wait(st, t, NULL), 0);
        assert_true(holds_file(m, 0, 64 * PAGE, 7));
        if (n < 2)
            assert_true(refused > 0);
        st->ops->close(st);
    }
    free(m);
}

static void closing_with_transfers_under_way_is_legal(void **state)
{
    (void)state;
    make_file("a.bin", FILE_BYTES, 7);
    char *m = aligned(ASKED);
    for (int n = 0; n < NAMES; n++) {
        struct ps_storage_options opt = {.depth = 2, .chunk_bytes = PAGE};
        struct ps_storage *st = open_named(names[n], &opt);
        assert_int_equal(st->ops->add_file(st, "a.bin", false, NULL, NULL), 0);
        struct ps_transfer x = {.bytes = ASKED, .expect = FILE_BYTES, .memory = m};
        uint64_t ticket = 0;
        assert_int_equal(st->ops->submit(st, &x, &ticket, NULL), 0);
        st->ops->close(st);
        memset(m, 0x33, ASKED); /* ours again: nothing may arrive any more */
        usleep(2000);
        assert_true(holds_byte(m, ASKED, 0x33));
    }
    free(m);
}

/* Open each back end and add two files, the n-th allocation failing, for every n until none does.
 */
static void every_failed_allocation_is_an_error_without_a_leak(void **state)
{
    (void)state;
    if (!FAIL_ALLOC) {
        print_message("allocations cannot be made to fail under a sanitizer\n");
        skip();
    }
    make_file("a.bin", PAGE, 1);
    void *arena = aligned(PAGE);
    for (int b = 0; b < NAMES; b++) {
        ps_storage_open_fn open_fn = ps_storage_find(names[b]);
        struct ps_storage_options opt = {.arena = arena, .arena_bytes = PAGE};
        int failed = 0;
        for (long n = 1; n <= 100; n++) {
            struct ps_storage *st = NULL;
            struct ps_error err = {0};
            long live = fail_alloc_live;
            fail_alloc_in = n;
            int rc = open_fn(&st, &opt, &err);
            for (int i = 0; rc >= 0 && i < 2; i++)
                rc = st->ops->add_file(st, "a.bin", false, NULL, &err);
            bool struck = fail_alloc_in <= 0;
            fail_alloc_in = 0;
            /* Fewer threads, or unregistered buffers, are not an error. */
            assert_true(rc >= 0 || rc == -ENOMEM || rc == -EAGAIN);
            assert_true(rc >= 0 || err.message[0] != '\0');
            failed += rc < 0;
            if (st)
                st->ops->close(st);
            if (b != 1) /* the C library keeps what it allocates for threads */
                assert_int_equal(fail_alloc_live, live);
            if (!struck)
                break;
            assert_true(n < 100);
        }
        assert_true(failed >= 5);
    }
    free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_back_end_reads_the_same_bytes_at_every_depth),
        cmocka_unit_test(many_odd_ranges_in_flight_arrive_and_may_be_waited_for_in_any_order),
        cmocka_unit_test(what_one_back_end_writes_another_reads),
        cmocka_unit_test(what_one_ram_storage_writes_another_one_reads),
        cmocka_unit_test(the_null_back_end_counts_and_leaves_memory_alone),
        cmocka_unit_test(a_file_cut_after_planning_is_an_error_that_names_it),
        cmocka_unit_test(an_empty_range_needs_no_request),
        cmocka_unit_test(symlinks_are_followed_for_reading_and_refused_for_writing),
        cmocka_unit_test(what_is_no_file_is_refused_by_name),
        cmocka_unit_test(transfers_that_break_the_contract_are_refused),
        cmocka_unit_test(the_queue_is_bounded_and_finished_tickets_need_no_wait),
        cmocka_unit_test(closing_with_transfers_under_way_is_legal),
        cmocka_unit_test(every_failed_allocation_is_an_error_without_a_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
