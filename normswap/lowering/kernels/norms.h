/* Norms over rows of C contiguous numbers: what forward.c and backward.c compute. */
#ifndef NORMSWAP_NORMS_H
#define NORMSWAP_NORMS_H

#include <stdint.h>

enum { FLOAT32, BFLOAT16, FLOAT16 };

typedef struct {
    const void *data; /* C numbers, or NULL */
    int type;
} parameter;

/* sum = residual + scale * branch, and its norm. Outputs may be inputs. */
typedef struct {
    const char *branch, *residual; /* residual NULL: nothing is added, and sum is not written */
    char *normalised, *sum;
    parameter weight, bias, scale;
    int64_t rows, columns;
    double epsilon;
    int type, centred; /* centred: LayerNorm, else RMSNorm */
} forward_call;

/* Gradients of a norm's input, weight and bias; grad_sum is added to the first. */
typedef struct {
    const char *grad, *grad_sum, *x; /* grad_sum may be NULL */
    char *grad_x;
    float *grad_weight, *grad_bias; /* [C]; grad_bias NULL for RMSNorm */
    parameter weight;
    int64_t rows, columns;
    double epsilon;
    int type, centred;
} backward_call;

/* Runs work(begin, end, task) over 0 to count in threads, at least `grain` at a time; 0 if done. */
typedef void (*range_fn)(int64_t begin, int64_t end, void *task);
typedef int32_t (*parallel_for_fn)(int64_t begin, int64_t count, int64_t grain, range_fn work,
                                   void *task);

/* Return 0, or 1 if there was no memory for a few rows. */
int norm_forward(const forward_call *call, parallel_for_fn parallel_for);
int norm_backward(const backward_call *call, parallel_for_fn parallel_for);

#endif
