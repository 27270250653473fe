/* Which machine this is: see host_machine.h. */
#include "session/host_machine.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/isa.h"
#include "session/host_cores.h"

/* The processor's name as /proc/cpuinfo has it, blanks collapsed; "unknown processor" without. */
static void processor_name(char *buf, size_t size)
{
    PS_IGNORE(snprintf(buf, size, "unknown processor") < 0, "fits");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f)
        return;
    char line[256];
    while (fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon)
            continue;
        size_t n = 0;
        for (const char *p = colon + 1; *p && n + 1 < size; p++) {
            unsigned char c = (unsigned char)*p;
            bool blank = c <= ' ' || c > '~';
            if (!blank)
                buf[n++] = (char)c;
            else if (n > 0 && buf[n - 1] != ' ')
                buf[n++] = ' ';
        }
        while (n > 0 && buf[n - 1] == ' ')
            n--;
        buf[n] = '\0';
        break;
    }
    fclose(f);
}

uint64_t ps_host_memory_total(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
}

char *ps_host_machine(char *buf, size_t size)
{
    char name[160];
    processor_name(name, sizeof name);
    int cores = ps_host_core_count();
    double gib = (double)ps_host_memory_total() / (1024.0 * 1024 * 1024);
    PS_IGNORE(snprintf(buf, size, "%s, %d core%s, %.0f GiB, %s", name, cores, cores == 1 ? "" : "s",
                       gib, ps_isa_name(ps_isa_detect())) < 0,
              "cut where it does not fit");
    return buf;
}

int ps_host_profile_path(char *buf, size_t size, struct ps_error *err)
{
    const char *home = getenv("HOME");
    if (!home || !home[0])
        return ps_error_full(err, -ENOENT, NULL, "HOME", "name the file: --output or --hardware",
                             "HOME is not set, so there is no place for the hardware profile");
    int n = snprintf(buf, size, "%s/.config/penstock/hardware.json", home);
    if (n < 0 || (size_t)n >= size)
        return ps_error_full(err, -ENAMETOOLONG, NULL, "HOME", NULL, "HOME is too long a path");
    return 0;
}
