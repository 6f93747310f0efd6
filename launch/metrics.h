/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file metrics.h
 * @brief A rank's statistics as a page for Prometheus, by HTTP on loopback. docs/metrics.md names what is on it.
 *
 * A thread of libmicrohttpd answers; it only reads what lode_rank_stats_here() may read from any thread, so that a page
 * never waits for a step and no step for a page.
 */
#ifndef LODE_LAUNCH_METRICS_H
#define LODE_LAUNCH_METRICS_H

#include "base/base.h"

/** The row for a daemon's option table. */
#define LODE_METRICS_OPTION                                                                                          \
    {                                                                                                                \
        "metrics-port", "0", LODE_OPTION_COUNT, NULL, 0, 65000,                                                      \
            "port on 127.0.0.1 for Prometheus (/metrics, /healthz); each further rank of a host takes the next; 0: " \
            "none"                                                                                                   \
    }

/** Fill @p stats; called by another thread than the one that started the page. */
typedef void (*lode_metrics_source_t)(void *context, lode_rank_stats_t *stats);

typedef struct lode_metrics *lode_metrics_h;

/** @p port plus this rank's number among those of its host, as the launcher says; 0 for 0. */
uint32_t lode_metrics_port(uint64_t port);
/**
 * Serve /metrics and /healthz on 127.0.0.1.
 * @param[in]  port     as it is; 0: start nothing and set @p metrics to NULL
 * @param[in]  source   called for every page
 * @param[in]  context  borrowed until lode_metrics_stop()
 * @return ::LODE_ERR_IO: the port is taken
 */
lode_status_t lode_metrics_start(uint32_t port, lode_metrics_source_t source, void *context, lode_metrics_h *metrics);
/** End the page. NULL is fine. */
void lode_metrics_stop(lode_metrics_h *metrics);

/** The page. @return NULL without memory; free() it. */
char *lode_metrics_text(const lode_rank_stats_t *stats);

#endif
