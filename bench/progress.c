/* SPDX-License-Identifier: Apache-2.0 */
#include <unistd.h>

#include "bench/job.h"
#include "bench/progress.h"

enum { WIDTH = 24 };

void lode_progress_begin(lode_progress_t *progress, const char *what, uint64_t total)
{
    *progress = (lode_progress_t){.what = what, .total = total, .begin_ns = lode_now_ns()};
    progress->shown = total && isatty(STDERR_FILENO) && lode_job_rank_hint() == 0;
}

void lode_progress_at(lode_progress_t *progress, uint64_t done)
{
    uint64_t now = progress->shown ? lode_now_ns() : 0;
    if (!progress->shown || now - progress->shown_ns < 100000000u)
        return;
    progress->shown_ns = now;
    double share = (double)done / (double)progress->total;
    double spent = (double)(now - progress->begin_ns) * 1e-9;
    char bar[WIDTH + 1] = {0};
    for (int i = 0; i < WIDTH; i++)
        bar[i] = i < share * WIDTH ? '=' : ' ';
    fprintf(stderr, "\r%-20s [%s] %3.0f %%", progress->what, bar, share * 100);
    if (spent > 1 && share > 0.01)
        fprintf(stderr, "  %.0f s left ", spent / share - spent);
}

void lode_progress_end(lode_progress_t *progress)
{
    if (progress->shown && progress->shown_ns)
        fprintf(stderr, "\r\033[K");
    progress->shown = false;
}
