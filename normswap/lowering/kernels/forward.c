/* The norm of rows, and of the sums of rows. */
#include "rows.h"

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
    row_statistics(rows, found, row, columns, c->epsilon, centred, of);
    for (int j = 0; j < rows; j++) {
        char *normalised = c->normalised + (first + j) * step;
        const statistics own = of[j];
        OVER_ROW(columns, {
            (void)k;
            vf v = normed(load(row[j], i, count, FLOAT32), own, centred);
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
    const int most = alone ? 1 : ROWS;
    for (int rows; r < end; r += rows) {
        rows = end - r < most ? (int)(end - r) : most;
        forward_rows(r, rows, c, &s, type, add, centred);
    }
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
