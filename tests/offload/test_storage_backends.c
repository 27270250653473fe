/* The storage back ends: the same bytes from each, whatever the depth and the chunk; the ends of
 * files; files that are not what was planned. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/offload/storage_check.h"

enum { PAGE = 4096 };

/* 1 MiB and 8292 - 4096 odd bytes. */
#define FILE_BYTES (((uint64_t)1 << 20) + 4196)

static void every_back_end_reads_the_same_bytes_at_every_depth(void **state)
{
    (void)state;
    static const uint32_t depth[] = {1, 2, 3, 8, 64};
    static const uint32_t chunk[] = {4096, 3 * 4096, 65536, 4 << 20};
    uint64_t asked = (FILE_BYTES + PAGE - 1) / PAGE * PAGE;
    char *to = aligned(asked + PAGE);
    make_file("a.bin", FILE_BYTES, 1);
    for (int n = 0; n < NAMES; n++) {
        for (int d = 0; d < 5; d++) {
            for (int c = 0; c < 4; c++) {
                struct ps_storage_options opt = {.depth = depth[d], .chunk_bytes = chunk[c]};
                struct ps_storage *st = open_named(names[n], &opt);
                int f = st->ops->add_file(st, "a.bin", false, NULL, NULL);
                assert_int_equal(f, 0);
                memset(to, 0xa5, asked + PAGE);
                struct ps_error err = {0};
                assert_int_equal(read_once(st, f, 0, asked, FILE_BYTES, to, &err), 0);
                assert_true(holds_file(to, 0, FILE_BYTES, 1));
                assert_true(holds_byte(to + asked, PAGE, 0xa5));
                struct ps_storage_counters k;
                st->ops->counters(st, &k);
                assert_int_equal(k.read_bytes, FILE_BYTES);
                assert_int_equal(k.requests, (asked + chunk[c] - 1) / chunk[c]);
                assert_int_equal(k.short_transfers, 0);
                assert_int_equal(k.retries, 0);
                st->ops->close(st);
            }
        }
    }
    free(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_back_end_reads_the_same_bytes_at_every_depth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
