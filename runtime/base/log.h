/* Log callback: the library never prints, it calls the function that its user gave. */
#ifndef PS_BASE_LOG_H
#define PS_BASE_LOG_H

#include "runtime/base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ps_log_level { PS_LOG_DEBUG, PS_LOG_INFO, PS_LOG_WARN, PS_LOG_ERROR };

/* `fn` may be NULL (silence). It is called on the thread that logs; `arg` must live as long as the
 * object that holds the log. */
struct ps_log {
    void (*fn)(void *arg, enum ps_log_level level, const char *message);
    void *arg;
};

/* Format one line (no trailing newline, at most 1023 bytes) and hand it to the callback; `log` may
 * be NULL. Allocates nothing. */
void ps_log(const struct ps_log *log, enum ps_log_level level, const char *fmt, ...)
    PS_PRINTF(3, 4);

#ifdef __cplusplus
}
#endif
#endif
