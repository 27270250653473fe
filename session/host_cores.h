/* How many threads are worth having by default. */
#ifndef PS_SESSION_HOST_CORES_H
#define PS_SESSION_HOST_CORES_H

#ifdef __cplusplus
extern "C" {
#endif

/* Physical cores among the CPUs that this process may run on (its affinity mask): CPUs that share a
 * core count once. Where the system does not say which CPUs share a core, each CPU counts. At
 * least 1. */
int ps_host_core_count(void);

#ifdef __cplusplus
}
#endif
#endif
