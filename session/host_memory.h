/* How much host memory this process may use. */
#ifndef PS_SESSION_HOST_MEMORY_H
#define PS_SESSION_HOST_MEMORY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that are free now: MemAvailable of /proc/meminfo, or what the memory limits of this
 * process's control groups (version 1 or 2) leave, whichever is less. -1 if the system does not
 * say. `--host-mem auto` is 80% of it. */
int64_t ps_host_memory_free(void);

#ifdef __cplusplus
}
#endif
#endif
