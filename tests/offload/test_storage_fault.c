/* Injected faults: each acts as the real thing would, at every operation of a small run, and is
 * noticed. */
#include <errno.h>

#include "offload/storage_fault.h"
#include "tests/offload/storage_check.h"

enum { PAGE = 4096, CHUNK = 2 * PAGE, CHUNKS = 6 };

#define FILE_BYTES ((uint64_t)(CHUNKS - 1) * CHUNK + 5000) /* 6 requests, the last one odd */
#define ASKED ((FILE_BYTES + PAGE - 1) / PAGE * PAGE)

static const char *const inner[] = {"io_uring", "threads", "ram"};
enum { INNERS = 3 };

struct run {
    struct ps_storage *st;
    struct heard heard;
    struct ps_error err;
    struct ps_storage_counters count;
    char *memory;
    int file;
    int rc;
};

static void start(struct run *r, const char *back_end, const char *spec, uint32_t depth,
                  bool writable, double abort_s)
{
    memset(r, 0, sizeof *r);
    heard_init(&r->heard);
    struct ps_storage_fault fault;
    int rc = ps_storage_fault_parse(&fault, spec, &r->err);
    if (rc != 0)
        print_error("%s\n", r->err.message);
    assert_int_equal(rc, 0);
    struct ps_storage_options opt = {.depth = depth,
                                     .chunk_bytes = CHUNK,
                                     .warn_s = abort_s / 4,
                                     .abort_s = abort_s,
                                     .log = &r->heard.log};
    assert_int_equal(ps_storage_open_fault(&r->st, back_end, &fault, &opt, NULL, &r->err), 0);
    assert_string_equal(r->st->ops->name, "fault");
    r->memory = aligned(ASKED + PAGE);
    r->file = r->st->ops->add_file(r->st, "f.bin", writable, NULL, &r->err);
    assert_int_equal(r->file, 0);
}

static void finish(struct run *r)
{
    r->st->ops->close(r->st);
    free(r->memory);
}

/* The whole run: read the file in 6 requests (2 transfers of 3). */
static void run_reads(struct run *r, const char *back_end, const char *spec, uint32_t depth)
{
    start(r, back_end, spec, depth, false, 30);
    uint64_t half = 3 * CHUNK, ticket[2];
    struct ps_transfer x[2] = {{.bytes = half, .expect = half, .memory = r->memory},
                               {.offset = half,
                                .bytes = ASKED - half,
                                .expect = FILE_BYTES - half,
                                .memory = r->memory + half}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(r->st->ops->submit(r->st, &x[i], &ticket[i], &r->err), 0);
    for (int i = 0; i < 2; i++) {
        int rc = r->st->ops->wait(r->st, ticket[i], r->rc == 0 ? &r->err : NULL);
        if (r->rc == 0)
            r->rc = rc;
    }
    r->st->ops->counters(r->st, &r->count);
    assert_true(holds_byte(r->memory + ASKED, PAGE, 0xa5));
}

static char *spec_of(char *buf, const char *format, int n)
{
    snprintf(buf, 128, format, n);
    return buf;
}

static const uint32_t depths[] = {1, 3, 8};

static void a_read_that_fails_once_is_read_again(void **state)
{
    (void)state;
    static const char *const code[] = {"eio", "eremoteio", "enodata", "eilseq"};
    make_file("f.bin", FILE_BYTES, 1);
    for (int b = 0; b < INNERS; b++) {
        for (int n = 1; n <= CHUNKS + 1; n++) {
            for (int c = 0; c < 4; c++) {
                char spec[128];
                snprintf(spec, sizeof spec, "read:%d:%s", n, code[c]);
                struct run r;
                run_reads(&r, inner[b], spec, depths[n % 3]);
                assert_int_equal(r.rc, 0);
                assert_true(holds_file(r.memory, 0, FILE_BYTES, 1));
                int struck = n <= CHUNKS;
                assert_int_equal(r.count.retries, struck);
                assert_int_equal(r.count.requests, CHUNKS + struck);
                assert_int_equal(heard_count(&r.heard, "reading again"), struck);
                assert_int_equal(heard_count(&r.heard, "f.bin"), struck);
                finish(&r);
            }
        }
    }
}

static void a_read_that_always_fails_is_an_error_that_names_file_and_offset(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 2);
    for (int b = 0; b < INNERS; b++) {
        for (int n = 1; n <= CHUNKS; n++) {
            for (int d = 0; d < 3; d++) {
                char spec[128], offset[32];
                struct run r;
                run_reads(&r, inner[b], spec_of(spec, "read:%d:eio:always", n), depths[d]);
                assert_int_equal(r.rc, -EIO);
                assert_string_equal(r.err.file, "f.bin");
                snprintf(offset, sizeof offset, "offset %d ", (n - 1) * CHUNK);
                assert_non_null(strstr(r.err.message, offset));
                assert_true(r.err.advice[0] != '\0');
                assert_int_equal(r.count.retries, 2);
                finish(&r);
            }
        }
    }
}

