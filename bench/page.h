/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file page.h
 * @brief What pages of reports share.
 */
#ifndef LODE_BENCH_PAGE_H
#define LODE_BENCH_PAGE_H

#include <jansson.h>
#include <stdio.h>

/** Text for a page: what HTML would take for its own is told otherwise. */
void lode_page_escape(FILE *out, const char *text);
/** A list of keys of a report and what they say; what it lacks is left out. */
void lode_page_settings(FILE *out, const json_t *report, const char *const *keys, size_t count);

#endif
