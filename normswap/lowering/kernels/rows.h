/* What the kernels share: sixteen numbers at a time, parameters, threads and a row's statistics.
 *
 * A row is read once, kept as float32 in the first-level cache while its statistics are taken, and
 * written once. Every statistic is float32, and that of a sum is of the sum before it is rounded to
 * the tensors' type.
 */
#ifndef NORMSWAP_ROWS_H
#define NORMSWAP_ROWS_H

#include "norms.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

/* Below this many elements a second thread costs more than it saves (torch's grain). */
#define GRAIN 32768

static inline void over_rows(int64_t rows, int64_t columns, parallel_for_fn parallel_for,
                             range_fn work, void *task) {
    int64_t grain = columns < GRAIN ? GRAIN / columns : 1;
    if (rows <= grain || parallel_for(0, rows, grain, work, task)) {
        work(0, rows, task);
    }
}

/* ---- sixteen numbers at a time ---------------------------------------------------------- */

INLINE vf spread(float value) {
    return (vf){0} + value;
}

INLINE float total(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float t[LANES];
    memcpy(t, &v, sizeof t);
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) t[i] += t[i + step];
    return t[0];
#endif
}

INLINE vf from_bfloat16(vh half) {
#if defined(__AVX512F__)
    vu bits = (vu)_mm512_cvtepu16_epi32((__m256i)half); /* gcc makes five instructions of it */
#else
    vu bits = __builtin_convertvector(half, vu);
#endif
    return (vf)(bits << 16);
}

INLINE vh to_bfloat16(vf value) {
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)value);
#else
    vu bits = (vu)value;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    vu nan = (vu)(value != value);
    return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), vh);
#endif
}

INLINE vf from_float16(vh half) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)half);
#elif defined(__F16C__)
    __m128i part[2];
    __m256 wide[2];
    vf value;
    memcpy(part, &half, sizeof part);
    for (int i = 0; i < 2; i++) wide[i] = _mm256_cvtph_ps(part[i]);
    memcpy(&value, wide, sizeof value);
    return value;
#else
    _Float16 part[LANES];
    vf value;
    memcpy(part, &half, sizeof part);
    for (int i = 0; i < LANES; i++) value[i] = (float)part[i];
    return value;
#endif
}

INLINE vh to_float16(vf value) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    __m256 wide[2];
    __m128i part[2];
    vh half;
    memcpy(wide, &value, sizeof wide);
    for (int i = 0; i < 2; i++) part[i] = _mm256_cvtps_ph(wide[i], _MM_FROUND_TO_NEAREST_INT);
    memcpy(&half, part, sizeof half);
    return half;
#else
    _Float16 part[LANES];
    vh half;
    for (int i = 0; i < LANES; i++) part[i] = (_Float16)value[i];
    memcpy(&half, part, sizeof half);
    return half;
#endif
}

INLINE int64_t width(int type) {
    return type == FLOAT32 ? 4 : 2;
}

/* `count` is LANES but for a row's last numbers; the lanes after them are zero. */
INLINE vf load(const char *row, int64_t i, int count, int type) {
    const char *from = row + i * width(type);
    if (type == FLOAT32) {
        vf value = {0};
        memcpy(&value, from, 4 * count);
        return value;
    }
    vh half = {0};
    memcpy(&half, from, 2 * count);
    return type == BFLOAT16 ? from_bfloat16(half) : from_float16(half);
}

INLINE void store(char *row, int64_t i, int count, int type, vf value) {
    char *to = row + i * width(type);
    if (type == FLOAT32) {
        memcpy(to, &value, 4 * count);
        return;
    }
    vh half = type == BFLOAT16 ? to_bfloat16(value) : to_float16(value);
    memcpy(to, &half, 2 * count);
}

/* Runs a block over a row with `i`, `count` and `k`: which of the UNROLL accumulators to use, so
 * that additions do not wait for each other. Whole vectors see constants. */
#define UNROLL 4
#define OVER_ROW(columns, ...)                                              \
    do {                                                                    \
        int64_t first = 0;                                                  \
        for (; first + UNROLL * LANES <= (columns); first += UNROLL * LANES) { \
            _Pragma("GCC unroll 4") for (int k = 0; k < UNROLL; k++) {      \
                const int64_t i = first + k * LANES;                        \
                const int count = LANES;                                    \
                __VA_ARGS__                                                 \
            }                                                               \
        }                                                                   \
        for (; first + LANES <= (columns); first += LANES) {                \
            const int64_t i = first;                                        \
            const int k = 0, count = LANES;                                 \
            (void)k;                                                        \
            __VA_ARGS__                                                     \
        }                                                                   \
        if (first < (columns)) {                                            \
            const int64_t i = first;                                        \
            const int k = 0, count = (int)((columns) - first);              \
            (void)k;                                                        \
            __VA_ARGS__                                                     \
        }                                                                   \
    } while (0)