static void other_errors_of_a_read_are_final_at_once(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 2);
    struct run r;
    run_reads(&r, "threads", "read:2:erofs", 2);
    assert_int_equal(r.rc, -EROFS);
    assert_int_equal(r.count.retries, 0);
    assert_true(holds_file(r.memory + 3 * CHUNK, 3 * CHUNK, FILE_BYTES - 3 * CHUNK, 2));
    finish(&r);
}

static void a_short_read_is_continued_and_succeeds(void **state)
{
    (void)state;
    static const char *const length[] = {"",      "=1",    "=511",  "=512",
                                         "=4095", "=4096", "=4097", "=8191"};
    make_file("f.bin", FILE_BYTES, 3);
    for (int b = 0; b < INNERS; b++) {
        for (int n = 1; n <= CHUNKS; n++) {
            for (int l = 0; l < 8; l++) {
                char spec[128];
                snprintf(spec, sizeof spec, "read:%d:short%s", n, length[l]);
                struct run r;
                run_reads(&r, inner[b], spec, depths[(n + l) % 3]);
                assert_int_equal(r.rc, 0);
                assert_true(holds_file(r.memory, 0, FILE_BYTES, 3));
                assert_int_equal(r.count.retries, 0);
                bool past_end = n == CHUNKS && l == 7; /* 8191 of the 5000 that are there */
                assert_int_equal(r.count.short_transfers, past_end ? 0 : 1);
                finish(&r);
            }
        }
    }
}

static void short_reads_without_progress_end(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 3);
    for (int b = 0; b < 2; b++) { /* direct: 100 bytes are never whole */
        struct run r;
        run_reads(&r, inner[b], "read:2:short=100:always", 2);
        if (r.rc == 0) {
            print_message("no direct transfers here\n");
            finish(&r);
            skip();
        }
        assert_int_equal(r.rc, -EIO);
        assert_int_equal(r.count.short_transfers, 3);
        finish(&r);
    }
    struct run r; /* half of what is left, every time: whole blocks go on, the last one does not */
    run_reads(&r, "threads", "read:*:short=4096:always", 4);
    assert_int_equal(r.rc, 0);
    assert_true(holds_file(r.memory, 0, FILE_BYTES, 3));
    finish(&r);
    run_reads(&r, "threads", /* to and fro is no progress either */
              "read:1:short=4096,read:2:short=100,read:3:short=4096,read:4:short=100,"
              "read:5:short=4096,read:6:short=100",
              1);
    assert_int_equal(r.rc, -EIO);
    assert_true(r.count.short_transfers >= 4);
    finish(&r);
    run_reads(&r, "threads", "read:3:short=0", 4); /* as at the end of a file */
    assert_int_equal(r.rc, PS_EFORMAT);
    finish(&r);
}

static void refusals_of_a_moment_are_tried_again(void **state)
{
    (void)state;
    static const char *const code[] = {"eagain", "ebusy", "eintr"};
    make_file("f.bin", FILE_BYTES, 4);
    for (int b = 0; b < INNERS; b++) {
        for (int n = 1; n <= CHUNKS; n++) {
            for (int c = 0; c < 3; c++) {
                char spec[128];
                snprintf(spec, sizeof spec, "read:%d:%s", n, code[c]);
                struct run r;
                run_reads(&r, inner[b], spec, depths[n % 3]);
                assert_int_equal(r.rc, 0);
                assert_true(holds_file(r.memory, 0, FILE_BYTES, 4));
                assert_int_equal(r.count.retries, 1);
                finish(&r);
            }
        }
    }
}

