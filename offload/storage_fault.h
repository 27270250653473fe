/* Injected storage faults, for tests: a back end that wraps another one and fails, shortens,
 * delays, hangs, tears, drops, corrupts or reorders chosen operations.
 *
 * The faults sit under the core (storage_core.c), where a kernel's results would come from: a
 * shortened request is continued, a failing read is read again, a hung one is found by the
 * watchdog.
 *
 * As text (ps_storage_fault_parse), items separated by commas:
 *
 *   OP:N:ACTION[=VALUE][:once|:always]
 *   seed=S          of reorder and jitter; 1
 *   reorder         completions come back in random order (each waits for all that are in flight)
 *   jitter=US       each request completes after a random delay of up to US microseconds
 *
 *   OP      read, write, flush or any: N counts requests of that kind as they are handed over,
 *           continuations and re-reads included, from 1;
 *           transfer-read, transfer-write, transfer-any: N counts transfers, of which the first
 * request (once) or every one (always) is concerned N       1, 2, ..., or * for every one ACTION an
 * errno in lower case (eio, enospc, edquot, eagain, ebusy, eintr, einval, enodata, eilseq,
 *                      eremoteio, erofs, efbig, enomem, ecanceled): nothing is done, that is the
 * result short[=B]  only the first B bytes are moved and reported; default: half delay=MS   done,
 * and reported MS milliseconds later hang       never done and never reported tear[=B]   writes:
 * the first B bytes (rounded down to 4096) reach the file, all are reported; default: half drop
 * reported as done, but not done flip[=BIT] reads: that bit of the data is inverted, counted from
 * its start; default: 0 once    (default) the N-th operation alone; for an errno on a read the
 * re-read then succeeds always  also each later request that touches the range of the first one
 *
 * Examples: "read:7:eio", "read:7:eio:always", "write:3:short=512",
 * "read:*:delay=5,seed=3,reorder". */
#ifndef PS_OFFLOAD_STORAGE_FAULT_H
#define PS_OFFLOAD_STORAGE_FAULT_H

#include "runtime/train/storage.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_fault_op { PS_FAULT_READ, PS_FAULT_WRITE, PS_FAULT_FLUSH, PS_FAULT_ANY };

enum ps_fault_action {
    PS_FAULT_FAIL,
    PS_FAULT_SHORT,
    PS_FAULT_DELAY,
    PS_FAULT_HANG,
    PS_FAULT_TEAR,
    PS_FAULT_DROP,
    PS_FAULT_FLIP,
};

struct ps_storage_fault_item {
    enum ps_fault_op op;
    bool transfers; /* N counts transfers, not requests */
    bool always;
    uint64_t n; /* from 1; 0: every one */
    enum ps_fault_action action;
    int code;      /* FAIL: -errno */
    int64_t value; /* bytes, milliseconds or bit; -1: the default */
};

#define PS_STORAGE_FAULT_ITEMS 8

/* All zero: no fault. */
struct ps_storage_fault {
    struct ps_storage_fault_item item[PS_STORAGE_FAULT_ITEMS];
    uint32_t item_count;
    uint64_t seed;
    uint32_t jitter_us;
    bool reorder;
};

/* From text. PS_EUSAGE names the item and what is wrong with it; *out is then untouched. */
int ps_storage_fault_parse(struct ps_storage_fault *out, const char *text,
                           struct ps_error *err) PS_WARN_UNUSED;

/* As ps_storage_open_auto (`inner`, `why`), with the faults between. Its ops->name is "fault". */
int ps_storage_open_fault(struct ps_storage **out, const char *inner,
                          const struct ps_storage_fault *fault,
                          const struct ps_storage_options *opt, char *why,
                          struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
