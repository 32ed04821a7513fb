"""How an ONNX operator is written in a later version of the operator set.

Most of it the schemas say: attributes that are gone but have an input of their name become
constant inputs, and defaults that have changed are written out (``by_schema``). Where the meaning
has changed in another way there is a rule in ``RULES``. ``opset.py`` holds what comes out against
what went in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normswap.graph.graph import Array
from normswap.graph.onnx.nodes import constant_tensor
from normswap.graph.onnx.shapes import Types

_INPUT_OF = {"value": "constant_value", "k": "K"}
"""The names of inputs that had another one as an attribute."""
_VECTORS = ("K",)
"""Inputs that are vectors of one number, where they were attributes of one number."""


class Unraisable(Exception):
    """An operator that cannot be written in the later version; ``args[0]`` says why."""


@dataclass
class Draft:
    """An operator that is being rewritten.

    ``op``, ``inputs`` and ``attributes`` are what it is so far; ``nodes`` stand in front of it,
    ``wrap`` adds those behind it, ``constants`` are new. ``types``: of the values that it reads, by
    name. ``by_rule``: whether one of ``RULES`` has changed it.
    """

    node: ir.Node
    types: Types
    op: str
    inputs: list[ir.Value | None]
    attributes: dict[str, Any]
    nodes: list[ir.Node] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)
    wrap: Callable[[ir.Value], ir.Value] | None = None
    by_rule: bool = False

    @classmethod
    def of(cls, node: ir.Node, types: Types) -> Draft:
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        return cls(node, types, node.op_type, list(node.inputs), attributes)

    def state(self) -> tuple[Any, ...]:
        """What it is so far, to be compared."""
        return self.op, tuple(self.inputs), dict(self.attributes), self.wrap

    def constant(self, array: Array, what: str) -> ir.Value:
        tensor = ir.tensor(np.asarray(array), name=f"{self.node.outputs[0].name}.{what}")
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.constants.append(value)
        return value

    def add(self, op: str, inputs: list[ir.Value], what: str, **attributes: Any) -> ir.Value:
        """A node of its own; its output."""
        node = ir.node(op, inputs, attributes)
        node.outputs[0].name = f"{self.node.outputs[0].name}.{what}"
        self.nodes.append(node)
        return node.outputs[0]

    def dtype(self, index: int = 0) -> np.dtype[Any]:
        """The dtype of an input."""
        value = self.inputs[index]
        known = None if value is None else self.types.get(str(value.name), (None, None))[1]
        if known is None and value is not None and value.dtype is not None:
            known = value.dtype.numpy()
        if known is None:
            raise Unraisable("the dtype of its input is unknown")
        return known

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an input."""
        value = self.inputs[index]
        known = None if value is None else self.types.get(str(value.name), (None, None))[0]
        if known is None:
            raise Unraisable("the shape of its input is unknown")
        return known

    def fixed(self, index: int, what: str) -> Array:
        """The array of an input that must be constant."""
        value = self.inputs[index] if index < len(self.inputs) else None
        tensor = None if value is None else constant_tensor(value)
        if tensor is None:
            raise Unraisable(f"its {what} are computed")
        return tensor.numpy()