static void a_refusal_without_end_is_stopped_by_the_watchdog(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 4);
    struct run r;
    start(&r, "threads", "read:2:eagain:always", 2, false, 0.1);
    assert_int_equal(read_once(r.st, 0, 0, ASKED, FILE_BYTES, r.memory, &r.err), -ETIMEDOUT);
    finish(&r);
}

static void a_transfer_that_has_failed_repeats_none_of_its_requests(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 4);
    struct run r;
    start(&r, "threads", "read:1:erofs,read:2:eagain:always", 2, false, 0.2);
    assert_int_equal(read_once(r.st, 0, 0, ASKED, FILE_BYTES, r.memory, &r.err), -EROFS);
    r.st->ops->counters(r.st, &r.count);
    assert_int_equal(r.count.requests, 2);
    finish(&r);
}

static void a_hung_read_is_reported_then_given_up(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 5);
    for (int b = 0; b < INNERS; b++) {
        for (int n = 1; n <= CHUNKS; n++) {
            char spec[128], line[64];
            struct run r;
            start(&r, inner[b], spec_of(spec, "read:%d:hang", n), depths[n % 3], false, 0.04);
            int rc = read_once(r.st, 0, 0, ASKED, FILE_BYTES, r.memory, &r.err);
            assert_int_equal(rc, -ETIMEDOUT);
            assert_string_equal(r.err.file, "f.bin");
            assert_non_null(strstr(r.err.message, "no completion"));
            /* once; on a busy machine also while healthy reads were late */
            assert_in_range(heard_count(&r.heard, "no completion"), 1, CHUNKS);
            snprintf(line, sizeof line, "in flight: read f.bin offset %d,", (n - 1) * CHUNK);
            assert_in_range(heard_count(&r.heard, line), 1, CHUNKS);
            uint64_t ticket = 0; /* everything fails from now on */
            struct ps_transfer x = {.bytes = PAGE, .expect = PAGE, .memory = r.memory};
            assert_int_equal(r.st->ops->submit(r.st, &x, &ticket, &r.err), -ETIMEDOUT);
            assert_int_equal(r.st->ops->flush(r.st, 0, &r.err), -ETIMEDOUT);
            finish(&r);
        }
    }
}

/* No fault here, only no patience: the requests are really in the kernel or in threads when given
 * up. */
static void giving_up_with_requests_under_way_ends_cleanly(void **state)
{
    (void)state;
    enum { BYTES = 32 << 20 };
    make_file("big.bin", BYTES, 5);
    int given_up = 0;
    for (int b = 0; b < 2; b++) {
        struct ps_storage_options opt = {
            .depth = 2, .chunk_bytes = 16 << 20, .warn_s = 1e-7, .abort_s = 1e-6};
        struct ps_storage *st = open_named(inner[b], &opt);
        char *m = aligned(BYTES);
        int f = st->ops->add_file(st, "big.bin", false, NULL, NULL);
        struct ps_error err = {0};
        int rc = read_once(st, f, 0, BYTES, BYTES, m, &err);
        assert_true(rc == -ETIMEDOUT || rc == 0);
        given_up += rc == -ETIMEDOUT;
        st->ops->close(st);
        memset(m, 0x33, BYTES);
        usleep(1000);
        assert_true(holds_byte(m, BYTES, 0x33));
        free(m);
    }
    assert_true(given_up > 0);
}

static void a_slow_disk_is_warned_about_and_waited_for(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 5);
    struct run r;
    start(&r, "threads", "read:2:delay=80", 1, false, 0.2);
    assert_int_equal(read_once(r.st, 0, 0, ASKED, FILE_BYTES, r.memory, &r.err), 0);
    assert_true(holds_file(r.memory, 0, FILE_BYTES, 5));
    assert_int_equal(heard_count(&r.heard, "no completion"), 1);
    finish(&r);
}

