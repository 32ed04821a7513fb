/* LayerNorm and RMSNorm over rows of C contiguous numbers, for the CPU.
 *
 * A row is read once, kept as float32 in the first-level cache while its statistics are taken, and
 * written once. Every statistic is float32, and that of a sum is of the sum before it is rounded to
 * the tensors' type.
 */
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

static void over_rows(int64_t rows, int64_t columns, parallel_for_fn parallel_for, range_fn work,
                      void *task) {
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
static const char *as_float32(parameter p, float absent, int64_t columns, float *scratch) {
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
static float *scratch_rows(int64_t count, int64_t columns) {
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

/* ---- forward ------------------------------------------------------------------------------ */

typedef struct {
    const forward_call *call;
    int failed;
} forward_task;

typedef struct {
    const char *weight, *bias, *scale; /* float32; scale may be NULL */
    float *rows;                       /* ROWS of them */
} forward_scratch;

INLINE void forward_rows(int64_t first, int rows, const forward_call *c, const forward_scratch *s,
                         int type, int add, int centred) {
    const int64_t columns = c->columns, step = columns * width(type);
    const char *row[ROWS];
    vf found[ROWS]; /* sums, or sums of squares */
    for (int j = 0; j < rows; j++) {
        const int64_t offset = (first + j) * step;
        const char *branch = c->branch + offset, *residual = add ? c->residual + offset : NULL;
        char *sum = add ? c->sum + offset : NULL;
        char *copy = (char *)(s->rows + j * padded(columns));
        /* What is float32 already needs no copy of the row. */
        row[j] = type != FLOAT32 ? copy : add ? sum : branch;
        vf sums[UNROLL] = {{0}};
        OVER_ROW(columns, {
            vf v = load(branch, i, count, type);
            if (add) {
                if (s->scale) v = v * load(s->scale, i, count, FLOAT32);
                v = v + load(residual, i, count, type);
                store(sum, i, count, type, v);
            }
            if (type != FLOAT32) store(copy, i, count, FLOAT32, v);
            sums[k] += centred ? v : v * v;
        });
        found[j] = added(sums);
    }
    statistics of[ROWS];
    if (centred) layer_statistics(rows, found, row, columns, c->epsilon, of);
    else rms_statistics(rows, found, columns, c->epsilon, of);
    for (int j = 0; j < rows; j++) {
        char *normalised = c->normalised + (first + j) * step;
        const float mean = of[j].mean, shift = of[j].shift, rstd = of[j].rstd;
        OVER_ROW(columns, {
            (void)k;
            vf v = load(row[j], i, count, FLOAT32);
            v = centred ? (v - mean) * rstd + shift : v * rstd;
            v = v * load(s->weight, i, count, FLOAT32);
            if (centred) v = v + load(s->bias, i, count, FLOAT32);
            store(normalised, i, count, type, v);
        });
    }
}

INLINE void forward_range(int64_t begin, int64_t end, forward_task *t, int type, int add,
                          int centred) {
    const forward_call *c = t->call;
    const int64_t columns = c->columns, next = padded(columns);
    float *scratch = scratch_rows(3 + ROWS, columns);
    if (!scratch) {
        t->failed = 1;
        return;
    }
    const forward_scratch s = {
        as_float32(c->weight, 1, columns, scratch),
        as_float32(c->bias, 0, columns, scratch + next),
        c->scale.data ? as_float32(c->scale, 1, columns, scratch + 2 * next) : NULL,
        scratch + 3 * next};
    /* Where memory is what is waited for, a row by itself is written sooner after it is read. */
    const int64_t bytes = c->rows * columns * width(type);
    const int alone = c->normalised != c->branch && bytes > IN_CACHE;
    int64_t r = begin;
    for (; !alone && r + ROWS <= end; r += ROWS) forward_rows(r, ROWS, c, &s, type, add, centred);
    for (; r < end; r++) forward_rows(r, 1, c, &s, type, add, centred);
    free(scratch);
}

#define FORWARD(NAME, TYPE, ADD, CENTRED)                                        \
    static void NAME(int64_t begin, int64_t end, void *task) {                   \
        forward_range(begin, end, task, TYPE, ADD, CENTRED);                     \
    }
#define FORWARDS(TYPE)                        \
    FORWARD(layer_##TYPE, TYPE, 0, 1)         \
    FORWARD(rms_##TYPE, TYPE, 0, 0)           \
    FORWARD(add_layer_##TYPE, TYPE, 1, 1)     \
    FORWARD(add_rms_##TYPE, TYPE, 1, 0)
FORWARDS(FLOAT32)
FORWARDS(BFLOAT16)
FORWARDS(FLOAT16)
#define ENTRIES(TYPE) {{rms_##TYPE, layer_##TYPE}, {add_rms_##TYPE, add_layer_##TYPE}}
static const range_fn forwards[3][2][2] = {ENTRIES(FLOAT32), ENTRIES(BFLOAT16), ENTRIES(FLOAT16)};

int norm_forward(const forward_call *call, parallel_for_fn parallel_for) {
    forward_task task = {call, 0};
    range_fn work = forwards[call->type][call->residual != NULL][call->centred];
    over_rows(call->rows, call->columns, parallel_for, work, &task);
    return task.failed;
}

/* ---- backward ----------------------------------------------------------------------------- */

/* With h = (x - mean) * rstd and g = grad * weight,
 *     dx = rstd * (g - mean(g) - h * mean(g * h)) + grad_sum, dweight = sum(grad * h),
 *     dbias = sum(grad) over the rows; RMSNorm has neither mean(g) nor dbias.
 * The statistics are taken again: the row is in the cache, and nothing had to be saved. */
typedef struct {
    const backward_call *call;
    float *partial; /* blocks x 2 x padded columns: dweight, dbias */
    int64_t block;  /* rows in one */
    int failed;
} backward_task;

typedef struct {
    const char *weight;            /* float32 */
    char *rows;                    /* ROWS of float32, for halves */
    char *grad_weight, *grad_bias; /* float32, to be added to */
} backward_scratch;

INLINE void backward_rows(int64_t first, int rows, const backward_call *c,
                          const backward_scratch *s, int type, int centred) {
    const int64_t columns = c->columns, step = columns * width(type), next = 4 * padded(columns);
    const char *row[ROWS], *grad = c->grad + first * step;
    vf found[ROWS]; /* sums, or sums of squares */
    for (int j = 0; j < rows; j++) {
        const char *x = c->x + (first + j) * step;
        char *copy = s->rows + j * next;
        row[j] = type != FLOAT32 ? copy : x;
        vf sums[UNROLL] = {{0}};
        OVER_ROW(columns, {
            vf v = load(x, i, count, type);
            if (type != FLOAT32) store(copy, i, count, FLOAT32, v);
            sums[k] += centred ? v : v * v;
        });
        found[j] = added(sums);
    }
    statistics of[ROWS];
    if (centred) layer_statistics(rows, found, row, columns, c->epsilon, of);
    else rms_statistics(rows, found, columns, c->epsilon, of);
    vf of_g[ROWS] = {{0}}, of_gh[ROWS] = {{0}};
    OVER_ROW(columns, {
        (void)k;
        const vf weight = load(s->weight, i, count, FLOAT32);
        vf grad_weight = load(s->grad_weight, i, count, FLOAT32);
        vf grad_bias = centred ? load(s->grad_bias, i, count, FLOAT32) : spread(0);
        for (int j = 0; j < rows; j++) {
            vf v = load(row[j], i, count, FLOAT32);
            vf g = load(grad + j * step, i, count, type);
            v = centred ? (v - of[j].mean) * of[j].rstd + of[j].shift : v * of[j].rstd;
            vf h = keep(v, count);
            grad_weight += g * h;
            grad_bias += g;
            g = g * weight;
            of_g[j] += g;
            of_gh[j] += g * h;
        }
        store(s->grad_weight, i, count, FLOAT32, grad_weight);
        if (centred) store(s->grad_bias, i, count, FLOAT32, grad_bias);
    });
    for (int j = 0; j < rows; j++) {
        const float mean_g = centred ? total(of_g[j]) / columns : 0;
        const float mean_gh = total(of_gh[j]) / columns, rstd = of[j].rstd;
        const float mean = of[j].mean, shift = of[j].shift;
        const char *own_grad = grad + j * step;
        const char *grad_sum = c->grad_sum ? c->grad_sum + (first + j) * step : NULL;
        char *grad_x = c->grad_x + (first + j) * step;
        OVER_ROW(columns, {
            (void)k;
            vf v = load(row[j], i, count, FLOAT32);
            vf g = load(own_grad, i, count, type) * load(s->weight, i, count, FLOAT32);
            vf h = centred ? (v - mean) * rstd + shift : v * rstd;
            v = (g - mean_g - h * mean_gh) * rstd;
            if (grad_sum) v = v + load(grad_sum, i, count, type);
            store(grad_x, i, count, type, v);
        });
    }
}

INLINE void backward_blocks(int64_t begin, int64_t end, backward_task *t, int type, int centred) {
    const backward_call *c = t->call;
    const int64_t next = padded(c->columns);
    float *scratch = scratch_rows(1 + ROWS, c->columns);
    if (!scratch) {
        t->failed = 1;
        return;
    }
    backward_scratch s = {as_float32(c->weight, 1, c->columns, scratch), (char *)(scratch + next),
                          NULL, NULL};
    for (int64_t b = begin; b < end; b++) {
        s.grad_weight = (char *)(t->partial + b * 2 * next);
        s.grad_bias = s.grad_weight + 4 * next;
        memset(s.grad_weight, 0, 8 * next);
        const int64_t last = (b + 1) * t->block < c->rows ? (b + 1) * t->block : c->rows;
        int64_t r = b * t->block;
        for (; r + ROWS <= last; r += ROWS) backward_rows(r, ROWS, c, &s, type, centred);
        for (; r < last; r++) backward_rows(r, 1, c, &s, type, centred);
    }
    free(scratch);
}

#define BACKWARD(NAME, TYPE, CENTRED)                                  \
    static void NAME(int64_t begin, int64_t end, void *task) {         \
        backward_blocks(begin, end, task, TYPE, CENTRED);              \
    }
BACKWARD(rms_backward_FLOAT32, FLOAT32, 0)
BACKWARD(rms_backward_BFLOAT16, BFLOAT16, 0)
BACKWARD(rms_backward_FLOAT16, FLOAT16, 0)
BACKWARD(layer_backward_FLOAT32, FLOAT32, 1)
BACKWARD(layer_backward_BFLOAT16, BFLOAT16, 1)
BACKWARD(layer_backward_FLOAT16, FLOAT16, 1)
static const range_fn backwards[3][2] = {{rms_backward_FLOAT32, layer_backward_FLOAT32},
                                         {rms_backward_BFLOAT16, layer_backward_BFLOAT16},
                                         {rms_backward_FLOAT16, layer_backward_FLOAT16}};

/* The blocks of rows do not depend on the number of threads, so neither does the result. */
#define BLOCKS 64
#define SMALLEST_BLOCK 16 /* rows */

int norm_backward(const backward_call *call, parallel_for_fn parallel_for) {
    const int64_t rows = call->rows, columns = call->columns, next = padded(columns);
    int64_t block = (rows + BLOCKS - 1) / BLOCKS;
    if (block < SMALLEST_BLOCK) block = SMALLEST_BLOCK;
    const int64_t blocks = (rows + block - 1) / block;
    float *partial = scratch_rows(2 * blocks, columns);
    if (!partial) return 1;
    backward_task task = {call, partial, block, 0};
    over_rows(blocks, columns * block, parallel_for, backwards[call->type][call->centred], &task);
    for (int64_t half = 1; half < blocks; half *= 2) /* pairwise */
        for (int64_t b = 0; b + half < blocks; b += 2 * half)
            for (int64_t i = 0; i < 2 * next; i++)
                partial[b * 2 * next + i] += partial[(b + half) * 2 * next + i];
    memcpy(call->grad_weight, partial, 4 * columns);
    if (call->grad_bias) memcpy(call->grad_bias, partial + next, 4 * columns);
    free(partial);
    return task.failed;
}
