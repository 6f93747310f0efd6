/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the two vector grids of the HIGGS codecs and prints them as kernels/higgs_grid.c.
 *
 * A grid of 256 points in d dimensions that minimises the mean squared error of a standard Gaussian is
 * found by Lloyd's algorithm, begun as k-means++ does: each starting point is drawn from the training points
 * with a chance that grows with its distance from those drawn before. The training points are quasi-random (an additive
 * recurrence through the inverse normal distribution), so that a million of them stand for the Gaussian more evenly
 * than chance would. The seeds are constants and no clock or thread takes part: the output is the same on every run.
 * The error that is printed was measured on other, pseudo-random points.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POINTS 256
#define MAX_D 4
#define SAMPLES (1u << 20)
#define START_SAMPLES (1u << 16)
#define ROUNDS 300

typedef struct grid {
    uint32_t d;
    float at[MAX_D][POINTS]; /* coordinate-major, so that the distance loop runs over neighbours in memory */
} grid_t;

/* Inverse of the normal distribution: a logistic first guess, then Newton's steps on erfc. */
static double normal_quantile(double p)
{
    double x = p < 0.5 ? -1.0 : 1.0;
    x *= fabs(log(p / (1 - p))) / 1.702;
    for (int step = 0; step < 60; step++) {
        double density = exp(-0.5 * x * x) * 0.3989422804014327;
        double error = 0.5 * erfc(-x * 0.7071067811865476) - p;
        double move = error / density;
        move = fmax(-0.5, fmin(0.5, move)); /* far out the density is tiny and a full step would overshoot */
        x -= move;
        if (fabs(move) < 1e-12)
            break;
    }
    return x;
}

