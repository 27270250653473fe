/* Physical cores: see host_cores.h. */
#include "session/host_cores.h"

#include <sched.h>
#include <stdio.h>

#include "runtime/base/status.h"

/* The lowest CPU that shares a core with `cpu`; cpu itself if the system does not say. */
static int first_sibling(int cpu)
{
    char path[96];
    PS_IGNORE(snprintf(path, sizeof path,
                       "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu) < 0,
              "fits");
    FILE *f = fopen(path, "re");
    if (!f)
        return cpu;
    int first;
    int got = fscanf(f, "%d", &first);
    fclose(f);
    return got == 1 && first >= 0 && first <= cpu ? first : cpu;
}

int ps_host_core_count(void)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed))
        return 1;
    /* a core counts with the first of its allowed CPUs */
    cpu_set_t seen;
    CPU_ZERO(&seen);
    int count = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET((size_t)cpu, &allowed))
            continue;
        int core = first_sibling(cpu);
        count += !CPU_ISSET((size_t)core, &seen);
        CPU_SET((size_t)core, &seen);
    }
    return count > 0 ? count : 1;
}
