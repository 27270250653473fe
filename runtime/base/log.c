/* Log callback: see log.h. */
#include "runtime/base/log.h"

#include <stdarg.h>
#include <stdio.h>

void ps_log(const struct ps_log *log, enum ps_log_level level, const char *fmt, ...)
{
    if (!log || !log->fn)
        return;
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (n >= 0)
        log->fn(log->arg, level, line);
}
