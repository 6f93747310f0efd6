/* SPDX-License-Identifier: Apache-2.0 */
/** Checks and threads for plain test programs, which ThreadSanitizer can run; Criterion it cannot. */
#ifndef LODE_TESTS_THREADS_H
#define LODE_TESTS_THREADS_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition, ...)                                               \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fputc('\n', stderr);                                            \
            exit(1);                                                        \
        }                                                                   \
    } while (0)

/** Run count bodies at once, the i-th with argument i as a pointer, and wait for all. */
static inline void at_once(void *(*const *bodies)(void *), size_t count)
{
    pthread_t threads[16];
    for (size_t i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, bodies[i], (void *)i) == 0, "thread %zu", i);
    for (size_t i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

#endif
