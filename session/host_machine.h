/* Which machine this is, and where its hardware profile lies. */
#ifndef PS_SESSION_HOST_MACHINE_H
#define PS_SESSION_HOST_MACHINE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "AMD EPYC 9R14, 2 cores, 23 GiB, avx512_bf16" into buf: processor, physical cores that this
 * process may use, memory, best instruction set. The same text on the same machine under the same
 * affinity, so a profile with another text is another machine's. Always NUL-terminated. Returns
 * buf. */
char *ps_host_machine(char *buf, size_t size);

/* Bytes of memory of the machine; 0 if the system does not say. */
uint64_t ps_host_memory_total(void);

/* The hardware profile of this machine: $HOME/.config/penstock/hardware.json. Returns 0, or -ENOENT
 * without HOME, -ENAMETOOLONG. */
int ps_host_profile_path(char *buf, size_t size, struct ps_error *err) PS_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
