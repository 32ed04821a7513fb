/* The gradients of a norm.
 *
 * With h = (x - mean) * rstd and g = grad * weight,
 *     dx = rstd * (g - mean(g) - h * mean(g * h)) + grad_sum, dweight = sum(grad * h),
 *     dbias = sum(grad) over the rows; RMSNorm has neither mean(g) nor dbias.
 * The statistics are taken again: the row is in the cache, and nothing had to be saved.
 */
#include "rows.h"

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
    row_statistics(rows, found, row, columns, c->epsilon, centred, of);
    vf of_g[ROWS] = {{0}}, of_gh[ROWS] = {{0}};
    OVER_ROW(columns, {
        (void)k;
        const vf weight = load(s->weight, i, count, FLOAT32);
        vf grad_weight = load(s->grad_weight, i, count, FLOAT32);
        vf grad_bias = centred ? load(s->grad_bias, i, count, FLOAT32) : spread(0);
        for (int j = 0; j < rows; j++) {
            vf g = load(grad + j * step, i, count, type);
            vf h = keep(normed(load(row[j], i, count, FLOAT32), of[j], centred), count);
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
        const float mean_gh = total(of_gh[j]) / columns;
        const statistics own = of[j];
        const char *own_grad = grad + j * step;
        const char *grad_sum = c->grad_sum ? c->grad_sum + (first + j) * step : NULL;
        char *grad_x = c->grad_x + (first + j) * step;
        OVER_ROW(columns, {
            (void)k;
            vf g = load(own_grad, i, count, type) * load(s->weight, i, count, FLOAT32);
            vf h = normed(load(row[j], i, count, FLOAT32), own, centred);
            vf v = (g - mean_g - h * mean_gh) * own.rstd;
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
