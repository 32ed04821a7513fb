/* The part of torch's stable C interface that operators.c calls (torch/csrc/stable/c/shim.h and
 * torch/csrc/inductor/aoti_torch/c/shim.h, whose C++ a C compiler cannot read). The functions are
 * looked up in the torch that runs. All but the ones that say otherwise return 0 if they worked.
 */
#ifndef NORMSWAP_TORCH_INTERFACE_H
#define NORMSWAP_TORCH_INTERFACE_H

#include <stdbool.h>
#include <stdint.h>

#include "norms.h"

/* An argument or a result: a tensor's handle, the bits of a number, or for an optional a pointer
 * to one, NULL if it is not given. Arguments belong to the one who is called. */
typedef uint64_t stable_value;
typedef void *tensor_handle;
typedef void *library_handle;
typedef void (*boxed_kernel)(stable_value *stack, uint64_t arguments, uint64_t results);

/* Tells torch which version of the interface this is. */
#define TORCH_2_13 ((uint64_t)2 << 56 | (uint64_t)13 << 48)

#define TORCH_FUNCTIONS(F)                                                                      \
    F(int32_t, aoti_torch_library_init_impl,                                                    \
      (const char *space, const char *key, const char *file, uint32_t line, library_handle *))  \
    F(int32_t, aoti_torch_delete_library_object, (library_handle))                              \
    F(int32_t, torch_library_impl,                                                              \
      (library_handle, const char *name, boxed_kernel, uint64_t version))                       \
    F(int32_t, torch_call_dispatcher,                                                           \
      (const char *name, const char *overload, stable_value *stack, uint64_t version))          \
    F(const char *, torch_exception_get_what_without_backtrace, (void))                         \
    F(void, aoti_torch_check, /* throws unless `holds` */                                       \
      (bool holds, const char *function, const char *file, uint32_t line, const char *message)) \
    F(int32_t, torch_parallel_for,                                                              \
      (int64_t begin, int64_t end, int64_t grain, range_fn, void *task))                        \
    F(bool, aoti_torch_grad_mode_is_enabled, (void))                                            \
    F(int32_t, aoti_torch_delete_tensor_object, (tensor_handle))                                \
    F(int32_t, torch_delete_stable_ivalue, (stable_value *))                                    \
    F(int32_t, aoti_torch_get_dim, (tensor_handle, int64_t *))                                  \
    F(int32_t, aoti_torch_get_sizes, (tensor_handle, int64_t **))                               \
    F(int32_t, aoti_torch_get_numel, (tensor_handle, int64_t *))                                \
    F(int32_t, aoti_torch_get_dtype, (tensor_handle, int32_t *))                                \
    F(int32_t, aoti_torch_is_contiguous, (tensor_handle, bool *))                               \
    F(int32_t, torch_get_const_data_ptr, (tensor_handle, const void **))                        \
    F(int32_t, torch_get_mutable_data_ptr, (tensor_handle, void **))                            \
    F(int32_t, aoti_torch_copy_, (tensor_handle self, tensor_handle source, int32_t))           \
    F(int32_t, aoti_torch_empty_strided,                                                        \
      (int64_t dim, const int64_t *sizes, const int64_t *strides, int32_t dtype,                \
       int32_t device_type, int32_t device_index, tensor_handle *))                             \
    F(int32_t, aoti_torch_dtype_float32, (void)) /* returns the number */                       \
    F(int32_t, aoti_torch_dtype_bfloat16, (void))                                               \
    F(int32_t, aoti_torch_dtype_float16, (void))                                                \
    F(int32_t, aoti_torch_device_type_cpu, (void))

#endif
