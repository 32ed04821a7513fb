/* The operators on CPU tensors, as torch's dispatcher calls them: what the tensors are, where the
 * results go, and forward.c or backward.c. At batch 1 a kernel in Python takes as long as a norm.
 *
 * What these cannot read as it is (strides, mixed dtypes, float64, nothing at all) goes on to the
 * operator `<name>_fallback`, in Python, and so does every wrong argument.
 */
#include "torch_interface.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#define MOST_AXES 64

#define DECLARE(RESULT, NAME, ARGUMENTS) static RESULT(*NAME) ARGUMENTS;
TORCH_FUNCTIONS(DECLARE)

static int32_t dtypes[3]; /* torch's numbers of FLOAT32, BFLOAT16 and FLOAT16 */
static int32_t cpu;

/* Raises a RuntimeError of one line. */
static void fail(const char *message) {
    char line[1024];
    size_t length = strcspn(message, "\n");
    if (length >= sizeof line) length = sizeof line - 1;
    memcpy(line, message, length);
    line[length] = 0;
    aoti_torch_check(false, __func__, "operators.c", __LINE__, line);
}

static void fall_back(const char *name, stable_value *stack) {
    if (torch_call_dispatcher(name, "", stack, TORCH_2_13))
        fail(torch_exception_get_what_without_backtrace());
}

/* ---- arguments ---------------------------------------------------------------------------- */

typedef struct {
    int64_t dim, count;
    const int64_t *sizes;
    int type;
} layout;

static int type_of(tensor_handle tensor) {
    int32_t dtype;
    if (aoti_torch_get_dtype(tensor, &dtype)) return -1;
    for (int type = 0; type < 3; type++)
        if (dtypes[type] == dtype) return type;
    return -1;
}

/* Whether it is contiguous, of a type that the kernels know, and has numbers and an axis. */
static bool read_layout(tensor_handle tensor, layout *found) {
    bool contiguous;
    int64_t *sizes;
    found->type = type_of(tensor);
    if (found->type < 0 || aoti_torch_is_contiguous(tensor, &contiguous) || !contiguous ||
        aoti_torch_get_dim(tensor, &found->dim) || found->dim < 1 || found->dim > MOST_AXES ||
        aoti_torch_get_numel(tensor, &found->count) || !found->count ||
        aoti_torch_get_sizes(tensor, &sizes))
        return false;
    found->sizes = sizes;
    return true;
}

static bool is_alike(tensor_handle tensor, const layout *other) {
    layout own;
    return read_layout(tensor, &own) && own.type == other->type && own.dim == other->dim &&
           !memcmp(own.sizes, other->sizes, own.dim * sizeof *own.sizes);
}

static tensor_handle given(stable_value optional) {
    return optional ? (tensor_handle)*(stable_value *)optional : NULL;
}

/* Whether it is not given, or `columns` numbers of float32 or of the tensors' type. */
static bool read_parameter(stable_value optional, int64_t columns, int type, parameter *found) {
    tensor_handle tensor = given(optional);
    layout own;
    *found = (parameter){NULL, FLOAT32};
    if (!tensor) return true;
    found->type = FLOAT32;
    if (!read_layout(tensor, &own) || own.dim != 1 || own.count != columns ||
        (own.type != FLOAT32 && own.type != type))
        return false;
    found->type = own.type;
    return !torch_get_const_data_ptr(tensor, &found->data);
}

static const char *read_from(tensor_handle tensor) {
    const void *data = NULL;
    if (torch_get_const_data_ptr(tensor, &data)) fail(torch_exception_get_what_without_backtrace());
    return data;
}

static char *write_to(tensor_handle tensor) {
    void *data = NULL;
    if (torch_get_mutable_data_ptr(tensor, &data))
        fail(torch_exception_get_what_without_backtrace());
    return data;
}

static void release(stable_value tensor) {
    aoti_torch_delete_tensor_object((tensor_handle)tensor);
}

static void release_optional(stable_value optional) {
    if (!optional) return;
    release(*(stable_value *)optional);
    torch_delete_stable_ivalue((stable_value *)optional);
}

/* ---- results ------------------------------------------------------------------------------ */

