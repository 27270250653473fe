/* What the files of the doctor share. */
#ifndef PS_SESSION_DOCTOR_INTERNAL_H
#define PS_SESSION_DOCTOR_INTERNAL_H

#include <stdint.h>

#include "session/doctor.h"

/* Append a check; `found` is formatted. Returns it, to be given its advice. Never NULL: past the
 * last place the last one is overwritten. */
struct ps_doctor_check *ps__doctor_add(struct ps_doctor_report *r, const char *name,
                                       enum ps_doctor_state state, const char *found, ...)
    PS_PRINTF(4, 5);
void ps__doctor_advise(struct ps_doctor_check *c, const char *advice, ...) PS_PRINTF(2, 3);

/* "1.2 GiB" into buf of at least 24 bytes. Returns buf. */
const char *ps__doctor_bytes(char *buf, size_t size, uint64_t bytes);

/* First line of a small file without its newline; false when it cannot be read. */
bool ps__doctor_line(const char *path, char *buf, size_t size);

void ps__doctor_gpu(struct ps_doctor_report *r);
void ps__doctor_memory(struct ps_doctor_report *r);
void ps__doctor_uring(struct ps_doctor_report *r);
void ps__doctor_path(struct ps_doctor_report *r, const char *path, bool given);

#endif
