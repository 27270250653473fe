/* State of the storage core, shared by storage_core.c (moving), storage_judge.c (results)
 * and storage_report.c (words). */
#ifndef PS_OFFLOAD_STORAGE_CORE_INTERNAL_H
#define PS_OFFLOAD_STORAGE_CORE_INTERNAL_H

#include "offload/storage_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A transfer, in slot (ticket - 1) % transfer_max.
 *
 *   free -> live (submit) -> finished (cut == end or code != 0, and in_flight == 0) -> free (waited
 * for, or found finished without error by a later submit) */
struct ps__transfer {
    struct ps_transfer x;
    uint64_t ticket; /* 0: never used */
    uint64_t end;    /* bytes to request: min(bytes, expect rounded up to a block) */
    uint64_t cut;    /* bytes already cut into requests */
    uint32_t in_flight;
    int code;             /* 0, or why it failed */
    uint64_t fail_offset; /* in the file */
    bool live;            /* not yet waited for */
};

enum ps__request_state { PS__REQUEST_FREE, PS__REQUEST_PENDING, PS__REQUEST_IN_FLIGHT };

/* A piece of a transfer: bytes [rel, rel + len) of it. */
struct ps__request {
    enum ps__request_state state;
    enum ps__io_kind kind;
    uint32_t transfer; /* slot; transfer_max: the flush */
    uint32_t file;
    uint64_t rel;
    uint32_t len;
    uint32_t expect;   /* bytes of len that must arrive */
    uint32_t done;     /* bytes that have */
    uint32_t furthest; /* largest `done` so far */
    uint32_t stalls;   /* short transfers without progress */
    uint32_t rereads;
    uint32_t again; /* EAGAIN and kin in a row */
    bool direct;    /* as it was issued */
    double issued_s;
    double not_before_s;
};

struct ps__core {
    struct ps_storage st; /* first: the caller's pointer */
    struct ps_storage_ops ops;
    struct ps__engine *engine;
    struct ps_storage_options opt;
    struct ps_log log;
    struct ps__file *file;
    uint32_t file_count;
    struct ps__transfer *transfer; /* transfer_max + 1: the last one is the flush */
    uint64_t ticket_last;          /* newest ticket given out */
    uint64_t ticket_cut;           /* oldest ticket not yet cut to its end */
    struct ps__request *request;   /* depth */
    uint32_t request_busy;         /* not free */
    uint32_t pending;              /* waiting to be issued */
    uint32_t in_flight;            /* in the engine */
    struct ps__io_done *done;      /* depth */
    struct ps_storage_counters counters;
    double progress_s; /* of the last completion, or of the first issue after idling */
    bool warned;       /* the watchdog has spoken since then */
    bool buffered_warned;
    int write_code; /* sticky: why writes are refused, and what failed */
    uint32_t write_file;
    uint64_t write_offset; /* UINT64_MAX: a flush */
    int dead;       /* sticky: why everything is refused */
    uint32_t dead_in_flight;
};

/* Judge the result `res` of r, which the engine has given back: r is free or pending afterwards,
 * and what failed is noted in its transfer. Returns whether the result counts as a sign of life for
 * the watchdog. */
bool ps__core_judge(struct ps__core *c, struct ps__request *r, int32_t res, double now_s);

/* The in-flight table, one warning line a request. */
void ps__core_report_in_flight(const struct ps__core *c, double now_s);

/* Words for what made transfer t fail; returns t->code. */
int ps__core_transfer_error(const struct ps__core *c, const struct ps__transfer *t, bool flush,
                            struct ps_error *err);

/* Words for c->write_code; returns it. */
int ps__core_write_error(const struct ps__core *c, struct ps_error *err);

/* Words for c->dead; returns it. `file`: the one that the caller is interested in. */
int ps__core_dead_error(const struct ps__core *c, uint32_t file, struct ps_error *err);

#ifdef __cplusplus
}
#endif
#endif