static void order_and_delays_do_not_change_the_data(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 6);
    for (int b = 0; b < INNERS; b++) {
        for (int seed = 1; seed <= 30; seed++) {
            char spec[128];
            struct run r;
            snprintf(spec, sizeof spec, "seed=%d,%s%s", seed, seed % 3 ? "reorder" : "jitter=50",
                     seed % 3 == 2 ? ",jitter=300" : "");
            run_reads(&r, inner[b], spec, depths[seed % 2 + 1]);
            assert_int_equal(r.rc, 0);
            assert_true(holds_file(r.memory, 0, FILE_BYTES, 6));
            assert_int_equal(r.count.read_bytes, FILE_BYTES);
            finish(&r);
        }
    }
}

/* The storage cannot see these two: checksums must. The test shows that the fault really does it.
 */
static void a_dropped_read_leaves_memory_and_a_flipped_one_differs_in_one_bit(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 7);
    for (int n = 1; n <= CHUNKS; n++) {
        char spec[128];
        struct run r;
        uint64_t at = (uint64_t)(n - 1) * CHUNK;
        uint64_t len = n < CHUNKS ? CHUNK : FILE_BYTES - at;
        run_reads(&r, "io_uring", spec_of(spec, "read:%d:drop", n), 3);
        assert_int_equal(r.rc, 0);
        assert_true(holds_byte(r.memory + at, len, 0xa5));
        assert_true(holds_file(r.memory, 0, at, 7));
        finish(&r);

        run_reads(&r, "io_uring", spec_of(spec, "read:%d:flip=1003", n), 3);
        assert_int_equal(r.rc, 0);
        assert_false(holds_file(r.memory, 0, FILE_BYTES, 7));
        r.memory[at + 125] ^= 1 << 3;
        assert_true(holds_file(r.memory, 0, FILE_BYTES, 7));
        finish(&r);
    }
}

static void transfers_can_be_counted_instead_of_requests(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 8);
    struct run r;
    run_reads(&r, "threads", "transfer-read:2:drop:always", 4);
    assert_int_equal(r.rc, 0);
    assert_true(holds_file(r.memory, 0, 3 * CHUNK, 8));
    assert_true(holds_byte(r.memory + 3 * CHUNK, ASKED - 3 * CHUNK, 0xa5));
    finish(&r);
    run_reads(&r, "threads", "transfer-any:2:drop", 4); /* only its first request */
    assert_true(holds_byte(r.memory + 3 * CHUNK, CHUNK, 0xa5));
    assert_true(holds_file(r.memory + 4 * CHUNK, 4 * CHUNK, FILE_BYTES - 4 * CHUNK, 8));
    finish(&r);
    run_reads(&r, "threads", "transfer-read:1:eio", 4);
    assert_int_equal(r.rc, 0);
    assert_int_equal(r.count.retries, 1);
    finish(&r);
}

static void a_direct_request_that_is_refused_at_first_leads_to_buffered_ones(void **state)
{
    (void)state;
    make_file("f.bin", FILE_BYTES, 9);
    for (int b = 0; b < 2; b++) {
        struct run r;
        run_reads(&r, inner[b], "read:1:einval", 3);
        if (r.rc == -EINVAL) {
            print_message("no direct transfers here\n");
            finish(&r);
            skip();
        }
        assert_int_equal(r.rc, 0);
        assert_true(holds_file(r.memory, 0, FILE_BYTES, 9));
        assert_int_equal(heard_count(&r.heard, "buffered"), 1);
        finish(&r);
        run_reads(&r, inner[b], "read:4:einval", 1); /* after one that worked it is a bug */
        assert_int_equal(r.rc, -EINVAL);
        finish(&r);
    }
}

/* The file holds seed 10; `memory` is what is written: seed 11. */
static void start_writes(struct run *r, const char *back_end, const char *spec, double abort_s)
{
    make_file("f.bin", ASKED, 10);
    start(r, back_end, spec, 3, true, abort_s);
    for (uint64_t i = 0; i < ASKED; i++)
        r->memory[i] = (char)file_byte(i, 11);
    r->rc = write_once(r->st, r->file, 0, ASKED, r->memory, &r->err);
    r->st->ops->counters(r->st, &r->count);
}

/* What the file holds now, read without the faults. */
static void read_back(char *to)
{
    FILE *f = fopen("f.bin", "rb");
    assert_non_null(f);
    assert_int_equal(fread(to, 1, ASKED, f), ASKED);
    fclose(f);
}