static tensor_handle empty(int64_t dim, const int64_t *sizes, int type) {
    int64_t strides[MOST_AXES], step = 1;
    tensor_handle made = NULL;
    for (int64_t axis = dim; axis--; step *= sizes[axis]) strides[axis] = step;
    if (aoti_torch_empty_strided(dim, sizes, strides, dtypes[type], cpu, -1, &made))
        fail(torch_exception_get_what_without_backtrace());
    return made;
}

/* Autograd hears that the tensor, which it may have saved, has changed: a tensor copied to itself
 * stays as it is and counts as written. */
static void count_as_written(tensor_handle tensor) {
    if (aoti_torch_copy_(tensor, tensor, 0)) fail(torch_exception_get_what_without_backtrace());
}

static void check_memory(int failed) {
    if (failed) fail("normswap: not enough memory for a norm's rows; take a smaller batch");
}

/* ---- forward ------------------------------------------------------------------------------ */

/* Which of the stack's values are which. */
typedef struct {
    const char *fallback;
    bool add, centred, in_place;
} forward_operator;

static bool share_memory(tensor_handle one, tensor_handle other, const layout *x) {
    const char *a = read_from(one), *b = read_from(other);
    const int64_t apart = a < b ? b - a : a - b;
    return apart < x->count * (x->type == FLOAT32 ? 4 : 2);
}

static void forward(stable_value *stack, forward_operator operator) {
    int at = 0;
    tensor_handle branch = (tensor_handle)stack[at++];
    tensor_handle residual = operator.add ? (tensor_handle)stack[at++] : NULL;
    stable_value weight = stack[at++];
    stable_value bias = operator.centred ? stack[at++] : 0;
    stable_value scale = operator.add ? stack[at++] : 0;
    forward_call call = {.centred = operator.centred};
    memcpy(&call.epsilon, &stack[at], sizeof call.epsilon);
    layout x;
    /* Who requires grad is not told in C. */
    if ((operator.in_place && aoti_torch_grad_mode_is_enabled()) || !read_layout(branch, &x) ||
        (residual && !is_alike(residual, &x))) {
        fall_back(operator.fallback, stack);
        return;
    }
    call.type = x.type;
    call.columns = x.sizes[x.dim - 1];
    call.rows = x.count / call.columns;
    if (!read_parameter(weight, call.columns, x.type, &call.weight) ||
        !read_parameter(bias, call.columns, x.type, &call.bias) ||
        !read_parameter(scale, call.columns, x.type, &call.scale) ||
        (operator.in_place && residual && share_memory(branch, residual, &x))) {
        fall_back(operator.fallback, stack);
        return;
    }
    tensor_handle y = operator.in_place ? branch : empty(x.dim, x.sizes, x.type);
    tensor_handle sum = operator.in_place || !residual ? residual : empty(x.dim, x.sizes, x.type);
    call.normalised = write_to(y);
    call.sum = sum ? write_to(sum) : NULL;
    call.branch = read_from(branch);
    call.residual = residual ? read_from(residual) : NULL;
    if (operator.in_place) {
        count_as_written(y);
        if (sum) count_as_written(sum);
    }
    check_memory(norm_forward(&call, torch_parallel_for));
    release((stable_value)branch);
    if (residual) release((stable_value)residual);
    release_optional(weight);
    release_optional(bias);
    release_optional(scale);
    if (!operator.in_place) {
        stack[0] = (stable_value)y;
        if (sum) stack[1] = (stable_value)sum;
    }
}

/* ---- backward ----------------------------------------------------------------------------- */

static void backward(stable_value *stack, const char *fallback, bool centred) {
    tensor_handle grad = (tensor_handle)stack[0], x = (tensor_handle)stack[2];
    stable_value grad_sum = stack[1], weight = stack[3];
    backward_call call = {.centred = centred};
    memcpy(&call.epsilon, &stack[4], sizeof call.epsilon);
    layout of;
    if (!read_layout(x, &of) || !is_alike(grad, &of) ||
        (grad_sum && !is_alike(given(grad_sum), &of)) ||
        !read_parameter(weight, of.sizes[of.dim - 1], of.type, &call.weight)) {
        fall_back(fallback, stack);
        return;
    }
    call.type = of.type;
    call.columns = of.sizes[of.dim - 1];
    call.rows = of.count / call.columns;
    tensor_handle grad_x = empty(of.dim, of.sizes, of.type);
    tensor_handle grad_weight = empty(1, &call.columns, FLOAT32);
    tensor_handle grad_bias = centred ? empty(1, &call.columns, FLOAT32) : NULL;
    call.x = read_from(x);
    call.grad = read_from(grad);
    call.grad_sum = grad_sum ? read_from(given(grad_sum)) : NULL;
    call.grad_x = write_to(grad_x);
    call.grad_weight = (float *)write_to(grad_weight);
    call.grad_bias = grad_bias ? (float *)write_to(grad_bias) : NULL;
    check_memory(norm_backward(&call, torch_parallel_for));
    release((stable_value)grad);
    release_optional(grad_sum);
    release((stable_value)x);
    release_optional(weight);
    stack[0] = (stable_value)grad_x;
    stack[1] = (stable_value)grad_weight;
    if (centred) stack[2] = (stable_value)grad_bias;
}