INLINE vf added(const vf *accumulators) {
    return (accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3]);
}

/* The first `count` lanes; the others become zero. */
INLINE vf keep(vf value, int count) {
    if (count == LANES) return value;
    const vi index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (vf)((vi)value & (index < count));
}

/* ---- parameters: one float32 row each ---------------------------------------------------- */

/* The parameter itself if it is float32, else `scratch`, filled with it or with `absent`. */
static inline const char *as_float32(parameter p, float absent, int64_t columns, float *scratch) {
    if (p.data && p.type == FLOAT32) return p.data;
    for (int64_t i = 0; i < columns; i += LANES) {
        int count = columns - i < LANES ? (int)(columns - i) : LANES;
        vf value = p.data ? load(p.data, i, count, p.type) : spread(absent);
        store((char *)scratch, i, count, FLOAT32, value);
    }
    return (const char *)scratch;
}

INLINE int64_t padded(int64_t columns) {
    return (columns + LANES - 1) / LANES * LANES;
}

/* `count` rows of float32, aligned to a cache line; NULL without memory. */
static inline float *scratch_rows(int64_t count, int64_t columns) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, 4 * count * padded(columns)) ? NULL : memory;
}

/* ---- statistics --------------------------------------------------------------------------- */

/* Rows that are worked on together: what is found of one is waited for while the others go on. */
#define ROWS 4
#define IN_CACHE (2 << 20) /* bytes */

typedef struct {
    float mean, shift, rstd; /* (x - mean) * rstd + shift is the normalised value */
} statistics;

/* Two passes over each row: the mean, then the centred values and their squares. What the rounded
 * mean leaves in the centred values is taken off again (the corrected two-pass algorithm; Chan,
 * Golub, LeVeque 1983), so that rows of mean 1e4 keep their accuracy. */
INLINE void layer_statistics(int rows, const vf *sums, const char *const *row, int64_t columns,
                             double epsilon, statistics *found) {
    const double share = 1.0 / columns;
    float mean[ROWS];
    vf rests[ROWS], squared[ROWS];
    for (int j = 0; j < rows; j++) mean[j] = (float)(total(sums[j]) * share);
    for (int j = 0; j < rows; j++) {
        vf rest[UNROLL] = {{0}}, squares[UNROLL] = {{0}};
        OVER_ROW(columns, {
            vf d = keep(load(row[j], i, count, FLOAT32) - mean[j], count);
            rest[k] += d;
            squares[k] += d * d;
        });
        rests[j] = added(rest);
        squared[j] = added(squares);
    }
    for (int j = 0; j < rows; j++) {
        const double left = total(rests[j]) * share;
        double variance = total(squared[j]) * share - left * left;
        if (variance < 0) variance = 0;
        const double rstd = 1 / sqrt(variance + epsilon);
        /* x - mean is exact where the mean is large; where it is small its rounding would show. */
        if (fabs(mean[j] * rstd) < 1)
            found[j] = (statistics){0, (float)(-(mean[j] + left) * rstd), (float)rstd};
        else
            found[j] = (statistics){mean[j], (float)(-left * rstd), (float)rstd};
    }
}

INLINE void rms_statistics(int rows, const vf *squares, int64_t columns, double epsilon,
                           statistics *found) {
    for (int j = 0; j < rows; j++) {
        const double mean = total(squares[j]) / (double)columns;
        found[j] = (statistics){0, 0, (float)(1 / sqrt(mean + epsilon))};
    }
}

/* Of `rows` rows, whose sums (centred) or sums of squares are `found`. */
INLINE void row_statistics(int rows, const vf *found, const char *const *row, int64_t columns,
                           double epsilon, int centred, statistics *of) {
    if (centred) layer_statistics(rows, found, row, columns, epsilon, of);
    else rms_statistics(rows, found, columns, epsilon, of);
}

INLINE vf normed(vf v, statistics s, int centred) {
    return centred ? (v - s.mean) * s.rstd + s.shift : v * s.rstd;
}

#endif
