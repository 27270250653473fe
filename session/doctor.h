/* What of this machine is right for streaming, and what to do about the rest: `penstock doctor`. */
#ifndef PS_SESSION_DOCTOR_H
#define PS_SESSION_DOCTOR_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_doctor_state {
    PS_DOCTOR_OK,
    PS_DOCTOR_WARN, /* runs, but slower or less safely than it could */
    PS_DOCTOR_BAD,  /* prevents running */
};

#define PS_DOCTOR_TEXT_MAX 512
struct ps_doctor_check {
    const char *name; /* static storage */
    enum ps_doctor_state state;
    char found[PS_DOCTOR_TEXT_MAX];
    char advice[PS_DOCTOR_TEXT_MAX]; /* "" where nothing is to be done */
};

#define PS_DOCTOR_PATH_MAX 8
#define PS_DOCTOR_CHECK_MAX 64
struct ps_doctor_report {
    struct ps_doctor_check check[PS_DOCTOR_CHECK_MAX];
    size_t count;
    bool ok; /* no check is PS_DOCTOR_BAD */
};

struct ps_doctor_options {
    const char *const *paths; /* (path_count,) where frozen weights or spill files would lie; none:
                                 the current directory, which then prevents nothing */
    size_t path_count;        /* at most PS_DOCTOR_PATH_MAX */
    const char *hardware;     /* profile; NULL: ps_host_profile_path */
};

/* Look at the machine. In each path a nameless file of 1 MiB is written and read back; nothing else
 * is changed. Checks, in order: cpu, gpu, driver, with a driver also cuda and with a card pinned,
 * ram, cgroup, swap, huge_pages, memlock, io_uring; for each path filesystem, o_direct, free_space;
 * hardware_profile. Returns 0 whatever is found, -ENOMEM, or PS_EUSAGE for too many paths. */
int ps_doctor(struct ps_doctor_report *out, const struct ps_doctor_options *opt,
              struct ps_error *err) PS_WARN_UNUSED;

/* As lines for a person, or as {"ok":bool,"checks":[{"name","ok","found","advice"}]}: a check's ok
 * is false for warnings too, the report's only where something prevents running. *text is to be
 * freed with free(). 0 or -ENOMEM. */
int ps_doctor_print(const struct ps_doctor_report *r, bool json, char **text,
                    struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
