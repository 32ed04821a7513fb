/* LayerNorm and RMSNorm over rows of C contiguous numbers, for the CPU.
 *
 * A row is read once, kept as float32 in the first-level cache while its statistics are taken, and
 * written once. Every statistic is float32; rows[] holds what a row became after the addition, not
 * rounded to the tensors' type. cpu.py holds the declarations for ctypes.
 */
#include <math.h>
#include <stdint.h>
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

enum { FLOAT32, BFLOAT16, FLOAT16 };

typedef void (*range_fn)(int64_t begin, int64_t end, void *task);
typedef int32_t (*parallel_for_fn)(int64_t, int64_t, int64_t, range_fn, void *);

static parallel_for_fn parallel_for;

/* torch's own parallel_for: the same threads, the same number of them. */
void normswap_threads(void *torch_parallel_for) {
    parallel_for = (parallel_for_fn)torch_parallel_for;
}

/* Below this many elements a second thread costs more than it saves (torch's grain). */
#define GRAIN 32768

static void over_rows(int64_t rows, int64_t columns, range_fn work, void *task) {
    int64_t grain = columns < GRAIN ? GRAIN / columns : 1;
    if (!parallel_for || rows <= grain || parallel_for(0, rows, grain, work, task)) {
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
    vu bits = __builtin_convertvector(half, vu) << 16;
    return (vf)bits;
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

INLINE float total_of(const vf *accumulators) {
    return total((accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3]));
}

/* The first `count` lanes; the others become zero. */
INLINE vf keep(vf value, int count) {
    if (count == LANES) return value;
    const vi index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (vf)((vi)value & (index < count));
}

/* ---- parameters: one float32 row each ---------------------------------------------------- */

typedef struct {
    const void *data; /* or NULL */
    int64_t type;
} parameter;

/* The parameter itself if it is float32, else `scratch`, filled with it or with `absent`. */
static const char *as_float32(parameter p, float absent, int64_t columns, float *scratch) {
    if (p.data && p.type == FLOAT32) return p.data;
    for (int64_t i = 0; i < columns; i += LANES) {
        int count = columns - i < LANES ? (int)(columns - i) : LANES;
        vf value = p.data ? load(p.data, i, count, (int)p.type) : spread(absent);
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

typedef struct {
    float mean, shift, rstd; /* (x - mean) * rstd + shift is the normalised value */
} statistics;

/* Two passes over the row: the mean, then the centred values and their squares. What the rounded
 * mean leaves in the centred values is taken off again (the corrected two-pass algorithm; Chan,
 * Golub, LeVeque 1983), so that rows of mean 1e4 keep their accuracy. */
INLINE statistics layer_statistics(float sum, const char *row, int64_t columns, double epsilon) {
    const double share = 1.0 / columns;
    const float mean = (float)(sum * share);
    vf rest[UNROLL] = {{0}}, squares[UNROLL] = {{0}};
    OVER_ROW(columns, {
        vf d = keep(load(row, i, count, FLOAT32) - mean, count);
        rest[k] += d;
        squares[k] += d * d;
    });
    const double left = total_of(rest) * share;
    double variance = total_of(squares) * share - left * left;
    if (variance < 0) variance = 0;
    const double rstd = 1 / sqrt(variance + epsilon);
    /* x - mean is exact where the mean is large; where it is small its rounding would show. */
    if (fabs(mean * rstd) < 1) return (statistics){0, (float)(-(mean + left) * rstd), (float)rstd};
    return (statistics){mean, (float)(-left * rstd), (float)rstd};
}

INLINE statistics rms_statistics(const char *row, int64_t columns, double epsilon) {
    vf squares[UNROLL] = {{0}};
    OVER_ROW(columns, {
        vf v = load(row, i, count, FLOAT32);
        squares[k] += v * v;
    });
    const double mean = total_of(squares) / (double)columns;
    return (statistics){0, 0, (float)(1 / sqrt(mean + epsilon))};
}

/* ---- forward ------------------------------------------------------------------------------ */

typedef struct {
    const char *branch, *residual; /* residual NULL: nothing is added */
    char *normalised, *sum;
    parameter weight, bias, scale;
    int64_t columns;
    double epsilon;
    int failed;
} forward_task;

INLINE void forward_rows(int64_t begin, int64_t end, forward_task *t, int type, int add,
                         int centred) {
    const int64_t columns = t->columns, step = columns * width(type);
    float *scratch = scratch_rows(4, columns);
    if (!scratch) {
        t->failed = 1;
        return;
    }
    const int64_t next = padded(columns);
    const char *weight = as_float32(t->weight, 1, columns, scratch + next);
    const char *bias = as_float32(t->bias, 0, columns, scratch + 2 * next);
    const char *scale = t->scale.data ? as_float32(t->scale, 1, columns, scratch + 3 * next) : NULL;
    for (int64_t r = begin; r < end; r++) {
        const char *branch = t->branch + r * step, *residual = t->residual + r * step;
        char *normalised = t->normalised + r * step, *sum = t->sum + r * step;
        /* What is float32 already needs no copy of the row. */
        const char *row = type != FLOAT32 ? (char *)scratch : add ? sum : branch;
        vf sums[UNROLL] = {{0}};
        OVER_ROW(columns, {
            vf v = load(branch, i, count, type);
            if (add) {
                if (scale) v = v * load(scale, i, count, FLOAT32);
                v = v + load(residual, i, count, type);
                store(sum, i, count, type, v);
            }
            if (type != FLOAT32) store((char *)scratch, i, count, FLOAT32, v);
            if (centred) sums[k] += v;
        });
        statistics s = centred ? layer_statistics(total_of(sums), row, columns, t->epsilon)
                               : rms_statistics(row, columns, t->epsilon);
        const float mean = s.mean, shift = s.shift, rstd = s.rstd;
        OVER_ROW(columns, {
            vf v = load(row, i, count, FLOAT32);
            v = centred ? (v - mean) * rstd + shift : v * rstd;
            v = v * load(weight, i, count, FLOAT32);
            if (centred) v = v + load(bias, i, count, FLOAT32);
            store(normalised, i, count, type, v);
        });
    }
    free(scratch);
}

#define FORWARD(NAME, TYPE, ADD, CENTRED)                                        \
    static void NAME(int64_t begin, int64_t end, void *task) {                   \
        forward_rows(begin, end, task, TYPE, ADD, CENTRED);                      \
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

/* `kinds` packs the types of weight, bias and scale, two bits each. The outputs may be the inputs;
 * without a residual nothing is added. One packed argument: ctypes takes long over many. */
typedef struct {
    uint64_t centred;
    const void *branch, *residual;
    void *normalised, *sum;
    const void *weight, *bias, *scale;
    uint64_t rows, columns, type, kinds;
    double epsilon;
} forward_call;

/* Returns 0, or 1 if there was no memory. */
int normswap_forward(const char *packed) {
    forward_call c;
    memcpy(&c, packed, sizeof c);
    forward_task task = {c.branch, c.residual, c.normalised, c.sum, {c.weight, c.kinds & 3},
                         {c.bias, c.kinds >> 2 & 3}, {c.scale, c.kinds >> 4 & 3}, c.columns,
                         c.epsilon, 0};
    over_rows(c.rows, c.columns, forwards[c.type][c.residual != NULL][c.centred], &task);
    return task.failed;
}

/* ---- backward ----------------------------------------------------------------------------- */

/* With h = (x - mean) * rstd and g = grad * weight,
 *     dx = rstd * (g - mean(g) - h * mean(g * h)) + grad_sum, dweight = sum(grad * h),
 *     dbias = sum(grad) over the rows; RMSNorm has neither mean(g) nor dbias.
 * The statistics are taken again: the row is in the cache, and nothing had to be saved. */
typedef struct {
    const char *grad, *grad_sum, *x; /* grad_sum may be NULL */
    char *grad_x;
    float *partial; /* blocks x 2 x padded columns: dweight, dbias */
    parameter weight;
    int64_t rows, columns, block;
    double epsilon;
    int failed;
} backward_task;

INLINE void backward_blocks(int64_t begin, int64_t end, backward_task *t, int type, int centred) {
    const int64_t columns = t->columns, step = columns * width(type), next = padded(columns);
    float *scratch = scratch_rows(3, columns);
    if (!scratch) {
        t->failed = 1;
        return;
    }
    char *normed = (char *)scratch, *gradient = (char *)(scratch + next);
    const char *weight = as_float32(t->weight, 1, columns, scratch + 2 * next);
    for (int64_t b = begin; b < end; b++) {
        char *dweight = (char *)(t->partial + b * 2 * next);
        char *dbias = dweight + 4 * next;
        memset(dweight, 0, 8 * next);
        int64_t last = (b + 1) * t->block < t->rows ? (b + 1) * t->block : t->rows;
        for (int64_t r = b * t->block; r < last; r++) {
            const char *x = t->x + r * step, *grad = t->grad + r * step;
            const char *grad_sum = t->grad_sum ? t->grad_sum + r * step : NULL;
            const char *row = type != FLOAT32 ? normed : x;
            char *grad_x = t->grad_x + r * step;
            vf sums[UNROLL] = {{0}};
            OVER_ROW(columns, {
                vf v = load(x, i, count, type);
                if (type != FLOAT32) store(normed, i, count, FLOAT32, v);
                if (centred) sums[k] += v;
            });
            statistics s = centred ? layer_statistics(total_of(sums), row, columns, t->epsilon)
                                   : rms_statistics(row, columns, t->epsilon);
            const float mean = s.mean, shift = s.shift, rstd = s.rstd;
            vf of_g[UNROLL] = {{0}}, of_gh[UNROLL] = {{0}};
            OVER_ROW(columns, {
                vf v = load(row, i, count, FLOAT32);
                vf g = load(grad, i, count, type);
                vf h = keep(centred ? (v - mean) * rstd + shift : v * rstd, count);
                store(dweight, i, count, FLOAT32, load(dweight, i, count, FLOAT32) + g * h);
                if (centred) store(dbias, i, count, FLOAT32, load(dbias, i, count, FLOAT32) + g);
                g = g * load(weight, i, count, FLOAT32);
                store(normed, i, count, FLOAT32, h);
                store(gradient, i, count, FLOAT32, g);
                of_g[k] += g;
                of_gh[k] += g * h;
            });
            const float mean_g = centred ? total_of(of_g) / columns : 0;
            const float mean_gh = total_of(of_gh) / columns;
            OVER_ROW(columns, {
                vf g = load(gradient, i, count, FLOAT32);
                vf h = load(normed, i, count, FLOAT32);
                vf v = (g - mean_g - h * mean_gh) * rstd;
                if (grad_sum) v = v + load(grad_sum, i, count, type);
                store(grad_x, i, count, type, v);
            });
        }
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

typedef struct {
    uint64_t centred;
    const void *grad, *grad_sum, *x;
    void *grad_x;
    const void *weight;
    float *dweight, *dbias;
    uint64_t rows, columns, type, kinds;
    double epsilon;
} backward_call;

/* Returns 0, or 1 if there was no memory. */
int normswap_backward(const char *packed) {
    backward_call c;
    memcpy(&c, packed, sizeof c);
    const int64_t rows = c.rows, columns = c.columns, next = padded(columns);
    const int64_t block = (rows + BLOCKS - 1) / BLOCKS, blocks = (rows + block - 1) / block;
    float *partial = scratch_rows(2 * blocks, columns);
    if (!partial) return 1;
    backward_task task = {c.grad, c.grad_sum, c.x, c.grad_x, partial, {c.weight, c.kinds & 3},
                          rows, columns, block, c.epsilon, 0};
    over_rows(blocks, columns * block, backwards[c.type][c.centred], &task);
    for (int64_t half = 1; half < blocks; half *= 2) /* pairwise */
        for (int64_t b = 0; b + half < blocks; b += 2 * half)
            for (int64_t i = 0; i < 2 * next; i++)
                partial[b * 2 * next + i] += partial[(b + half) * 2 * next + i];
    memcpy(c.dweight, partial, 4 * columns);
    if (c.dbias) memcpy(c.dbias, partial + next, 4 * columns);
    free(partial);
    return task.failed;
}
