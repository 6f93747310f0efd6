/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linked into sanitized programs in place of functions of libc that make the leaks of MPI's libraries
 * impossible to name in a suppression. Nothing of ours calls them.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define INSTEAD_OF_LIBC __attribute__((visibility("default")))

INSTEAD_OF_LIBC int dlclose(void *handle);
INSTEAD_OF_LIBC int __vasprintf_chk(char **text, int flag, const char *format, va_list arguments);
INSTEAD_OF_LIBC int __asprintf_chk(char **text, int flag, const char *format, ...);

/* MPI unloads its modules before leaks are looked for, and frames of an unloaded module have no name. */
int dlclose(void *handle)
{
    (void)handle;
    return 0;
}

/*
 * libc allocates deep inside these, in code without frame pointers, where the fast unwinder loses the caller.
 * The slow one (fast_unwind_on_malloc=0) would find it, but makes every MPI program start four times slower.
 */
int __vasprintf_chk(char **text, int flag, const char *format, va_list arguments)
{
    (void)flag;
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, again);
    va_end(again);
    char *made = length < 0 ? NULL : malloc((size_t)length + 1);
    if (!made)
        return -1;
    *text = made;
    return vsnprintf(made, (size_t)length + 1, format, arguments);
}

int __asprintf_chk(char **text, int flag, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = __vasprintf_chk(text, flag, format, arguments);
    va_end(arguments);
    return length;
}