static void a_short_write_is_continued_and_succeeds(void **state)
{
    (void)state;
    static const char *const length[] = {"", "=0", "=1", "=512", "=4096", "=8191"};
    char *now = aligned(ASKED);
    for (int b = 0; b < 2; b++) {
        for (int n = 1; n <= CHUNKS; n++) {
            for (int l = 0; l < 6; l++) {
                char spec[128];
                snprintf(spec, sizeof spec, "write:%d:short%s", n, length[l]);
                struct run r;
                start_writes(&r, inner[b], spec, 30);
                assert_int_equal(r.rc, 0);
                assert_int_equal(r.count.short_transfers, 1);
                assert_int_equal(r.st->ops->flush(r.st, 0, &r.err), 0);
                finish(&r);
                read_back(now);
                assert_true(holds_file(now, 0, ASKED, 11));
            }
        }
    }
    free(now);
}

static void a_failed_write_is_final_and_nothing_is_written_after_it(void **state)
{
    (void)state;
    for (int b = 0; b < INNERS; b++) {
        for (int n = 1; n <= CHUNKS; n++) {
            char spec[128];
            struct run r;
            start_writes(&r, inner[b], spec_of(spec, "write:%d:eio", n), 30);
            assert_int_equal(r.rc, -EIO);
            assert_string_equal(r.err.file, "f.bin");
            assert_int_equal(r.count.retries, 0);
            uint64_t sent = r.count.requests;
            assert_int_equal(write_once(r.st, 0, 0, PAGE, r.memory, &r.err), -EIO);
            assert_int_equal(r.st->ops->flush(r.st, 0, &r.err), -EIO);
            assert_int_equal(read_once(r.st, 0, 0, PAGE, PAGE, r.memory, &r.err), 0);
            r.st->ops->counters(r.st, &r.count);
            assert_int_equal(r.count.requests, sent + 1); /* the read alone */
            finish(&r);
        }
    }
}

static void a_full_disk_can_be_waited_out(void **state)
{
    (void)state;
    struct run r;
    start_writes(&r, "threads", "write:2:enospc", 30);
    assert_int_equal(r.rc, -ENOSPC);
    assert_non_null(strstr(r.err.advice, "free space"));
    assert_int_equal(write_once(r.st, 0, 0, ASKED, r.memory, &r.err), 0);
    finish(&r);
}

static void a_failed_flush_is_never_repeated(void **state)
{
    (void)state;
    for (int b = 0; b < INNERS; b++) {
        struct run r;
        start_writes(&r, inner[b], "flush:1:eio", 30);
        assert_int_equal(r.rc, 0);
        assert_int_equal(r.st->ops->flush(r.st, 0, &r.err), -EIO);
        assert_string_equal(r.err.file, "f.bin");
        r.st->ops->counters(r.st, &r.count);
        uint64_t sent = r.count.requests;
        assert_int_equal(r.st->ops->flush(r.st, 0, &r.err), -EIO);
        assert_int_equal(write_once(r.st, 0, 0, PAGE, r.memory, &r.err), -EIO);
        r.st->ops->counters(r.st, &r.count);
        assert_int_equal(r.count.requests, sent);
        finish(&r);
        start_writes(&r, inner[b], "flush:1:hang", 0.1);
        assert_int_equal(r.st->ops->flush(r.st, 0, &r.err), -ETIMEDOUT);
        finish(&r);
    }
}

static void torn_and_dropped_writes_report_success(void **state)
{
    (void)state;
    char *now = aligned(ASKED);
    for (int n = 1; n <= CHUNKS; n++) {
        char spec[128];
        struct run r;
        uint64_t at = (uint64_t)(n - 1) * CHUNK, len = n < CHUNKS ? CHUNK : ASKED - at;
        start_writes(&r, "io_uring", spec_of(spec, "write:%d:tear=4096", n), 30);
        assert_int_equal(r.rc, 0);
        finish(&r);
        read_back(now);
        assert_true(holds_file(now, 0, at + PAGE, 11));
        assert_true(holds_file(now + at + PAGE, at + PAGE, len - PAGE, 10));
        assert_true(holds_file(now + at + len, at + len, ASKED - at - len, 11));

        start_writes(&r, "threads", spec_of(spec, "write:%d:drop", n), 30);
        assert_int_equal(r.rc, 0);
        finish(&r);
        read_back(now);
        assert_true(holds_file(now, 0, at, 11));
        assert_true(holds_file(now + at, at, len, 10));
        assert_true(holds_file(now + at + len, at + len, ASKED - at - len, 11));
    }
    free(now);
}

