"""Operators for onnx's reference evaluator, where its own are wrong, slow, or know the newest
version alone.

Each keeps the operator's semantics in the dtype of its input. Most compute with torch, which is
imported when the first of them runs. ``tests/graph/test_float64_ops.py`` holds every operator
against onnx's own cases and, in its older versions, against ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference.op_run import OpRun
from onnx.reference.ops._quant_utils import reshape_input
from onnx.reference.ops.op_loop import Loop as _Loop
from onnx.reference.ops.op_max_pool import MaxPool as _MaxPool
from onnx.reference.ops.op_quantize_linear import _CommonQuantizeLinear
from onnx.reference.ops.op_resize import Resize as _Resize
from onnx.reference.ops.op_roi_align import RoiAlign as _RoiAlign
from onnx.reference.ops.op_scatter_elements import scatter_elements

from normswap.errors import Endless
from normswap.graph.graph import Array, is_floating
from normswap.graph.onnx import nodes

if TYPE_CHECKING:
    import torch


def float64_ops(op_types: Iterable[str]) -> list[type[OpRun]]:
    """The implementations here of those operators among ``op_types`` that have one."""
    return [_OPS[op_type] for op_type in sorted(set(op_types) & set(_OPS))]


def _tensor(array: Array) -> torch.Tensor:
    from normswap.graph.tensors import to_torch  # proofs of few operators need no torch

    return to_torch(array)


class _Op(OpRun):
    op_domain: ClassVar[str] = ""

    @property
    def version(self) -> int:
        """The version of the operator set."""
        return int(self.run_params["opsets"][""])

    @property
    def named_outputs(self) -> int:
        return len([name for name in self.onnx_node.output if name])


# -- norms ---------------------------------------------------------------------------------------


class LayerNormalization(_Op):
    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        axis: int = -1,
        epsilon: float = 1e-5,
        stash_type: int | None = None,
    ) -> tuple[Array, ...]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axes, keepdims=True)
        inverse = 1 / np.sqrt(np.square(x - mean).mean(axes, keepdims=True) + epsilon)
        y = (x - mean) * inverse * w
        outputs = (y if b is None else y + b, mean, inverse)
        return outputs[: len([o for o in self.onnx_node.output if o])]


class BatchNormalization(_Op):
    """Before opset 14 the training form is the one with several outputs; before 9 ``spatial=0``
    has statistics for every element of a row."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        var: Array,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
        spatial: int = 1,
        **_: Any,
    ) -> tuple[Array, ...]:
        axes = tuple(a for a in range(x.ndim) if a != 1) if spatial else (0,)
        shape = [1 if a in axes else size for a, size in enumerate(x.shape)]
        outputs = self.named_outputs
        saved: tuple[Array, ...] = ()
        if training_mode or (self.version < 14 and outputs > 1):
            now = x.mean(axes), x.var(axes)
            running = [
                held.reshape(-1) * momentum + new.reshape(-1) * (1 - momentum)
                for held, new in zip((mean, var), now, strict=True)
            ]
            saved = (*running, *now)
            mean, var = now
        gamma, beta, centre, spread = (p.reshape(shape) for p in (scale, bias, mean, var))
        y = gamma * ((x - centre) / np.sqrt(spread + epsilon)) + beta
        return (y, *saved)[:outputs]


