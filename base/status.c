/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <string.h>

#include "base/base.h"

static _Thread_local char message[512];

const char *lode_status_string(lode_status_t status)
{
    switch (status) {
    case LODE_OK:
        return "ok";
    case LODE_ERR_INVALID:
        return "invalid argument";
    case LODE_ERR_UNSUPPORTED:
        return "not supported here";
    case LODE_ERR_GEOMETRY:
        return "does not fit the geometry";
    case LODE_ERR_NONFINITE:
        return "not a finite number";
    case LODE_ERR_NAME_IN_USE:
        return "name in use";
    case LODE_ERR_NOT_FOUND:
        return "not found";
    case LODE_ERR_SEALED:
        return "block is sealed";
    case LODE_ERR_DROPPED:
        return "block was dropped";
    case LODE_ERR_FULL:
        return "no room left";
    case LODE_ERR_FORMAT:
        return "torn or foreign data";
    case LODE_ERR_IO:
        return "input or output failed";
    case LODE_ERR_PAGE_LOST:
        return "page lost";
    case LODE_ERR_PEER_LOST:
        return "peer lost";
    case LODE_ERR_TIMEOUT:
        return "deadline missed";
    case LODE_ERR_REFUSED:
        return "refused by the service";
    case LODE_ERR_NO_MEMORY:
        return "out of memory";
    case LODE_ERR_MPI:
        return "MPI failed";
    case LODE_ERR_UCX:
        return "UCX failed";
    case LODE_ERR_INTERNAL:
        return "defect in Lodemark";
    case LODE_ERR_DEVICE:
        return "GPU failed";
    }
    return "unknown status";
}

const char *lode_error_message(void)
{
    return message;
}

const char *lode_version(void)
{
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
    return TEXT(LODE_VERSION_MAJOR) "." TEXT(LODE_VERSION_MINOR) "." TEXT(LODE_VERSION_PATCH);
}

lode_status_t lode_fail(lode_status_t status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    lode_debug("%s: %s", lode_status_string(status), message);
    return status;
}

lode_status_t lode_fail_within(lode_status_t status, const char *format, ...)
{
    char old[sizeof message];
    memcpy(old, message, sizeof old);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (length >= 0 && (size_t)length < sizeof message)
        snprintf(message + length, sizeof message - (size_t)length, "%s", old);
    return status;
}