static void the_text_form_says_what_is_wrong_with_it(void **state)
{
    (void)state;
    static const char *const bad[] = {"read",
                                      "read:1",
                                      "read:0:eio",
                                      "read:x:eio",
                                      "read:-1:eio",
                                      "reed:1:eio",
                                      "read:1:eioo",
                                      "read:1:eio=3",
                                      "read:1:delay",
                                      "read:1:delay=x",
                                      "read:1:hang=1",
                                      "read:1:eio:never",
                                      "read:1:tear",
                                      "write:1:flip",
                                      "flush:1:short",
                                      "read:1:eio:once:once",
                                      "seed=",
                                      "seed=x",
                                      "jitter=100000000",
                                      "reorder=1",
                                      "read:1:short=99999999999999999999",
                                      "read:1:eio,bad",
                                      " read:1:eio"};
    struct ps_storage_fault f;
    memset(&f, 0x77, sizeof f);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct ps_error err = {0};
        assert_int_equal(ps_storage_fault_parse(&f, bad[i], &err), PS_EUSAGE);
        assert_true(strlen(err.message) > 10);
        assert_int_equal(f.item_count, 0x77777777);
    }
    assert_int_equal(ps_storage_fault_parse(&f, "", NULL), 0);
    assert_int_equal(f.item_count, 0);
    assert_int_equal(
        ps_storage_fault_parse(
            &f, "write:*:short=512:always,transfer-read:12:eio,seed=9,reorder,jitter=4", NULL),
        0);
    assert_int_equal(f.item_count, 2);
    assert_int_equal(f.item[0].op, PS_FAULT_WRITE);
    assert_int_equal(f.item[0].action, PS_FAULT_SHORT);
    assert_int_equal(f.item[0].value, 512);
    assert_int_equal(f.item[0].n, 0);
    assert_true(f.item[0].always);
    assert_int_equal(f.item[1].op, PS_FAULT_READ);
    assert_true(f.item[1].transfers);
    assert_int_equal(f.item[1].n, 12);
    assert_int_equal(f.item[1].code, -EIO);
    assert_false(f.item[1].always);
    assert_int_equal(f.seed, 9);
    assert_true(f.reorder);
    assert_int_equal(f.jitter_us, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_read_that_fails_once_is_read_again),
        cmocka_unit_test(a_read_that_always_fails_is_an_error_that_names_file_and_offset),
        cmocka_unit_test(other_errors_of_a_read_are_final_at_once),
        cmocka_unit_test(a_short_read_is_continued_and_succeeds),
        cmocka_unit_test(short_reads_without_progress_end),
        cmocka_unit_test(refusals_of_a_moment_are_tried_again),
        cmocka_unit_test(a_refusal_without_end_is_stopped_by_the_watchdog),
        cmocka_unit_test(a_transfer_that_has_failed_repeats_none_of_its_requests),
        cmocka_unit_test(a_hung_read_is_reported_then_given_up),
        cmocka_unit_test(giving_up_with_requests_under_way_ends_cleanly),
        cmocka_unit_test(a_slow_disk_is_warned_about_and_waited_for),
        cmocka_unit_test(order_and_delays_do_not_change_the_data),
        cmocka_unit_test(a_dropped_read_leaves_memory_and_a_flipped_one_differs_in_one_bit),
        cmocka_unit_test(transfers_can_be_counted_instead_of_requests),
        cmocka_unit_test(a_direct_request_that_is_refused_at_first_leads_to_buffered_ones),
        cmocka_unit_test(a_short_write_is_continued_and_succeeds),
        cmocka_unit_test(a_failed_write_is_final_and_nothing_is_written_after_it),
        cmocka_unit_test(a_full_disk_can_be_waited_out),
        cmocka_unit_test(a_failed_flush_is_never_repeated),
        cmocka_unit_test(torn_and_dropped_writes_report_success),
        cmocka_unit_test(the_text_form_says_what_is_wrong_with_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
