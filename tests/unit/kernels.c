/* SPDX-License-Identifier: Apache-2.0 */
/* The harness, and the tests of conversions, transforms, copies and dispatch. */
#include "kernels_check.h"

const char *const kind_names[KINDS] = {"random",      "all low", "all high",       "denormal",
                                       "one outlier", "zero",    "outlier channel"};
const uint32_t check_dims[3] = {64, 128, 256};
const uint32_t check_groups[7] = {1, 2, 3, 4, 7, 8, 16};
uint64_t check_state;

uint64_t check_seed(void)
{
    const char *text = getenv("LODEMARK_TEST_SEED");
    return text ? strtoull(text, NULL, 10) : 20260408;
}

double check_uniform(void)
{
    check_state += 0x9e3779b97f4a7c15u;
    uint64_t z = (check_state ^ (check_state >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

double check_gaussian(void)
{
    double radius = sqrt(-2 * log(check_uniform()));
    return radius * cos(2 * M_PI * check_uniform());
}

uint32_t check_below(uint32_t n)
{
    return (uint32_t)(check_uniform() * n);
}

void check_fill(kind_t kind, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        switch (kind) {
        case ALL_LOW:
            x[i] = -3.0e4f;
            break;
        case ALL_HIGH:
            x[i] = 3.0e4f;
            break;
        case DENORMAL:
            x[i] = (float)(check_gaussian() * 1e-40);
            break;
        case ZERO:
            x[i] = 0;
            break;
        case CHANNEL: /* one of every 64 */
            x[i] = (float)check_gaussian() * (i % 64 == 17 ? 3000 : 1);
            break;
        default:
            x[i] = (float)check_gaussian();
        }
    if (kind == OUTLIER && n)
        x[check_below((uint32_t)n)] = 1.0e5f;
}

#ifdef __SANITIZE_ADDRESS__ /* it guards the end itself */
static const size_t behind = 0;
#else
static const size_t behind = GUARD_BYTES;
#endif

guarded_t guarded_make(size_t bytes, size_t skew)
{
    size_t total = GUARD_BYTES + skew + bytes + behind;
    guarded_t buffer = {NULL, bytes, malloc(total)};
    cr_assert(buffer.allocation != NULL, "no memory for %zu bytes", total);
    memset(buffer.allocation, POISON, total);
    buffer.at = buffer.allocation + GUARD_BYTES + skew;
    return buffer;
}

void guarded_free(guarded_t *buffer)
{
    for (uint8_t *at = buffer->allocation; at < buffer->at; at++)
        cr_assert(*at == POISON, "a kernel wrote %td bytes before its buffer", buffer->at - at);
    for (size_t i = 0; i < behind; i++)
        cr_assert(buffer->at[buffer->bytes + i] == POISON, "a kernel wrote %zu bytes behind its buffer", i);
    free(buffer->allocation);
    buffer->at = NULL;
}

const lode_ops_t *check_scalar(void)
{
    const lode_ops_t *ops;
    cr_assert(lode_ops_get("scalar", &ops) == LODE_OK);
    return ops;
}

void check_on(const char *level, void (*check)(const lode_ops_t *ops))
{
    const lode_ops_t *ops;
    lode_status_t status = lode_ops_get(level, &ops);
    if (status == LODE_ERR_UNSUPPORTED)
        cr_skip_test("no %s on this processor or in this build", level);
    cr_assert(status == LODE_OK);
    check_state = check_seed();
    check(ops);
}

#ifdef LODE_TEST_EMULATED
void lode_avx512vnni_landmark_score_emulated(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles,
                                             size_t n, const lode_landmark_query_t *queries, uint32_t group, float *out,
                                             size_t stride, float *scratch);
void lode_avx512vbmi_landmark_score_emulated(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles,
                                             size_t n, const lode_landmark_query_t *queries, uint32_t group, float *out,
                                             size_t stride, float *scratch);
void lode_amx_landmark_score_emulated(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                      const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                      float *scratch);

void check_emulated(const char *level, void (*check)(const lode_ops_t *ops))
{
    const lode_ops_t *below;
    if (lode_ops_get("avx512", &below) != LODE_OK)
        cr_skip_test("no avx512 on this processor, which the emulation of %s is made of", level);
    lode_ops_t ops = *below;
    ops.level = level;
    ops.landmark_score = strcmp(level, "avx512vnni") == 0   ? lode_avx512vnni_landmark_score_emulated
                         : strcmp(level, "avx512vbmi") == 0 ? lode_avx512vbmi_landmark_score_emulated
                                                            : lode_amx_landmark_score_emulated;
    check_state = check_seed();
    check(&ops);
}
#else
void check_emulated(const char *level, void (*check)(const lode_ops_t *ops))
{
    (void)check;
    cr_skip_test("%s is not for this processor family", level);
}
#endif

static const size_t lengths[] = {0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000};
#define LENGTHS (sizeof lengths / sizeof lengths[0])

/* ------------------------------------------------------------- conversions */

/* The number that a half-width code stands for, from its fields. */
static double decode_fields(uint32_t code, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    double mantissa = code & ((1u << mantissa_bits) - 1);
    double sign = code >> (exponent_bits + mantissa_bits) ? -1 : 1;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

/* The code nearest to x ≥ 0 among 0 … last, the even one of two; codes grow with their numbers. */
static uint32_t nearest_code(double x, uint32_t last, int exponent_bits, int mantissa_bits)
{
    uint32_t low = 0, high = last + 1; /* one past the last stands for the next power, where infinity begins */
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        *(decode_fields(middle, exponent_bits, mantissa_bits) <= x ? &low : &high) = middle;
    }
    double below = x - decode_fields(low, exponent_bits, mantissa_bits);
    double above = decode_fields(low + 1, exponent_bits, mantissa_bits) - x;
    return below < above || (below == above && low % 2 == 0) ? low : low + 1;
}

static void widen(const lode_ops_t *ops)
{
    static uint16_t codes[65536];
    static float wide[65536];
    for (uint32_t i = 0; i < 65536; i++)
        codes[i] = (uint16_t)i;
    for (int type = LODE_BF16; type <= LODE_FP16; type++) {
        int exponent_bits = type == LODE_BF16 ? 8 : 5, mantissa_bits = 15 - exponent_bits;
        uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
        ops->widen((lode_dtype_t)type, codes, wide, 65536);
        for (uint32_t i = 0; i < 65536; i++) {
            if ((i & 0x7fff) > infinity)
                expect(isnan(wide[i]), "type %d code %#x gave %g", type, i, wide[i]);
            else if ((i & 0x7fff) == infinity)
                expect(isinf(wide[i]) && (signbit(wide[i]) != 0) == (i >> 15), "type %d code %#x gave %g", type, i,
                       wide[i]);
            else
                expect(wide[i] == decode_fields(i, exponent_bits, mantissa_bits), "type %d code %#x gave %g", type, i,
                       wide[i]);
        }
    }
}
TEST_LEVELS(kernels, widen)

static float narrow_input(size_t i)
{
    static const float special[] = {0.0f,       -0.0f,     65504.0f, 65519.9f,  65520.0f,
                                    1e9f,       -1e9f,     0x1p-14f, 0x1p-24f,  0x1p-25f,
                                    0x1.8p-25f, 0x1p-149f, INFINITY, -INFINITY, 3.4028234e38f};
    if (i < sizeof special / sizeof special[0])
        return special[i];
    return (float)(check_gaussian() * exp2(40 * (check_uniform() - 0.5)));
}

static void narrow(const lode_ops_t *ops)
{
    enum { N = 20001 };
    static float x[N];
    for (size_t i = 0; i < N; i++)
        x[i] = narrow_input(i);
    for (int type = LODE_BF16; type <= LODE_FP16; type++) {
        int exponent_bits = type == LODE_BF16 ? 8 : 5, mantissa_bits = 15 - exponent_bits;
        uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
        guarded_t out = guarded_make(2 * N, 2);
        ops->narrow((lode_dtype_t)type, x, out.at, N);
        for (size_t i = 0; i < N; i++) {
            uint32_t sign = signbit(x[i]) ? 0x8000 : 0;
            uint32_t right =
                isinf(x[i]) ? infinity : nearest_code(fabs((double)x[i]), infinity - 1, exponent_bits, mantissa_bits);
            uint32_t got = lode_load16(out.at + 2 * i);
            expect(got == (sign | right), "type %d: %.9g gave %#x, not %#x", type, x[i], got, sign | right);
        }
        guarded_free(&out);
    }
}
TEST_LEVELS(kernels, narrow)

static void narrow_keeps_nan(const lode_ops_t *ops)
{
    float x[3] = {NAN, -NAN, lode_bits_float(0x7f800001)}, back[3];
    for (int type = LODE_BF16; type <= LODE_FP16; type++) {
        uint16_t half[3];
        ops->narrow((lode_dtype_t)type, x, half, 3);
        ops->widen((lode_dtype_t)type, half, back, 3);
        for (int i = 0; i < 3; i++)
            expect(isnan(back[i]), "type %d element %d became %g", type, i, back[i]);
    }
}
TEST_LEVELS(kernels, narrow_keeps_nan)

/* Odd lengths, odd addresses, nothing written but what was asked for; all types agree with scalar. */
static void convert_lengths(const lode_ops_t *ops)
{
    const lode_ops_t *scalar = check_scalar();
    for (int type = LODE_BF16; type <= LODE_FP32; type++)
        for (size_t i = 0; i < LENGTHS; i++) {
            size_t n = lengths[i], size = type == LODE_FP32 ? 4 : 2;
            guarded_t x = guarded_make(4 * n, 4), half = guarded_make(size * n, size), wide = guarded_make(4 * n, 4);
            guarded_t half2 = guarded_make(size * n, 0), wide2 = guarded_make(4 * n, 0);
            check_fill(RANDOM, (float *)x.at, n);
            ops->narrow((lode_dtype_t)type, (float *)x.at, half.at, n);
            scalar->narrow((lode_dtype_t)type, (float *)x.at, half2.at, n);
            expect(memcmp(half.at, half2.at, size * n) == 0, "type %d, n = %zu", type, n);
            ops->widen((lode_dtype_t)type, half.at, (float *)wide.at, n);
            scalar->widen((lode_dtype_t)type, half.at, (float *)wide2.at, n);
            expect(memcmp(wide.at, wide2.at, 4 * n) == 0, "type %d, n = %zu", type, n);
            guarded_free(&x);
            guarded_free(&half);
            guarded_free(&half2);
            guarded_free(&wide);
            guarded_free(&wide2);
        }
}
TEST_LEVELS(kernels, convert_lengths)

static void first_nonfinite(const lode_ops_t *ops)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < LENGTHS; i++) {
        size_t n = lengths[i];
        guarded_t x = guarded_make(4 * n, 4);
        float *at = (float *)x.at;
        check_fill(OUTLIER, at, n);
        if (n > 3)
            at[3] = 3.4028234e38f;
        expect(ops->first_nonfinite(at, n) == n, "n = %zu", n);
        for (size_t place = n; place-- > 0;) { /* each earlier one hides the later ones */
            at[place] = bad[place % 3];
            expect(ops->first_nonfinite(at, n) == place, "n = %zu, place %zu", n, place);
        }
        guarded_free(&x);
    }
}
TEST_LEVELS(kernels, first_nonfinite)

/* -------------------------------------------------------------- transforms */

static void rotate(const lode_ops_t *ops)
{
    enum { ROWS = 3 };
    for (int d = 0; d < 3; d++)
        for (int kind = 0; kind < KINDS; kind++) {
            uint32_t dim = check_dims[d], half = dim / 2;
            guarded_t x = guarded_make(4 * ROWS * dim, 4);
            float before[ROWS * 256], cosine[128], sine[128];
            check_fill((kind_t)kind, (float *)x.at, ROWS * dim);
            memcpy(before, x.at, 4 * ROWS * dim);
            for (uint32_t i = 0; i < half; i++) {
                double angle = 100 * check_uniform();
                cosine[i] = (float)cos(angle);
                sine[i] = (float)sin(angle);
            }
            ops->rotate((float *)x.at, ROWS, dim, cosine, sine);
            for (uint32_t i = 0; i < ROWS * dim; i++) {
                uint32_t at = i % dim, pair = at % half;
                double a = before[i], other = before[at < half ? i + half : i - half];
                double right =
                    at < half ? a * cosine[pair] - other * sine[pair] : a * cosine[pair] + other * sine[pair];
                double size = fabs(a) + fabs(other) + 1e-38;
                expect(fabs(((float *)x.at)[i] - right) <= 2e-7 * size, "dim %u %s [%u]: %g, not %g", dim,
                       kind_names[kind], i, ((float *)x.at)[i], right);
            }
            guarded_free(&x);
        }
}
TEST_LEVELS(kernels, rotate)

/* Against the matrix (−1)^popcount(i and j) / sqrt(dim) in double; and the same to the bit as scalar. */
static void hadamard(const lode_ops_t *ops)
{
    static const uint32_t dims[] = {1, 2, 8, 16, 32, 64, 128, 256, 512};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
        for (int kind = 0; kind < KINDS; kind++) {
            uint32_t dim = dims[d], rows = 2;
            guarded_t x = guarded_make(4 * rows * dim, 4);
            float *at = (float *)x.at, before[1024], plain[1024];
            check_fill((kind_t)kind, at, rows * dim);
            memcpy(before, at, 4 * rows * dim);
            memcpy(plain, at, 4 * rows * dim);
            ops->hadamard(at, rows, dim);
            check_scalar()->hadamard(plain, rows, dim);
            expect(memcmp(at, plain, 4 * rows * dim) == 0, "dim %u, %s", dim, kind_names[kind]);
            double norm[2] = {0}, after[2] = {0};
            for (uint32_t i = 0; i < rows * dim; i++) {
                double right = 0, size = 1e-38;
                for (uint32_t j = 0; j < dim; j++) {
                    double term = before[i / dim * dim + j];
                    right += __builtin_popcount(i % dim & j) % 2 ? -term : term;
                    size += fabs(term);
                }
                expect(fabs(at[i] - right / sqrt(dim)) <= 1e-6 * size, "dim %u %s [%u]: %g, not %g", dim,
                       kind_names[kind], i, at[i], right / sqrt(dim));
                norm[i / dim] += (double)before[i] * before[i];
                after[i / dim] += (double)at[i] * at[i];
            }
            for (uint32_t row = 0; row < rows && kind != DENORMAL; row++)
                expect(fabs(norm[row] - after[row]) <= 1e-5 * norm[row], "dim %u %s: norm² %g became %g", dim,
                       kind_names[kind], norm[row], after[row]);
            guarded_free(&x);
        }
}
TEST_LEVELS(kernels, hadamard)

/* The same to the bit as scalar, which is near to double; rows that are not whole parts. */
static void project(const lode_ops_t *ops)
{
    for (int d = 0; d < 3; d++)
        for (uint32_t rows = 0; rows < 10; rows++) {
            uint32_t dim = check_dims[d];
            guarded_t matrix = guarded_make(4 * dim * dim, 4), x = guarded_make(4 * dim * rows, 4),
                      plain = guarded_make(4 * dim * rows, 4);
            check_fill(RANDOM, (float *)matrix.at, dim * dim);
            check_fill(RANDOM, (float *)x.at, dim * rows);
            memcpy(plain.at, x.at, 4 * dim * rows);
            float first[LODE_MAX_DIM];
            memcpy(first, x.at, rows ? 4 * dim : 0);
            ops->project((float *)matrix.at, dim, (float *)x.at, rows);
            check_scalar()->project((float *)matrix.at, dim, (float *)plain.at, rows);
            expect(memcmp(x.at, plain.at, 4 * dim * rows) == 0, "dim %u, %u rows: not as scalar", dim, rows);
            for (uint32_t j = 0; rows && j < dim; j++) {
                double right = 0, size = 0;
                for (uint32_t i = 0; i < dim; i++) {
                    double term = (double)first[i] * ((float *)matrix.at)[i * dim + j];
                    right += term;
                    size += fabs(term);
                }
                expect(fabs(((float *)x.at)[j] - right) <= 1e-5 * size, "dim %u column %u: %g, not %g", dim, j,
                       ((float *)x.at)[j], right);
            }
            guarded_free(&matrix);
            guarded_free(&x);
            guarded_free(&plain);
        }
}
TEST_LEVELS(kernels, project)

static void dot_rows(const lode_ops_t *ops)
{
    static const uint32_t dims[] = {1, 5, 16, 33, 64, 100, 128, 256};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
        for (uint32_t rows = 0; rows < 6; rows++)
            for (int kind = 0; kind < KINDS; kind++) {
                uint32_t dim = dims[d];
                guarded_t a = guarded_make(4 * dim, 4), x = guarded_make(4 * dim * rows, 4),
                          y = guarded_make(4 * rows, 4);
                check_fill(RANDOM, (float *)a.at, dim);
                check_fill((kind_t)kind, (float *)x.at, (size_t)dim * rows);
                ops->dot_rows((float *)a.at, (float *)x.at, rows, dim, (float *)y.at);
                for (uint32_t row = 0; row < rows; row++) {
                    double right = 0, size = 1e-38;
                    for (uint32_t i = 0; i < dim; i++) {
                        double term = (double)((float *)a.at)[i] * ((float *)x.at)[row * dim + i];
                        right += term;
                        size += fabs(term);
                    }
                    expect(fabs(((float *)y.at)[row] - right) <= 5e-6 * size, "dim %u row %u %s: %g, not %g", dim, row,
                           kind_names[kind], ((float *)y.at)[row], right);
                }
                guarded_free(&a);
                guarded_free(&x);
                guarded_free(&y);
            }
}
TEST_LEVELS(kernels, dot_rows)

static void gather(const lode_ops_t *ops)
{
    static const size_t sizes[] = {1, 8, 63, 64, 65, 72, 136, 264, 520, 1032};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (size_t count = 0; count < 40; count += 13) {
            size_t bytes = sizes[s];
            guarded_t dst = guarded_make(bytes * count, s % 8);
            guarded_t *pieces = calloc(count + 1, sizeof *pieces);
            const uint8_t **src = calloc(count + 1, sizeof *src);
            for (size_t i = 0; i < count; i++) {
                pieces[i] = guarded_make(bytes, i % 16);
                for (size_t j = 0; j < bytes; j++)
                    pieces[i].at[j] = (uint8_t)check_below(256);
                src[i] = pieces[i].at;
            }
            ops->gather(dst.at, src, count, bytes);
            for (size_t i = 0; i < count; i++) {
                expect(memcmp(dst.at + i * bytes, src[i], bytes) == 0, "piece %zu of %zu, %zu bytes", i, count, bytes);
                guarded_free(&pieces[i]);
            }
            guarded_free(&dst);
            free(pieces);
            free(src);
        }
}
TEST_LEVELS(kernels, gather)

/* ---------------------------------------------------------------- dispatch */

Test(kernels, levels, .timeout = 20)
{
    const lode_ops_t *ops = NULL, *again = NULL;
    cr_assert(lode_ops_get("sse9", &ops) == LODE_ERR_INVALID);
    cr_assert(lode_ops_get("", &ops) == LODE_ERR_INVALID);
    cr_assert(ops == NULL, "an output was written on failure");
    cr_assert(lode_ops_get("auto", &ops) == LODE_OK);
    cr_assert(lode_ops_get(ops->level, &again) == LODE_OK);
    cr_assert(ops == again, "auto is %s, yet that name gives another table", ops->level);
    for (size_t i = 0; i < sizeof *ops / sizeof(void *); i++)
        cr_assert(((void *const *)ops)[i] != NULL, "operation %zu of %s is not filled", i, ops->level);
}

Test(kernels, backends, .timeout = 20)
{
    lode_backend_t backend;
    const lode_ops_t *ops;
    uint32_t count = 0;
    bool usable = true;
    for (; lode_backend_query(count, &backend) && strcmp(backend.name, "cuda") != 0; count++) {
        cr_assert(count > 0 || strcmp(backend.name, "scalar") == 0);
        cr_assert(backend.compiled && (usable || !backend.usable), "%s without the level below it", backend.name);
        usable = backend.usable;
        cr_assert(lode_ops_get(backend.name, &ops) == (usable ? LODE_OK : LODE_ERR_UNSUPPORTED), "%s", backend.name);
    }
    cr_assert(!lode_backend_query(count + 1, &backend));
    cr_assert(lode_ops_get("scalar", &ops) == LODE_OK);
    cr_assert(lode_ops_get("amx", &ops) != LODE_ERR_INVALID, "a level that is lacking is not an unknown one");
}