class GroupNormalization(_Op):
    """Before opset 21 scale and bias have one number for each group."""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        epsilon: float = 1e-5,
        num_groups: int = 1,
        stash_type: int | None = None,
    ) -> tuple[Array]:
        groups = x.reshape(x.shape[0], num_groups, -1)
        mean = groups.mean(-1, keepdims=True)
        inverse = 1 / np.sqrt(groups.var(-1, keepdims=True) + epsilon)
        normal = ((groups - mean) * inverse).reshape(x.shape)
        if self.version < 21:
            scale, bias = (np.repeat(p, x.shape[1] // num_groups) for p in (scale, bias))
        shape = (-1, *(1 for _ in x.shape[2:]))
        return (normal * scale.reshape(shape) + bias.reshape(shape),)


# -- shapes and places ---------------------------------------------------------------------------


class Unsqueeze(_Op):
    def _run(self, x: Array, axes: Any = None) -> tuple[Array]:  # the evaluator's mixes up several
        return (np.expand_dims(x, tuple(int(axis) for axis in np.ravel(axes))),)


class Scatter(_Op):  # ScatterElements from opset 11 on
    def _run(self, data: Array, indices: Array, updates: Array, axis: int = 0) -> tuple[Array]:
        return (scatter_elements(data, indices, updates, axis=axis),)


class Resize(_Resize):
    """Before opset 11 without a choice of coordinates: they are asymmetric, and the nearest
    element is the one before, or behind where the axis shrinks (as ONNX Runtime has it)."""

    op_domain: ClassVar[str] = ""

    def _run(self, x: Array, *given: Any, mode: str | None = None, **chosen: Any) -> tuple[Array]:
        if int(self.run_params["opsets"][""]) < 11:
            nearest = [np.ceil if scale < 1 else np.floor for scale in given[0]]
            return _asymmetric(x, given[0], mode, nearest)
        roi, scales, sizes = (*given, None, None, None)[:3]
        scales = None if scales is None or not scales.size else scales
        result: tuple[Array] = super()._run(x, roi, scales, sizes, mode=mode, **chosen)
        return result


class Upsample(_Op):
    def _run(self, x: Array, scales: Any = None, mode: str | None = None, **_: Any) -> tuple[Array]:
        scales = np.asarray(scales, np.float64)
        return _asymmetric(x, scales, mode, [np.floor] * len(scales))


def _asymmetric(
    x: Array, scales: Array, mode: str | None, nearest: Sequence[Callable[[Array], Array]]
) -> tuple[Array]:
    if mode not in ("nearest", "linear"):
        raise NotImplementedError(f"Resize before opset 11 with mode={mode}")
    for axis, (scale, rounded) in enumerate(zip(scales, nearest, strict=True)):
        size, last = int(np.floor(x.shape[axis] * scale)), x.shape[axis] - 1
        if scale == 1:
            continue
        # In float32, as runtimes compute where an element comes from.
        places = np.arange(size, dtype=np.float32) / np.float32(scale)
        if mode == "nearest":
            x = x.take(np.clip(rounded(places).astype(int), 0, last), axis)
            continue
        low = np.minimum(np.floor(places).astype(int), last)
        share = np.where(low < last, np.arange(size) / scale - low, 0)
        share = share.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        high = np.minimum(low + 1, last)
        x = (x.take(low, axis) * (1 - share) + x.take(high, axis) * share).astype(x.dtype)
    return (x,)


class RoiAlign(_RoiAlign):
    """Before opset 16 without a choice of coordinates: they are those of corners."""

    op_domain: ClassVar[str] = ""

    def _run(self, *inputs: Array, coordinate_transformation_mode: str = "", **chosen: Any) -> Any:
        if int(self.run_params["opsets"][""]) < 16:
            coordinate_transformation_mode = "output_half_pixel"
        return super()._run(
            *inputs, coordinate_transformation_mode=coordinate_transformation_mode, **chosen
        )


# -- quantisation --------------------------------------------------------------------------------


class QuantizeLinear(_CommonQuantizeLinear):
    op_domain: ClassVar[str] = ""


class DequantizeLinear(_Op):
    """In the scale's dtype; the evaluator's own computes in float32, and not before opset 19."""

    def _run(
        self,
        x: Array,
        scale: Array,
        zero_point: Array | None = None,
        axis: int = 1,
        block_size: int = 0,
        output_dtype: int | None = None,
    ) -> tuple[Array]:
        wide = np.float64 if x.dtype.kind in "iu" else scale.dtype
        zero = 0 if zero_point is None else reshape_input(zero_point, x.shape, axis, block_size)
        y = x.astype(wide) - np.asarray(zero).astype(wide)
        y = y * reshape_input(scale, x.shape, axis, block_size)
        dtype = tensor_dtype_to_np_dtype(output_dtype) if output_dtype else scale.dtype
        return (y.astype(dtype),)


# -- control flow --------------------------------------------------------------------------------


class Loop(_Loop):
    """The evaluator's own stacks what the iterations yield along an axis that is there already."""

    op_domain: ClassVar[str] = ""

    def _run(
        self,
        count: Array | None,
        condition: Array | None,
        *carried: Any,
        context: Any = None,
        body: Any = None,
        attributes: Any = None,
        bindings: Any = None,
    ) -> tuple[Any, ...]:
        number, going, *states = self.body.input_names
        held = list(carried)
        kept: list[list[Array]] = [[] for _ in range(self.K)]
        most = None if count is None else int(np.reshape(count, ()))
        on, index = condition is None or bool(np.reshape(condition, ())), 0
        worked = nodes.work_of_this_thread()
        while on and (most is None or index < most):
            if worked() > nodes.LOOP_SECONDS:
                raise Endless(nodes.endless())
            feeds = {**(context or {}), number: np.array(index, np.int64), going: np.array(on)}
            feeds |= dict(zip(states, held, strict=True))
            results = self._run_body(feeds, attributes=attributes, bindings=bindings)
            on, held = bool(np.reshape(results[0], ())), list(results[1 : 1 + self.N])
            for rows, row in zip(kept, results[1 + self.N :], strict=True):
                rows.append(row)
            index += 1
        if not index and self.K:
            raise NotImplementedError("a Loop that never runs has outputs of unknown shape")
        stacked = [np.stack(rows) for rows in kept]
        return tuple([*held, *stacked][: len(self.onnx_node.output)])


# -- functions of elements -----------------------------------------------------------------------


class Erf(_Op):
    def _run(self, x: Array) -> tuple[Array]:  # the evaluator's own rounds to float32
        return (_tensor(x).erf().numpy(),)


class Gelu(_Op):
    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        from torch.nn.functional import gelu

        return (gelu(_tensor(x), approximate=approximate).numpy(),)


# -- along an axis -------------------------------------------------------------------------------


class _AlongAxis(_Op):
    """Before opset 13 the input is coerced to two dimensions: all axes from ``axis`` on are one."""

    def _along(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        raise NotImplementedError

    def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
        if not x.size:
            return (x,)
        if self.version < 13:
            axis = 1 if axis is None else axis
            rows = int(np.prod(x.shape[: axis % x.ndim if axis != x.ndim else axis]))
            return (self._along(_tensor(x).reshape(rows, -1), 1).numpy().reshape(x.shape),)
        return (self._along(_tensor(x), -1 if axis is None else axis).numpy(),)


class Softmax(_AlongAxis):
    def _along(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return x.softmax(axis)


class LogSoftmax(_AlongAxis):
    def _along(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        return x.log_softmax(axis)


class Hardmax(_AlongAxis):
    def _along(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        import torch

        where = torch.from_numpy(np.argmax(x.numpy(), axis))  # the first of equal ones
        return torch.zeros_like(x).scatter_(axis, where.unsqueeze(axis), 1)


class MaxPool(_MaxPool):
    """With torch, where the indices are not asked for; the evaluator's own is wrong for
    ``auto_pad=SAME_LOWER``."""

    op_domain: ClassVar[str] = ""

    def _run(self, x: Array, **chosen: Any) -> tuple[Array, ...]:
        import torch

        rank = x.ndim - 2
        if len(self.onnx_node.output) > 1 or not is_floating(x.dtype) or rank not in (1, 2, 3):
            result: tuple[Array, ...] = super()._run(x, **chosen)
            return result
        kernel = chosen["kernel_shape"]
        steps = chosen.get("strides") or [1] * rank
        spread = chosen.get("dilations") or [1] * rank
        reach = [d * (k - 1) + 1 for d, k in zip(spread, kernel, strict=True)]
        pads = _padding(chosen.get("auto_pad"), x.shape[2:], reach, steps, chosen.get("pads"))
        if chosen.get("ceil_mode"):
            for axis, (size, window, step) in enumerate(
                zip(x.shape[2:], reach, steps, strict=True)
            ):
                padded = size + pads[axis] + pads[axis + rank]
                more = -(padded - window) % step
                if padded + more - window < size + pads[axis]:  # the last window starts inside
                    pads[axis + rank] += more
        flat = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
        full = torch.nn.functional.pad(_tensor(x), flat, value=float("-inf"))
        pooled = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[rank - 1]
        return (pooled(full, kernel, steps, 0, tuple(spread)).numpy(),)


class GlobalMaxPool(_Op):
    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(tuple(range(2, x.ndim)), keepdims=True),)


# -- products ------------------------------------------------------------------------------------


class MatMul(_Op):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return ((_tensor(a) @ _tensor(b)).numpy(),)


class Gemm(_Op):
    def _run(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        transA: int | None = None,  # noqa: N803 - ONNX's name
        transB: int | None = None,  # noqa: N803
        **_: Any,
    ) -> tuple[Array]:
        left, right = _tensor(a.T if transA else a), _tensor(b.T if transB else b)
        product = (1.0 if alpha is None else float(alpha)) * (left @ right)
        if c is not None:
            product = product + (1.0 if beta is None else float(beta)) * _tensor(c)
        return (product.numpy(),)


class Conv(_Op):
    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Any = None,
        group: int | None = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        import torch

        rank = x.ndim - 2
        strides, dilations = tuple(strides or [1] * rank), tuple(dilations or [1] * rank)
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
        pads = _padding(auto_pad, x.shape[2:], reach, strides, pads)
        flat = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
        padded = torch.nn.functional.pad(_tensor(x), flat)
        convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        bias = None if b is None else _tensor(b)
        return (convolve(padded, _tensor(w), bias, strides, 0, dilations, group or 1).numpy(),)


def _padding(
    auto_pad: str | None,
    sizes: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] | None,
) -> list[int]:
    """The elements that are added before and behind each axis, all before first."""
    if not (auto_pad or "").startswith("SAME"):
        return list(pads or []) if auto_pad in (None, "NOTSET") and pads else [0] * 2 * len(sizes)
    missing = [
        max((-(-size // step) - 1) * step + window - size, 0)
        for size, window, step in zip(sizes, reach, strides, strict=True)
    ]
    less, more = [m // 2 for m in missing], [m - m // 2 for m in missing]
    return less + more if auto_pad == "SAME_UPPER" else more + less


class ConvTranspose(_Op):
    """The evaluator's own mixes up the channels of groups."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Any = None,
        group: int | None = None,
        kernel_shape: Any = None,
        output_padding: Any = None,
        output_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        import torch

        rank = x.ndim - 2
        strides, dilations = tuple(strides or [1] * rank), tuple(dilations or [1] * rank)
        more = list(output_padding or [0] * rank)
        convolve = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[
            rank - 1
        ]
        whole = convolve(
            _tensor(x), _tensor(w), None, strides, 0, 0, group or 1, dilations
        )  # without any padding; what is padded is cut off
        sizes = [size + extra for size, extra in zip(whole.shape[2:], more, strict=True)]
        if output_shape or (auto_pad or "").startswith("SAME"):
            wanted = list(
                output_shape or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
            )
            over = [n - w for n, w in zip(sizes, wanted[-rank:], strict=True)]
            more = [extra + max(-n, 0) for extra, n in zip(more, over, strict=True)]
            sizes = [size + max(-n, 0) for size, n in zip(sizes, over, strict=True)]
            cut = [max(n, 0) for n in over]
            less, rest = [c // 2 for c in cut], [c - c // 2 for c in cut]
            pads = less + rest if auto_pad == "SAME_UPPER" else rest + less
        pads = list(pads or [0] * 2 * rank)
        flat = [side for extra in reversed(more) for side in (0, extra)]
        whole = torch.nn.functional.pad(whole, flat)
        kept = [slice(pads[i], size - pads[i + rank]) for i, size in enumerate(sizes)]
        y = whole[(slice(None), slice(None), *kept)]
        if b is not None:
            y = y + _tensor(b).reshape(-1, *[1] * rank)
        return (y.numpy(),)


_OPS: dict[str, type[OpRun]] = {
    op.__name__: op
    for op in (
        BatchNormalization,
        Conv,
        ConvTranspose,
        DequantizeLinear,
        Erf,
        Gelu,
        Gemm,
        GlobalMaxPool,
        GroupNormalization,
        Hardmax,
        LayerNormalization,
        LogSoftmax,
        Loop,
        MatMul,
        MaxPool,
        QuantizeLinear,
        Resize,
        RoiAlign,
        Scatter,
        Softmax,
        Unsqueeze,
        Upsample,
    )
}
