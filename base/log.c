/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};

atomic_int lode_log_threshold = LODE_LOG_WARN;
static int log_rank = -1;

lode_status_t lode_log_set(const char *level)
{
    if (strcmp(level, "off") == 0) {
        lode_log_threshold = LODE_LOG_OFF;
        return LODE_OK;
    }
    for (int i = 0; i <= LODE_LOG_TRACE; i++) {
        if (strcmp(level, level_names[i]) == 0) {
            lode_log_threshold = i;
            return LODE_OK;
        }
    }
    return lode_fail(LODE_ERR_INVALID, "log level \"%s\": known are off, error, warn, info, debug, trace", level);
}

void lode_log_rank(int rank)
{
    log_rank = rank;
}

/* One write a line, so that lines of ranks that share a terminal do not mix. */
void lode_log_write(lode_log_level_t level, const char *format, ...)
{
    char line[1024], host[64] = "?";
    struct timespec now;
    struct tm calendar;
    gethostname(host, sizeof host - 1);
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &calendar);
    size_t used = strftime(line, sizeof line, "%H:%M:%S", &calendar);
    used += (size_t)snprintf(line + used, sizeof line - used, ".%03ld lodemark %s", now.tv_nsec / 1000000, host);
    if (log_rank >= 0)
        used += (size_t)snprintf(line + used, sizeof line - used, " rank %d", log_rank);
    used += (size_t)snprintf(line + used, sizeof line - used, " %s: ", level_names[level]);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    va_end(arguments);
    if (length > 0)
        used += (size_t)length < sizeof line - used - 1 ? (size_t)length : sizeof line - used - 2;
    line[used++] = '\n';
    if (write(STDERR_FILENO, line, used) < 0)
        return; /* nowhere left to say so */
}