def by_schema(draft: Draft, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> None:
    """Attributes become inputs where the new schema has them as such, and defaults of the old one
    are written out where the new one has others.

    Raises Unraisable for an attribute that has no place in the new version.
    """
    names = [formal.name for formal in new.inputs]
    for name, attribute in old.attributes.items():
        place = _INPUT_OF.get(name, name)
        default = attribute.default_value
        if name in new.attributes:
            if name not in draft.attributes and default != new.attributes[name].default_value:
                _write_default(draft, name, default)
        elif place in names:
            if name not in draft.attributes and default.type == onnx.AttributeProto.INT:
                _write_default(draft, name, default)
            if name in draft.attributes:
                _as_input(draft, names.index(place), place, draft.attributes.pop(name))
        elif name in draft.attributes:
            value = draft.attributes.pop(name)
            if not default.type or value != _default(default):
                raise Unraisable(f"its attribute {name}={value} has no place there")
    if len(draft.node.outputs) > len(new.outputs) and not _is_variadic(new.outputs):
        raise Unraisable("it has more outputs than there")


def _is_variadic(formals: Any) -> bool:
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return bool(formals) and formals[-1].option == variadic


def _write_default(draft: Draft, name: str, default: onnx.AttributeProto) -> None:
    if default.type:
        draft.attributes[name] = _default(default)


def _default(default: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(default)
    return value.decode() if isinstance(value, bytes) else value


def _as_input(draft: Draft, index: int, name: str, value: Any) -> None:
    if isinstance(value, float):
        floats = draft.dtype() if name in ("min", "max", "constant_value") else np.float32
        array = np.array(value, floats)
    elif isinstance(value, int):
        array = np.array([value] if name in _VECTORS else value, np.int64)
    else:
        array = np.array(value, np.float32 if name == "scales" else np.int64)
    draft.inputs += [None] * (index + 1 - len(draft.inputs))
    draft.inputs[index] = draft.constant(array, name)


# -- where the meaning has changed ---------------------------------------------------------------


def _coerced(draft: Draft) -> None:
    """Softmax of the input as a matrix, whose rows are the axes from ``axis`` on."""
    x, axis = draft.inputs[0], int(draft.attributes.get("axis", 1))
    known = draft.types.get(str(x.name), (None, None))[0] if x is not None else None
    if known is not None and axis % len(known) == len(known) - 1:
        draft.attributes["axis"] = -1
        return
    assert x is not None  # it has one input
    sizes = draft.add("Shape", [x], "sizes")
    draft.inputs[0] = draft.add("Flatten", [x], "matrix", axis=axis)
    draft.attributes["axis"] = -1
    draft.wrap = lambda y: draft.add("Reshape", [y, sizes], "back")


def _resize(draft: Draft) -> None:
    """Resize of opset 10, or Upsample: asymmetric coordinates."""
    shrinks = draft.op == "Resize"  # Upsample rounds down, whatever the scale
    if draft.attributes.get("mode", "nearest") == "nearest":
        scales = draft.fixed(1, "scales")
        if shrinks and (scales < 1).any() and (scales > 1).any():
            raise Unraisable("it enlarges one axis and shrinks another")
        down = shrinks and bool((scales < 1).any())
        draft.attributes["nearest_mode"] = "ceil" if down else "floor"
    draft.attributes["coordinate_transformation_mode"] = "asymmetric"
    draft.op = "Resize"
    draft.inputs = [draft.inputs[0], None, draft.inputs[1]]


def _renamed(op: str) -> Callable[[Draft], None]:
    def rename(draft: Draft) -> None:
        draft.op = op

    return rename


def _per_channel(draft: Draft) -> None:
    """GroupNormalization: a scale and a bias for each channel, not for each group."""
    channels, groups = draft.shape()[1], int(draft.attributes["num_groups"])
    for index, what in ((1, "scale"), (2, "bias")):
        each = np.repeat(draft.fixed(index, "scales"), channels // groups)
        draft.inputs[index] = draft.constant(each, what)


def _corners(draft: Draft) -> None:
    draft.attributes["coordinate_transformation_mode"] = "output_half_pixel"


def _renamed_modes(draft: Draft) -> None:
    new = {"bilinear": "linear", "bicubic": "cubic"}
    mode = draft.attributes.get("mode", "bilinear")
    draft.attributes["mode"] = new.get(mode, mode)


def _inference_only(draft: Draft) -> None:
    if len([value for value in draft.node.outputs if value.name]) > 1:
        raise Unraisable("it is in its training form, with more than one output")


def _counted(draft: Draft) -> None:
    if len(draft.inputs) < 2 or draft.inputs[1] is None:
        draft.attributes["num_outputs"] = len(draft.node.outputs)


def _no_crop_and_resize_of_tf(draft: Draft) -> None:
    if draft.attributes.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise Unraisable("tf_half_pixel_for_nn has no place there")


def _refused(why: str) -> Callable[[Draft], None]:
    def refuse(draft: Draft) -> None:
        raise Unraisable(why)

    return refuse


RULES: Mapping[str, tuple[tuple[int, Callable[[Draft], None]], ...]] = {
    "Softmax": ((13, _coerced),),
    "LogSoftmax": ((13, _coerced),),
    "Hardmax": ((13, _coerced),),
    "Upsample": ((10, _resize),),
    "Resize": ((11, _resize), (13, _no_crop_and_resize_of_tf)),
    "Scatter": ((11, _renamed("ScatterElements")),),
    "Scan": ((9, _refused("its batch has no place there")),),
    "GroupNormalization": ((21, _per_channel),),
    "RoiAlign": ((16, _corners),),
    "GridSample": ((20, _renamed_modes),),
    "BatchNormalization": ((14, _inference_only),),
    "Dropout": ((10, _inference_only), (12, _inference_only)),
    "Split": ((18, _counted),),
}
"""By operator: from which version on it means something else, and how the old is written there."""


@functools.cache
def meaning_of(op: str, opset: int) -> tuple[object, ...]:
    """What tells the versions of an operator from each other that compute something else: how often
    its meaning had changed up to ``opset``, and the values of attributes that are absent."""
    changes = sum(version <= opset for version, _ in RULES.get(op, ()))
    try:
        attributes = onnx.defs.get_schema(op, opset).attributes
    except onnx.defs.SchemaError:  # one of another domain
        return (changes,)
    defaults = {n: a.default_value for n, a in attributes.items() if a.default_value.type}
    return changes, repr(sorted((n, _default(default)) for n, default in defaults.items()))
