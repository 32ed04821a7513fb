"""How ATen operators read in ONNX's vocabulary, and how those that passes insert are written.

``read`` is a table from overload to operator name, inputs and attributes. A reader gets the
operator's arguments by their schema names (defaults filled in) and returns a ``Reading``. Its
``slots`` say which arguments are the inputs, in ONNX's order; what other tensors or symbolic sizes
the call takes are appended as further inputs by the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from normswap.graph.graph import Value
from normswap.graph.tensors import to_torch

aten = torch.ops.aten
Slot = tuple[str, int | None]


@dataclass(frozen=True)
class Reading:
    """An operator in ONNX's vocabulary; ``slots``: (argument name, position in a list or None)."""

    op: str
    slots: tuple[Slot, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


Arguments = dict[str, Any]
_READERS: dict[Any, Callable[[Arguments], Reading]] = {}


def read(target: Any, arguments: Arguments) -> Reading | None:
    """The reading of one call, or None for an operator without an ONNX counterpart here."""
    reader = _READERS.get(target)
    return reader(arguments) if reader else None


def _reads(*targets: Any) -> Callable[[Callable[[Arguments], Reading]], None]:
    def register(reader: Callable[[Arguments], Reading]) -> None:
        _READERS.update(dict.fromkeys(targets, reader))

    return register


def _slots(*names: str) -> tuple[Slot, ...]:
    return tuple((name, None) for name in names)


def _rank(node: Any) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else None


def _axis(node: Any, axis: int) -> int:
    rank = _rank(node)
    return axis + rank if axis < 0 and rank is not None else axis


def _axes(node: Any, axes: Any) -> tuple[int, ...]:
    if axes is None or axes == []:
        return tuple(range(_rank(node) or 0))
    axes = [axes] if isinstance(axes, int) else axes
    return tuple(sorted(_axis(node, a) for a in axes))


def _static(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _same(op: str, *names: str) -> Callable[[Arguments], Reading]:
    return lambda a: Reading(op, _slots(*names))


for _op, _names, _targets in [
    ("Sqrt", ["self"], [aten.sqrt.default]),
    ("Rsqrt", ["self"], [aten.rsqrt.default]),
    ("Reciprocal", ["self"], [aten.reciprocal.default]),
    ("Relu", ["self"], [aten.relu.default, aten.relu_.default]),
    ("Sigmoid", ["self"], [aten.sigmoid.default]),
    ("Tanh", ["self"], [aten.tanh.default]),
    ("Erf", ["self"], [aten.erf.default]),
    ("Exp", ["self"], [aten.exp.default]),
    ("Abs", ["self"], [aten.abs.default]),
    ("Neg", ["self"], [aten.neg.default]),
    ("Swish", ["self"], [aten.silu.default, aten.silu_.default]),
    ("HardSwish", ["self"], [aten.hardswish.default, aten.hardswish_.default]),
    ("Gelu", ["self"], [aten.gelu.default]),
    ("Mul", ["self", "other"], [aten.mul.Tensor, aten.mul.Scalar]),
    ("Div", ["self", "other"], [aten.div.Tensor, aten.div.Scalar]),
    ("MatMul", ["self", "other"], [aten.matmul.default]),
    ("MatMul", ["self", "mat2"], [aten.mm.default, aten.bmm.default]),
    ("Linear", ["input", "weight", "bias"], [aten.linear.default]),
    ("Mul", ["self", "self"], [aten.square.default]),
    ("Pow", ["self", "exponent"], [aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor]),
    ("Expand", ["self"], [aten.expand.default, aten.expand_as.default]),
    ("Log", ["self"], [aten.log.default]),
    ("Dropout", ["input"], [aten.dropout.default]),
    (
        "Identity",
        ["self"],
        [
            aten.alias.default,
            aten.contiguous.default,
            aten.clone.default,
            aten.detach.default,
            aten.detach_.default,
            aten.lift_fresh_copy.default,
            aten.lift_fresh.default,
            aten.to.device,
        ],
    ),
    (
        "Cast",
        ["self"],
        [
            aten.to.dtype,
            aten.to.dtype_layout,
            aten._to_copy.default,
            aten.type_as.default,
        ],
    ),
    (
        "Reshape",
        ["self"],
        [
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.flatten.using_ints,
            aten.unflatten.int,
            aten.reshape_as.default,
            aten.view_as.default,
        ],
    ),
]:
    _reads(*_targets)(_same(_op, *_names))


@_reads(aten.add.Tensor, aten.add.Scalar, aten.add_.Tensor)
def _add(a: Arguments) -> Reading:
    return Reading("Add" if a.get("alpha", 1) == 1 else "aten.add.alpha", _slots("self", "other"))


@_reads(aten.sub.Tensor, aten.sub.Scalar)
def _sub(a: Arguments) -> Reading:
    return Reading("Sub" if a.get("alpha", 1) == 1 else "aten.sub.alpha", _slots("self", "other"))


@_reads(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(a: Arguments) -> Reading:
    return Reading("Sub" if a.get("alpha", 1) == 1 else "aten.rsub.alpha", _slots("other", "self"))


@_reads(aten.scaled_dot_product_attention.default)
def _attention(a: Arguments) -> Reading:
    attributes: dict[str, Any] = {"is_causal": int(a["is_causal"])}
    if a["scale"] is not None:
        attributes["scale"] = float(a["scale"])
    return Reading("Attention", _slots("query", "key", "value"), attributes)


@_reads(aten.addmm.default)
def _addmm(a: Arguments) -> Reading:
    attributes = {"alpha": float(a["alpha"]), "beta": float(a["beta"]), "transA": 0, "transB": 0}
    return Reading("Gemm", _slots("mat1", "mat2", "self"), attributes)


@_reads(
    *(aten.conv2d.default, aten.conv1d.default, aten.conv3d.default, aten.convolution.default),
    *(aten.conv2d.padding, aten.conv1d.padding, aten.conv3d.padding),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
)
def _conv(a: Arguments) -> Reading:
    padding = a["padding"]
    attributes = {
        "strides": tuple(a["stride"]),
        "pads": ((int(padding != "valid"),) if isinstance(padding, str) else tuple(padding) * 2),
        "dilations": tuple(a["dilation"]),
        "group": a["groups"],
    }
    transposed = a.get("transposed", "output_padding" in a)  # aten.convolution is of both kinds
    if transposed:
        attributes["output_padding"] = tuple(a["output_padding"])
    op = "ConvTranspose" if transposed else "Conv"
    return Reading(op, _slots("input", "weight", "bias"), attributes)


def _axis_and_epsilon(a: Arguments) -> dict[str, Any]:
    rank, count, eps = _rank(a["input"]), len(a["normalized_shape"]), a["eps"]
    if eps is None:  # rms_norm's default
        value = a["input"].meta.get("val")
        eps = torch.finfo(value.dtype).eps if isinstance(value, torch.Tensor) else math.nan
    return {"axis": rank - count if rank else -count, "epsilon": float(eps)}


@_reads(aten.layer_norm.default, aten.native_layer_norm.default)
def _layer_norm(a: Arguments) -> Reading:
    return Reading("LayerNormalization", _slots("input", "weight", "bias"), _axis_and_epsilon(a))


@_reads(aten.rms_norm.default, aten._fused_rms_norm.default)
def _rms_norm(a: Arguments) -> Reading:
    return Reading("RMSNormalization", _slots("input", "weight"), _axis_and_epsilon(a))


@_reads(aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
def _batch_norm(a: Arguments) -> Reading:
    slots = _slots("input", "weight", "bias", "running_mean", "running_var")
    training = bool(a.get("training")) or a["running_mean"] is None
    attributes = {"epsilon": float(a["eps"]), "training_mode": int(training)}
    return Reading("BatchNormalization", slots, attributes)


@_reads(aten.group_norm.default, aten.native_group_norm.default)
def _group_norm(a: Arguments) -> Reading:
    groups = a["num_groups"] if "num_groups" in a else a["group"]
    attributes = {"num_groups": groups, "epsilon": float(a["eps"])}
    return Reading("GroupNormalization", _slots("input", "weight", "bias"), attributes)


@_reads(aten.instance_norm.default)
def _instance_norm(a: Arguments) -> Reading:
    if not a["use_input_stats"]:
        slots = _slots("input", "weight", "bias", "running_mean", "running_var")
        attributes = {"epsilon": float(a["eps"]), "training_mode": 0}
        return Reading("BatchNormalization", slots, attributes)
    attributes = {"epsilon": float(a["eps"])}
    return Reading("InstanceNormalization", _slots("input", "weight", "bias"), attributes)


@_reads(aten._native_batch_norm_legit.no_stats)
def _batch_norm_of_the_batch(a: Arguments) -> Reading:
    attributes = {"epsilon": float(a["eps"]), "training_mode": 1}
    return Reading("BatchNormalization", _slots("input", "weight", "bias"), attributes)


def _reduction(op: str) -> Callable[[Arguments], Reading]:
    def read_reduction(a: Arguments) -> Reading:
        attributes = {"axes": _axes(a["self"], a["dim"]), "keepdims": int(a["keepdim"])}
        return Reading(op, _slots("self"), attributes)

    return read_reduction


_reads(aten.mean.dim)(_reduction("ReduceMean"))
_reads(aten.sum.dim_IntList)(_reduction("ReduceSum"))


@_reads(aten.linalg_vector_norm.default)
def _vector_norm(a: Arguments) -> Reading:
    return _reduction("ReduceL2" if a["ord"] == 2 else "aten.linalg_vector_norm.default")(a)


@_reads(aten.adaptive_avg_pool2d.default)
def _global_average(a: Arguments) -> Reading:
    if list(a["output_size"]) != [1, 1] or _rank(a["self"]) != 4:
        return _adaptive(a)
    return Reading("ReduceMean", _slots("self"), {"axes": (2, 3), "keepdims": 1})


@_reads(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool3d.default)
def _adaptive_average(a: Arguments) -> Reading:
    return _adaptive(a)


def _adaptive(a: Arguments) -> Reading:
    rank, count = _rank(a["self"]) or 0, len(a["output_size"])
    attributes = {"resized": tuple(range(rank - count, rank))}
    return Reading(f"aten.adaptive_avg_pool{count}d.default", _slots("self"), attributes)


@_reads(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def _average(a: Arguments) -> Reading:
    count = len(a["kernel_size"])
    if _rank(a["self"]) != count + 2 or a.get("divisor_override") is not None:
        return Reading(f"aten.avg_pool{count}d.default", _slots("self"))
    attributes = {
        "kernel_shape": tuple(a["kernel_size"]),
        "pads": tuple(a["padding"]) * 2,
        "ceil_mode": int(a["ceil_mode"]),
        "count_include_pad": int(a["count_include_pad"]),
    }
    return Reading("AveragePool", _slots("self"), attributes)


_INTERPOLATIONS = [
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
]


@_reads(*(getattr(getattr(aten, name), o) for name in _INTERPOLATIONS for o in ("default", "vec")))
def _interpolate(a: Arguments) -> Reading:
    name = "input" if "input" in a else "self"
    return Reading("Resize", _slots(name), {"resized": tuple(range(2, _rank(a[name]) or 0))})


@_reads(aten.softmax.int, aten._softmax.default)
def _softmax(a: Arguments) -> Reading:
    return Reading("Softmax", _slots("self"), {"axis": _axis(a["self"], a["dim"])})


def _spread(op: str) -> Callable[[Arguments], Reading]:
    """Of a variance or a deviation, which have the names that torch gives them."""

    def read_spread(a: Arguments) -> Reading:
        given = a.get("correction", int(a.get("unbiased", True)))
        attributes = {
            "axes": _axes(a["self"], a["dim"]),
            "keepdims": int(a["keepdim"]),
            "correction": 1 if given is None else given,
        }
        return Reading(op, _slots("self"), attributes)

    return read_spread


for _statistic in (aten.var, aten.std, aten.var_mean, aten.std_mean):
    for _overload in (_statistic.correction, _statistic.dim):
        _reads(_overload)(_spread(str(_overload)))


@_reads(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
def _clamp(a: Arguments) -> Reading:
    bounds = {name: a[name] for name in ("min", "max") if a.get(name) is not None}
    return Reading("Clip", _slots("self"), bounds)


@_reads(aten.sym_size.int)
def _size(a: Arguments) -> Reading:
    return Reading("Shape", _slots("self"), {"axis": _axis(a["self"], a["dim"])})


@_reads(aten.permute.default)
def _permute(a: Arguments) -> Reading:
    perm = tuple(_axis(a["self"], axis) for axis in a["dims"])
    return Reading("Transpose", _slots("self"), {"perm": perm})


@_reads(aten.transpose.int, aten.t.default, aten.swapaxes.default)
def _transpose(a: Arguments) -> Reading:
    first: int = a["dim0"] if "dim0" in a else a.get("axis0", 0)
    second: int = a["dim1"] if "dim1" in a else a.get("axis1", 1)
    perm = list(range(_rank(a["self"]) or 0))
    if len(perm) > 1:
        perm[first], perm[second] = perm[second], perm[first]
    return Reading("Transpose", _slots("self"), {"perm": tuple(perm)})


@_reads(aten.unsqueeze.default)
def _unsqueeze(a: Arguments) -> Reading:
    axis = a["dim"] if a["dim"] >= 0 else a["dim"] + (_rank(a["self"]) or 0) + 1
    return Reading("Unsqueeze", _slots("self"), {"axes": (axis,)})


@_reads(aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(a: Arguments) -> Reading:
    return Reading("Squeeze", _slots("self"), {"axes": _axes(a["self"], a["dim"])})


@_reads(aten.cat.default)
def _cat(a: Arguments) -> Reading:
    slots = tuple(("tensors", i) for i in range(len(a["tensors"])))
    return Reading("Concat", slots, {"axis": _axis(a["tensors"][0], a["dim"])})


@_reads(aten.slice.Tensor)
def _slice(a: Arguments) -> Reading:
    start = 0 if a["start"] is None else _static(a["start"])
    end = 2**63 - 1 if a["end"] is None else _static(a["end"])
    attributes: dict[str, Any] = {"axes": (_axis(a["self"], a["dim"]),), "steps": (a["step"],)}
    if start is not None and end is not None:
        attributes |= {"starts": (start,), "ends": (end,)}
    return Reading("Slice", _slots("self"), attributes)


@_reads(aten.select.int)
def _select(a: Arguments) -> Reading:
    attributes = {"axis": _axis(a["self"], a["dim"]), "index": _static(a["index"])}
    return Reading("Gather", _slots("self"), attributes)


@_reads(aten.index_select.default)
def _index_select(a: Arguments) -> Reading:
    return Reading("Gather", _slots("self", "index"), {"axis": _axis(a["self"], a["dim"])})


@_reads(aten.roll.default)
def _roll(a: Arguments) -> Reading:
    """Without axes it rolls the flattened value."""
    attributes = {"axes": _axes(a["self"], a["dims"])} if a["dims"] else {}
    return Reading("aten.roll.default", _slots("self"), attributes)


@_reads(aten.flip.default)
def _flip(a: Arguments) -> Reading:
    return Reading("aten.flip.default", _slots("self"), {"axes": _axes(a["self"], a["dims"])})


@_reads(aten.repeat.default)
def _repeat(a: Arguments) -> Reading:
    if len(a["repeats"]) != _rank(a["self"]):  # it adds axes
        return Reading("aten.repeat.default", _slots("self"))
    return Reading("Tile", _slots("self"), {"repeats": tuple(map(_static, a["repeats"]))})


@_reads(aten.pad.default, aten.constant_pad_nd.default)
def _pad(a: Arguments) -> Reading:
    rank, pads = _rank(a["self"]), [size for size in a["pad"] if isinstance(size, int)]
    attributes: dict[str, Any] = {"mode": a.get("mode", "constant"), "value": a["value"] or 0}
    if rank is not None and len(pads) == len(a["pad"]):  # torch has pairs, from the last axis on
        pairs = [(0, 0)] * (rank - len(pads) // 2)
        pairs += list(zip(pads[-2::-2], pads[::-2], strict=True))
        attributes["pads"] = tuple(p[0] for p in pairs) + tuple(p[1] for p in pairs)
    return Reading("Pad", _slots("self"), attributes)


@_reads(aten.embedding.default)
def _embedding(a: Arguments) -> Reading:
    return Reading("Gather", _slots("weight", "indices"), {"axis": 0})


@_reads(aten.index.Tensor)
def _index(a: Arguments) -> Reading:
    indices = a["indices"]
    depth = next((i for i, index in enumerate(indices) if index is None), len(indices))
    given = [axis for axis, index in enumerate(indices) if index is not None]
    if depth == 0 and len(given) == 1 and _is_integer(indices[given[0]]):
        return Reading("Gather", (*_slots("self"), ("indices", given[0])), {"axis": given[0]})
    if depth == 0 or len(given) > depth:
        return Reading("aten.index.Tensor", _slots("self"))
    return Reading("GatherND", _slots("self"), {"depth": depth})


def _is_integer(node: Any) -> bool:
    """Whether an index is one of positions, not a mask."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in (torch.int64, torch.int32)


@_reads(aten.unbind.int)
def _unbind(a: Arguments) -> Reading:
    attributes = {"axis": _axis(a["self"], a["dim"]), "keepdims": False}
    return Reading("Split", _slots("self"), attributes)


@_reads(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def _split(a: Arguments) -> Reading:
    attributes = {"axis": _axis(a["self"], a["dim"]), "keepdims": True}
    return Reading("Split", _slots("self"), attributes)


# The operators that can be written, with the arguments that are their inputs, in ONNX's order.
WRITTEN: dict[str, tuple[Slot, ...]] = {
    "LayerNormalization": _slots("input", "weight", "bias"),
    "RMSNormalization": _slots("input", "weight"),
    "Cast": _slots("self"),
    "Transpose": _slots("self"),
    "Add": _slots("self", "other"),
    "Sub": _slots("self", "other"),
    "Mul": _slots("self", "other"),
    "Div": _slots("self", "other"),
    "Sqrt": _slots("self"),
    "Abs": _slots("self"),
    "Exp": _slots("self"),
    "Clip": _slots("self"),
    "MatMul": _slots("self", "other"),
    "Gemm": _slots("mat1", "mat2", "self"),
    "Max": _slots("self", "other"),
    "ReduceMax": _slots("self"),
    "ReduceMean": _slots("self"),
}


def call_for(
    op: str, nodes: Sequence[Any], inputs: Sequence[Value | None], attributes: Mapping[str, Any]
) -> tuple[Any, tuple[Any, ...]]:
    """The overload and its arguments, given the fx nodes (or None) of the inputs."""
    if op in ("LayerNormalization", "RMSNormalization"):
        shape = cast(tuple[int, ...], cast(Value, inputs[0]).shape)[attributes["axis"] :]
        norm = aten.layer_norm if op == "LayerNormalization" else aten.rms_norm
        parameters = (*nodes[1:], None, None)[: len(WRITTEN[op]) - 1]
        return norm.default, (nodes[0], list(shape), *parameters, attributes["epsilon"])
    if op == "Cast":
        return aten.to.dtype, (nodes[0], to_torch(np.empty(0, attributes["to"])).dtype)
    if op == "Transpose":
        return aten.permute.default, (nodes[0], list(attributes["perm"]))
    if op in _REDUCTIONS:
        keep = bool(attributes["keepdims"])
        return _REDUCTIONS[op], (nodes[0], list(attributes["axes"]), keep)
    if op == "Gemm":
        return aten.addmm.default, (nodes[2], nodes[0], nodes[1])
    if op == "Clip":
        return aten.clamp.default, (nodes[0], attributes["min"], attributes["max"])
    if op in _UNARY:
        return _UNARY[op], (nodes[0],)
    return _BINARY[op], (nodes[0], nodes[1])


_REDUCTIONS = {"ReduceMax": aten.amax.default, "ReduceMean": aten.mean.dim}
_UNARY = {"Sqrt": aten.sqrt.default, "Abs": aten.abs.default, "Exp": aten.exp.default}
_BINARY = {
    "Add": aten.add.Tensor,
    "Sub": aten.sub.Tensor,
    "Mul": aten.mul.Tensor,
    "Div": aten.div.Tensor,
    "MatMul": aten.matmul.default,
    "Max": aten.maximum.default,
}