/* ---- registration ------------------------------------------------------------------------- */

#define FORWARD(NAME, ...)                                                        \
    static void NAME(stable_value *stack, uint64_t arguments, uint64_t results) { \
        (void)arguments, (void)results;                                           \
        forward(stack, (forward_operator){"normswap::" #NAME "_fallback", __VA_ARGS__}); \
    }
FORWARD(layer_norm, .centred = true)
FORWARD(rms_norm, .centred = false)
FORWARD(add_layer_norm, .add = true, .centred = true)
FORWARD(add_rms_norm, .add = true, .centred = false)
FORWARD(layer_norm_, .centred = true, .in_place = true)
FORWARD(rms_norm_, .centred = false, .in_place = true)
FORWARD(add_layer_norm_, .add = true, .centred = true, .in_place = true)
FORWARD(add_rms_norm_, .add = true, .centred = false, .in_place = true)

#define BACKWARD(NAME, CENTRED)                                                   \
    static void NAME(stable_value *stack, uint64_t arguments, uint64_t results) { \
        (void)arguments, (void)results;                                           \
        backward(stack, "normswap::" #NAME "_fallback", CENTRED);                 \
    }
BACKWARD(layer_norm_backward, true)
BACKWARD(rms_norm_backward, false)

static const struct {
    const char *name;
    boxed_kernel run;
} kernels[] = {
    {"layer_norm", layer_norm},
    {"rms_norm", rms_norm},
    {"add_layer_norm", add_layer_norm},
    {"add_rms_norm", add_rms_norm},
    {"layer_norm_", layer_norm_},
    {"rms_norm_", rms_norm_},
    {"add_layer_norm_", add_layer_norm_},
    {"add_rms_norm_", add_rms_norm_},
    {"layer_norm_backward", layer_norm_backward},
    {"rms_norm_backward", rms_norm_backward},
};

/* Makes these the operators' CPU kernels until the handle it returns is deleted. `torch` is the
 * path of a library that this process has loaded and that finds torch's functions. Returns NULL if
 * torch lacks one or refuses; `missing` then names the function. */
__attribute__((visibility("default"))) library_handle normswap_register(const char *torch,
                                                                        const char **missing) {
    void *loaded = dlopen(torch, RTLD_LAZY | RTLD_NOLOAD);
    library_handle library = NULL;
    if (!loaded) {
        *missing = "torch itself";
        return NULL;
    }
#define LOOK_UP(RESULT, NAME, ARGUMENTS)                       \
    if (!(NAME = (RESULT(*) ARGUMENTS)dlsym(loaded, #NAME))) { \
        *missing = #NAME;                                      \
        return NULL;                                           \
    }
    TORCH_FUNCTIONS(LOOK_UP)
    dtypes[FLOAT32] = aoti_torch_dtype_float32();
    dtypes[BFLOAT16] = aoti_torch_dtype_bfloat16();
    dtypes[FLOAT16] = aoti_torch_dtype_float16();
    cpu = aoti_torch_device_type_cpu();
    if (aoti_torch_library_init_impl("normswap", "CPU", "operators.c", __LINE__, &library)) {
        *missing = "aoti_torch_library_init_impl";
        return NULL;
    }
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (torch_library_impl(library, kernels[i].name, kernels[i].run, TORCH_2_13)) {
            aoti_torch_delete_library_object(library);
            *missing = "torch_library_impl";
            return NULL;
        }
    return library;
}
