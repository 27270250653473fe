/* How a session's trainer reaches its files. */
#ifndef PS_SESSION_SESSION_IO_H
#define PS_SESSION_SESSION_IO_H

#include "runtime/base/log.h"
#include "runtime/train/trainer.h"
#include "session/options.h"

struct ps_session_io;

/* opt and log must live until destroy. Environment, for tests of whole runs: PENSTOCK_FAULT (see
 * offload/storage_fault.h), PENSTOCK_IO_WARN_S and PENSTOCK_IO_ABORT_S (the watchdog). */
int ps_session_io_create(struct ps_session_io **out, const struct ps_options *opt,
                         const struct ps_log *log, struct ps_error *err) PS_WARN_UNUSED;
/* After the trainer that uses it. NULL is legal. */
void ps_session_io_destroy(struct ps_session_io *io);

/* Directories of spill files and stores, made where they are ours: --nvme-path, or OUTPUT/spill; at
 * most PS_STRIPE_PATHS_MAX. Valid until destroy. */
int ps_session_io_paths(struct ps_session_io *io, const char **path, uint32_t *count,
                        struct ps_error *err) PS_WARN_UNUSED;

void ps_session_io_fill(struct ps_session_io *io, struct ps_trainer_io *out);

/* The back end in use and why; "" before the first lane was opened. */
const char *ps_session_io_used(const struct ps_session_io *io);

#endif
