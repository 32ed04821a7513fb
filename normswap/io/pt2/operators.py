"""Which operators of torch a .pt2 may call: those that inference needs, and no others.

Torch has some 1,600 operators on tensors. Many take it on trust that their arguments fit together:
gradients and halves of other operators, sparse, quantised and nested tensors, packed weights, what
writes into its arguments' memory. A file could read or write any memory with them. So what is
allowed is listed, and ``tests/io/test_pt2_operators.py`` tries each of them with absurd arguments.
An operator with an underscore behind its name, which works in place, goes with its name.
"""

from __future__ import annotations

_ATEN = """
    abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2
    arctanh asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor __and__ __lshift__ __or__ __rshift__ __xor__ ceil celu clamp
    clamp_max clamp_min clip complex conj copysign cos cosh deg2rad digamma div divide elu eq equal
    erf erfc erfinv exp exp2
    expm1 fix float_power floor floor_divide fmax fmin fmod frac ge gelu glu greater greater_equal
    gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 imag isclose isfinite isinf
    isnan isneginf isposinf isreal ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p
    log2 log_sigmoid log_sigmoid_forward logaddexp logaddexp2 logical_and logical_not logical_or
    logical_xor logit lt maximum minimum mish mul multiply nan_to_num ne neg negative not_equal
    polar positive pow prelu rad2deg real reciprocal relu relu6 remainder resolve_conj resolve_neg
    round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink
    special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1 special_log1p
    special_log_softmax special_logit special_logsumexp special_softmax special_xlogy sqrt square
    sub subtract tan tanh threshold true_divide trunc where xlogy

    all allclose amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod
    cumsum diff dist frobenius_norm kthvalue linalg_matrix_norm linalg_norm linalg_vector_norm
    log_softmax logcumsumexp logsumexp max mean median min mode msort nanmean nanmedian nanquantile
    nansum norm prod quantile softmax sort std std_mean sum sum_to_size topk trace var var_mean

    adjoint alias alias_copy as_strided as_strided_copy as_strided_scatter atleast_1d atleast_2d
    atleast_3d block_diag broadcast_tensors broadcast_to cartesian_prod cat channel_shuffle chunk
    clone col2im column_stack concat concatenate constant_pad_nd contiguous copy cpu detach
    detach_copy diag diag_embed diagflat diagonal diagonal_copy diagonal_scatter dsplit dstack
    expand expand_as expand_copy fill flatten flip fliplr flipud hsplit hstack im2col lift
    lift_fresh lift_fresh_copy mH mT matrix_H meshgrid moveaxis movedim narrow narrow_copy
    native_channel_shuffle numpy_T pad pad_sequence permute permute_copy pixel_shuffle
    pixel_unshuffle ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as roll
    rot90 row_stack select select_copy select_scatter slice slice_copy slice_scatter split
    split_copy split_with_sizes split_with_sizes_copy squeeze squeeze_copy stack swapaxes swapdims t
    t_copy tensor_split tile to transpose transpose_copy tril tril_indices triu triu_indices type_as
    unbind unbind_copy unflatten unfold unfold_copy unsafe_chunk unsafe_split
    unsafe_split_with_sizes unsqueeze unsqueeze_copy view view_as view_as_complex view_as_real
    view_copy vsplit vstack zero

    argwhere bincount bucketize embedding gather histc index index_add index_copy index_fill
    index_put index_select isin masked_fill masked_scatter masked_select nonzero nonzero_numpy
    nonzero_static one_hot scatter scatter_add scatter_reduce searchsorted take take_along_dim
    unique_consecutive unique_dim

    addbmm addmm addmv addr baddbmm bilinear bmm cdist chain_matmul cosine_similarity cov cross det
    dot einsum ger inner inverse kron linalg_cross linalg_det linalg_inv linalg_inv_ex linalg_matmul
    linalg_matrix_exp linalg_matrix_power linalg_multi_dot linalg_solve linalg_solve_ex
    linalg_solve_triangular linalg_vecdot linear matmul matrix_exp matrix_power mm mv outer
    pairwise_distance scaled_dot_product_attention tensordot vdot

    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator alpha_dropout avg_pool1d
    avg_pool2d avg_pool3d batch_norm conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d
    conv_transpose3d convolution dropout feature_alpha_dropout feature_dropout grid_sampler
    grid_sampler_2d grid_sampler_3d group_norm gru gru_cell instance_norm layer_norm lstm lstm_cell
    max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices native_batch_norm native_dropout native_group_norm native_layer_norm
    renorm rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d

    arange bartlett_window bernoulli blackman_window empty empty_like empty_permuted empty_strided
    eye fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn
    fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq
    fft_rfftn full full_like hamming_window hann_window istft kaiser_window linspace logspace
    multinomial new_empty new_empty_strided new_full new_ones new_zeros normal ones ones_like rand
    rand_like randint randint_like randn randn_like randperm scalar_tensor stft uniform zeros
    zeros_like

    dim is_complex is_contiguous is_floating_point is_nonzero is_same_size item numel result_type
    size storage_offset stride sym_is_contiguous sym_numel sym_size sym_storage_offset sym_stride

    _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar _assert_tensor_metadata
    _cdist_forward _conj _convolution _euclidean_dist _fused_rms_norm _local_scalar_dense
    _log_softmax _native_batch_norm_legit _native_batch_norm_legit_no_training _neg_view
    _safe_softmax _scaled_dot_product_flash_attention_for_cpu _shape_as_tensor _softmax _to_copy
    _unique2 _unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d

    sym_constrain_range sym_constrain_range_for_size
"""

_PRIMS = "convert_element_type device_put iota view_of"

ALLOWED = {"aten": frozenset(_ATEN.split()), "prims": frozenset(_PRIMS.split())}
"""The operators that a program may call, by namespace; of normswap's own namespace all."""


_BATCH_NORMS = "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"

TRUSTS_SIZES = frozenset(f"aten::{name}" for name in _BATCH_NORMS.split())
"""Those whose parameters may be too short for their input, which they then read beyond."""


def is_allowed(namespace: str, name: str, overload: str) -> bool:
    """Whether a program may call the operator. Names that torch does not have are for the caller
    to find."""
    if namespace not in ALLOWED:
        return namespace == "normswap"
    # "data": of the recurrent ones, takes the sizes of sequences from a tensor without a check;
    # "prim_": of TorchScript.
    if overload == "data" or overload.startswith("prim_"):
        return False
    return bool({name, name.removesuffix("_")} & ALLOWED[namespace])
