"""Sizes for the dynamic dimensions of an ONNX graph's inputs, such that the graph accepts them.

A batch may be anything. An image whose height and width are symbols still has to fit the position
embedding, so sizes are tried until shape inference finds no contradiction.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from normswap.graph.operators import operator

BATCH = 2  # the size of a dynamic first axis
_IMAGE_RANK = 4
_IMAGES = (224, 384, 336, 256, 518, 448, 512, 128, 64, 32, 16, 8)
_TEXTS = (16, 77, 64, 32, 128, 12, 8, 256, 512)
_log = logging.getLogger(__name__)
Symbol = tuple[str, int] | str  # of a dimension: its name, or input and axis where it has none


def example_shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """The shape of each input that has one, by name, the dynamic dimensions filled in."""
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    shaped = {str(v.name): v.shape for v in inputs if v.shape is not None}
    symbols = {name: [_symbol(name, a, d) for a, d in enumerate(s)] for name, s in shaped.items()}
    choices = _choices(model, symbols)
    assignments = _assignments(choices)
    first = next(assignments)
    chosen = first
    if len(choices) > sum(len(values) == 1 for values in choices.values()):
        for assignment in itertools.chain([first], assignments):
            if _fits(model, _filled(symbols, assignment)):
                chosen = assignment
                break
        else:
            _log.debug("no sizes were found that fit all symbolic dimensions")
    return _filled(symbols, chosen)


def _symbol(name: str, axis: int, dim: int | ir.SymbolicDim) -> Symbol | int:
    if isinstance(dim, int):
        return dim
    return str(dim.value) if dim.value is not None else (name, axis)


def _choices(
    model: ir.Model, symbols: dict[str, list[Symbol | int]]
) -> dict[Symbol, tuple[int, ...]]:
    """What to try for each symbol: one size for a batch or the channels, several for the rest."""
    found: dict[Symbol, tuple[int, ...]] = {}
    for name, dims in symbols.items():
        image = len(dims) == _IMAGE_RANK
        for axis, symbol in enumerate(dims):
            if isinstance(symbol, int):
                continue
            sizes = (BATCH,) if axis == 0 else _IMAGES if image else _TEXTS
            if image and axis == 1:
                sizes = (_channels(model, name),)
            if symbol not in found or len(sizes) == 1:
                found[symbol] = sizes
    return found


def _channels(model: ir.Model, name: str) -> int:
    """The input channels of the first convolution of an image."""
    value = next(v for v in model.graph.inputs if v.name == name)
    pending, seen = [value], set[ir.Value]()
    while pending:
        value = pending.pop(0)
        for node, index in value.uses():
            if node.op_type == "Conv" and index == 0 and len(node.inputs) > 1:
                weight = node.inputs[1]
                if weight is not None and weight.shape is not None and weight.shape.is_static():
                    group = node.attributes.get("group")
                    return int(weight.shape.numpy()[1]) * (group.as_int() if group else 1)
            rescales = operator(node.op_type).combines_two or node.op_type == "Cast"
            if value not in seen and rescales:
                pending.extend(node.outputs)
        seen.add(value)
    return 3


def _assignments(choices: dict[Symbol, tuple[int, ...]]) -> Iterator[dict[Symbol, int]]:
    """One size per symbol: symbols with the same choices (height and width) take the same."""
    groups = list(dict.fromkeys(choices.values()))
    for sizes in itertools.product(*groups):
        size_of = dict(zip(groups, sizes, strict=True))
        yield {symbol: size_of[options] for symbol, options in choices.items()}


def _filled(
    symbols: dict[str, list[Symbol | int]], sizes: dict[Symbol, int]
) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(d if isinstance(d, int) else sizes[d] for d in dims)
        for name, dims in symbols.items()
    }


def _fits(model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether shape inference finds nothing wrong, and no empty value."""
    sized = model.clone()
    for value in sized.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    results = forget_shapes(sized)
    with _silence():  # it logs what is wrong, and leaves the model as it is
        ShapeInferencePass(check_type=False, strict_mode=True, data_prop=True)(sized)
    known = [value.shape for value in results if value.shape is not None]
    return bool(known) and not any(isinstance(d, int) and d <= 0 for s in known for d in s)


def forget_shapes(model: ir.Model) -> list[ir.Value]:
    """Leaves shapes to be inferred anew, for other sizes of the inputs; the values without one."""
    results = [value for node in model.graph for value in node.outputs]
    for value in results:
        value.shape = None
    return results


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    logger = logging.getLogger(ShapeInferencePass.__module__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