/* The next of a pseudo-random sequence in (0, 1). */
static double uniform(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = (*state ^ (*state >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

/* samples (SAMPLES, d): the recurrence by powers of the root of g^(d+1) = g + 1. */
static void fill_samples(uint32_t d, float *samples)
{
    double g = 1.5;
    for (int i = 0; i < 200; i++)
        g = pow(1 + g, 1.0 / (d + 1));
    double step[MAX_D], at[MAX_D];
    for (uint32_t j = 0; j < d; j++) {
        step[j] = pow(g, -(double)(j + 1));
        at[j] = 0.5;
    }
    for (size_t i = 0; i < SAMPLES; i++)
        for (uint32_t j = 0; j < d; j++) {
            at[j] += step[j];
            at[j] -= floor(at[j]);
            samples[i * d + j] = (float)normal_quantile(fmin(fmax(at[j], 1e-9), 1 - 1e-9));
        }
}

static uint32_t nearest(const grid_t *grid, const float *x, float *error)
{
    float distance[POINTS] = {0};
    for (uint32_t j = 0; j < grid->d; j++)
        for (uint32_t i = 0; i < POINTS; i++)
            distance[i] += (grid->at[j][i] - x[j]) * (grid->at[j][i] - x[j]);
    uint32_t best = 0;
    for (uint32_t i = 1; i < POINTS; i++)
        if (distance[i] < distance[best])
            best = i;
    *error = distance[best];
    return best;
}

/* One round of Lloyd's algorithm: every point moves to the mean of the samples that chose it. Returns the error. */
static double settle(grid_t *grid, const float *samples)
{
    static double sum[POINTS][MAX_D];
    static size_t votes[POINTS];
    memset(sum, 0, sizeof sum);
    memset(votes, 0, sizeof votes);
    double total = 0;
    for (size_t i = 0; i < SAMPLES; i++) {
        float error;
        uint32_t best = nearest(grid, samples + i * grid->d, &error);
        for (uint32_t j = 0; j < grid->d; j++)
            sum[best][j] += samples[i * grid->d + j];
        votes[best]++;
        total += error;
    }
    for (uint32_t i = 0; i < POINTS; i++)
        for (uint32_t j = 0; j < grid->d && votes[i]; j++)
            grid->at[j][i] = (float)(sum[i][j] / (double)votes[i]);
    return total / SAMPLES / grid->d;
}

/* Draw the starting points. The power 1.2 of the distance (k-means++ takes 2) spares the far tails. */
static void start(grid_t *grid, const float *samples)
{
    static double weight[START_SAMPLES];
    static float least[START_SAMPLES];
    uint64_t state = 7;
    size_t pick = 0;
    for (size_t i = 0; i < START_SAMPLES; i++)
        least[i] = INFINITY;
    for (uint32_t n = 0; n < POINTS; n++) {
        double total = 0;
        for (uint32_t j = 0; j < grid->d; j++)
            grid->at[j][n] = samples[pick * grid->d + j];
        for (size_t i = 0; i < START_SAMPLES; i++) {
            float distance = 0;
            for (uint32_t j = 0; j < grid->d; j++)
                distance += (samples[i * grid->d + j] - grid->at[j][n]) * (samples[i * grid->d + j] - grid->at[j][n]);
            least[i] = distance < least[i] ? distance : least[i];
            total += weight[i] = pow(least[i], 0.6);
        }
        double mark = uniform(&state) * total;
        for (pick = 0; pick < START_SAMPLES - 1 && mark >= weight[pick]; pick++)
            mark -= weight[pick];
    }
}

static void train(grid_t *grid, uint32_t d)
{
    float *samples = malloc(sizeof *samples * SAMPLES * d);
    if (!samples) {
        fprintf(stderr, "higgs_grid: no memory for %u samples\n", SAMPLES);
        exit(1);
    }
    fill_samples(d, samples);
    grid->d = d;
    start(grid, samples);
    for (int round = 0; round < ROUNDS; round++) {
        double error = settle(grid, samples);
        if (round % 50 == 0)
            fprintf(stderr, "higgs_grid: d = %u, round %d, error %.6f\n", d, round, error);
    }
    free(samples);
}

/* Error a dimension on pseudo-random points that took no part in the training. */
static double fresh_error(const grid_t *grid)
{
    uint64_t state = 20260408;
    double total = 0;
    for (size_t i = 0; i < SAMPLES; i++) {
        float x[MAX_D], error;
        for (uint32_t j = 0; j < grid->d; j++)
            x[j] = (float)normal_quantile(uniform(&state));
        nearest(grid, x, &error);
        total += error;
    }
    return total / SAMPLES / grid->d;
}

static int by_place(const void *a, const void *b)
{
    const float *x = a, *y = b;
    for (int j = 0; j < MAX_D; j++)
        if (x[j] != y[j])
            return x[j] < y[j] ? -1 : 1;
    return 0;
}

static void print_grid(const grid_t *grid)
{
    static float rows[POINTS][MAX_D];
    for (uint32_t i = 0; i < POINTS; i++)
        for (uint32_t j = 0; j < MAX_D; j++)
            rows[i][j] = j < grid->d ? grid->at[j][i] : 0;
    qsort(rows, POINTS, sizeof rows[0], by_place);
    printf("\n/* Error a dimension on fresh Gaussian points: %.6f. */\n", fresh_error(grid));
    printf("_Alignas(64) const float lode_higgs_grid%u[256][%u] = {\n", grid->d, grid->d);
    uint32_t a_line = 8 / grid->d;
    for (uint32_t i = 0; i < POINTS; i++) {
        printf("%s{", i % a_line ? " " : "    ");
        for (uint32_t j = 0; j < grid->d; j++)
            printf("%s%.7ff", j ? ", " : "", rows[i][j]);
        printf("},%s", (i + 1) % a_line ? "" : "\n");
    }
    printf("};\n");
}

int main(void)
{
    static grid_t grid;
    printf("/* SPDX-License-Identifier: Apache-2.0 */\n"
           "/*\n"
           " * Made by tools/higgs_grid.c: `cmake --build build --target higgs_grid && build/bin/higgs_grid\n"
           " * > kernels/higgs_grid.c`. The grids are a constant of the storage format: other numbers here make\n"
           " * every stored HIGGS record and landmark unreadable.\n"
           " */\n"
           "/* clang-format off */\n"
           "#include \"kernels/kernels.h\"\n");
    train(&grid, 2);
    print_grid(&grid);
    train(&grid, 4);
    print_grid(&grid);
    return fflush(stdout) == 0 && !ferror(stdout) ? 0 : 1;
}
