"""Each row of the table of rules, by the values: a small graph through which a map goes, evaluated
in float64 before and after, and a look-alike that is refused.

A row that a map goes through is held to one law. If every value and every constant at the operator
changes by the map that the row gives for it, the operator gives its results, changed by theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from normswap.graph.graph import Graph, Node, Value
from normswap.graph.operators import OPERATORS
from normswap.norms import locate
from normswap.norms.site import Site
from normswap.passes.algebra.channel_map import ChannelMap
from normswap.passes.algebra.place import Place, Unseen
from normswap.passes.algebra.rules import (
    ANY_OTHER,
    CONSTANT,
    MEAN,
    RULES,
    SCALE,
    mean_subtraction,
    rule_of,
    rules_page,
)
from normswap.passes.algebra.scales import scale
from normswap.passes.algebra.spread import Norms, Spread, Start, spread
from normswap.passes.algebra.weight_edits import WeightEdits
from normswap.passes.base import Refusal
from tests.graph.onnx_text import onnx_graph
from tests.passes.fold_checks import captured

RANDOM = np.random.default_rng(0)
TOKENS = (2, 3, 4)
IMAGE = (2, 4, 6, 6)
Constants = Mapping[str, np.ndarray]


def _normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape)


def _map(axis: int, size: int, rank: int, full: bool = False, shifts: bool = True) -> ChannelMap:
    linear = _normal(size, size) + 2 * np.eye(size) if full else RANDOM.uniform(0.5, 2, size)
    return ChannelMap.along(linear, _normal(size) * shifts, axis, rank).invertible()


def _graph(
    body: str, constants: Constants, x: tuple[int, ...], also: str = "", opset: int = 18
) -> Graph:
    """``body`` computes y, of which a Relu is the output, from h, a Relu of the input x.

    ``also``: further inputs."""
    inputs = f"double[{','.join(map(str, x))}] x{also}"
    text = f"({inputs}) => (double z) {{ h = Relu(x) {body} z = Relu(y) }}"
    used = {k: v for k, v in constants.items() if re.search(rf"\b{k}\b", body)}
    return onnx_graph(text, used, opset)


def _spread_from(graph: Graph, value: Value, change: ChannelMap, downward: bool = True) -> Spread:
    """As if a map stood behind ``value``, or in front of it."""
    beside = [value.producer] if downward else value.readers
    around = frozenset(node for node in beside if node is not None)
    return spread(WeightEdits(graph), Start(value, change, downward, around))


def _absorb(change: Spread) -> None:
    change.checked().act()
    change.edits.write()


def _at(graph: Graph, op: str) -> Node:
    return next(node for node in graph.nodes if node.op == op)


# -- what a map goes through -----------------------------------------------------------------------


@dataclass(frozen=True)
class Through:
    """``body`` and ``also``: as for ``_graph``. ``axis``: of h (of ``sizes``), along which the map
    is. ``shifts``: whether it has a t. ``refused``: look-alikes, each with the reason."""

    body: str
    axis: int = -1
    sizes: tuple[int, ...] = TOKENS
    shifts: bool = True
    also: str = ""
    refused: tuple[tuple[str, str], ...] = ()


INTS = {name: np.array(numbers) for name, numbers in {
    "zero": [0], "one": [1], "two": [2], "some": [2, 0], "twice": [0, 1, 2, 3, 3], "parts": [1, 2],
    "halves": [2, 2], "flat": [6, 4], "mixed": [2, 4, 3], "all": TOKENS, "wide": [5, 2, 3, 4],
    "thrice": [1, 3, 1], "doubled": [1, 1, 2], "ends": [0, 1, 0, 0, 2, 0],
    "behind": [0, 0, 0, 0, 0, 1],
}.items()}  # fmt: skip
NUMBERS = {
    "c": _normal(3, 4), "w": _normal(4), "token": _normal(2, 1, 4), "factor": np.array([0.7]),
    "half": np.array(0.5), "yes": np.array(True), "none": np.zeros(0, np.float32),
    "grown": np.array([1, 1, 2, 1.5], np.float32), "fewer": np.array([1, 0.5, 1, 1], np.float32),
    "almost": np.array([1, 1.1, 1, 1], np.float32), "window": np.array([0, 0, 0, 0, 1, 1, 1, 2.0]),
}  # fmt: skip
SPLIT = "channels whole"
SWAPPED = "t = Transpose<perm = [0, 2, 1, 3]>(h)"
CUBIC = 'Resize<mode = "cubic", coordinate_transformation_mode = "half_pixel"'
CROP = 'Resize<coordinate_transformation_mode = "tf_crop_and_resize"'
POOL = "AveragePool<kernel_shape = [2, 2], pads = [1, 1, 1, 1]"
# fmt: off
THROUGH: dict[str, Through] = {
    "Add": Through("y = Add(h, c)", also=", double[2,3,1] k", refused=(
        ("y = Add(h, k)", "broadcasts its channels"),)),
    "Sub": Through("y = Sub(c, h)", also=", double[2,3,1] k", refused=(
        ("y = Sub(k, h)", "broadcasts its channels"),)),
    "Mul": Through("y = Mul(h, factor)", refused=(
        ("y = Mul(h, w)", "Mul 'y'"), ("y = Mul(h, h)", "Mul 'y'"))),
    "Div": Through("y = Div(h, factor)", refused=(("y = Div(c, h)", "Div 'y'"),)),
    "Neg": Through("y = Neg(h)", refused=(("y = Abs(h)", "Abs 'y'"),)),
    "Concat": Through("y = Concat<axis = 1>(h, token)"),
    "Identity": Through("y = Identity(h)"),
    "Cast": Through("y = Cast<to = 11>(h)", refused=(
        ("i = Cast<to = 7>(h) y = Cast<to = 11>(i)", "rounds it to int64"),)),
    "Dropout": Through("y = Dropout(h)", refused=(
        ("y = Dropout(h, half, yes)", "training mode"),)),
    "Transpose": Through("y = Transpose<perm = [2, 0, 1]>(h)"),
    "Reshape": Through("y = Reshape(h, flat)", refused=(("y = Reshape(h, mixed)", SPLIT),)),
    "Flatten": Through("y = Flatten<axis = 2>(h)"),
    "Squeeze": Through("y = Squeeze(h, one)", sizes=(2, 1, 4)),
    "Unsqueeze": Through("y = Unsqueeze(h, one)"),
    "Slice": Through("y = Slice(h, one, two, one)", refused=(
        ("y = Slice(h, one, two, two)", SPLIT),)),
    "Gather": Through("y = Gather<axis = 1>(h, some)", refused=(
        ("y = Gather<axis = 2>(h, twice)", SPLIT),)),
    "GatherND": Through("y = GatherND(h, i)", also=", int64[5,2] i", refused=(
        ("t = Transpose<perm = [2, 1, 0]>(h) y = GatherND(t, i)", SPLIT),)),
    "Split": Through("y, q = Split<axis = 1>(h, parts) k = Relu(q)", refused=(
        ("y, q = Split<axis = 2>(h, halves)", SPLIT),)),
    "Expand": Through("y = Expand(h, wide)"),
    "Tile": Through("y = Tile(h, thrice)", refused=(("y = Tile(h, doubled)", SPLIT),)),
    "ReduceMean": Through("y = ReduceMean<keepdims = 0>(h, one)", refused=(
        ("y = ReduceMean(h, two)", SPLIT),)),
    "ReduceSum": Through("y = ReduceSum<keepdims = 0>(h, one)", shifts=False, refused=(
        ("y = ReduceSum(h, two)", SPLIT), ("y = ReduceSum(h, one)", "sums up, where a shift"))),
    "GlobalAveragePool": Through("y = GlobalAveragePool(h)", axis=1, sizes=IMAGE, refused=(
        (f"{SWAPPED} y = GlobalAveragePool(t)", SPLIT),)),
    "AveragePool": Through(f"y = {POOL}>(h)", axis=1, sizes=IMAGE, refused=(
        (f"y = {POOL}, count_include_pad = 1>(h)", "pads, where a shift"),
        (f"{SWAPPED} y = {POOL}>(t)", SPLIT))),
    "Resize": Through(f"y = {CUBIC}>(h, none, grown)", axis=1, sizes=IMAGE, shifts=False, refused=(
        (f"y = {CUBIC}>(h, none, grown)", "is cubic, where a shift"),
        ("y = Resize(h, none, fewer)", SPLIT), ("y = Resize(h, none, almost)", SPLIT),
        (f"y = {CROP}>(h, window, grown)", "fills in"),
        ("f = Abs(s) y = Resize(h, none, f)", SPLIT)), also=", float[4] s"),
    "Pad": Through('y = Pad<mode = "edge">(h, ends)', refused=(
        ("y = Pad(h, ends)", "pads, where a shift"),
        ('y = Pad<mode = "edge">(h, behind)', SPLIT))),
}
# fmt: on


class Between(nn.Module):
    """A function between two Relus, for operators of FX alone."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.function(torch.relu(x)))


def _between(function: Callable[[torch.Tensor], torch.Tensor], sizes: tuple[int, ...]) -> Graph:
    return captured(Between(function), torch.randn(sizes), "fx").graph


def _rolled(axis: int) -> Graph:
    return _between(lambda x: torch.roll(x, 1, axis), TOKENS)


# An operator of torch: how it is called, what the view calls it, and the axis of its channels.
TORCH: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, tuple[int, ...], int]] = {
    "index": (lambda x: x[:, torch.tensor([2, 0])], "Gather", TOKENS, 2),
    "flip": (lambda x: x.flip(1), "aten.flip.default", TOKENS, 2),
    "repeat": (lambda x: x.repeat(1, 2, 1), "Tile", TOKENS, 2),
    "avg_pool": (lambda x: F.avg_pool2d(x, 2), "AveragePool", IMAGE, 1),
    "adaptive_1d": (lambda x: F.adaptive_avg_pool1d(x, 2), "aten.adaptive_avg_pool1d.default",
                    TOKENS, 1),
    "adaptive_2d": (lambda x: F.adaptive_avg_pool2d(x, (4, 5)), "aten.adaptive_avg_pool2d.default",
                    IMAGE, 1),
    "adaptive_3d": (lambda x: F.adaptive_avg_pool3d(x, 1), "aten.adaptive_avg_pool3d.default",
                    (2, 4, 2, 3, 3), 1),
    "adaptive_of_one": (lambda x: F.adaptive_avg_pool2d(x[0], 3),
                        "aten.adaptive_avg_pool2d.default", (1, 4, 6, 6), 0),
    "nearest": (lambda x: F.interpolate(x, 7), "Resize", TOKENS, 1),
    "exact": (lambda x: F.interpolate(x, scale_factor=1.2, mode="nearest-exact"), "Resize", IMAGE,
              1),
    "linear": (lambda x: F.interpolate(x, 7, mode="linear"), "Resize", TOKENS, 1),
    "bilinear": (lambda x: F.interpolate(x, (3, 9), mode="bilinear", antialias=True), "Resize",
                 IMAGE, 1),
    "bicubic": (lambda x: F.interpolate(x, (5, 9), mode="bicubic", align_corners=True), "Resize",
                IMAGE, 1),
    "trilinear": (lambda x: F.interpolate(x, 3, mode="trilinear"), "Resize", (2, 4, 2, 3, 3), 1),
}  # fmt: skip


def _spread_over(
    graph: Graph, node: Node, known: dict[Value, ChannelMap]
) -> tuple[dict[Value, ChannelMap], dict[int, ChannelMap]]:
    """All maps at ``node``: of values, and of constants by the number of the input."""
    maps, constants = dict(known), {}
    place = Place(WeightEdits(graph), node, known, downward=False, inverts=True)
    for target, change in rule_of(node.op).maps(place):
        if isinstance(target, int):
            constants[target] = change
        else:
            assert target not in known or known[target].is_same(change)
            maps[target] = change
    return maps, constants


def _check_law(graph: Graph, node: Node, known: dict[Value, ChannelMap]) -> None:
    maps, constants = _spread_over(graph, node, known)
    changed = graph.copy()
    edits = WeightEdits(changed)
    twin = next(n for n in changed.nodes if n.output.name == node.output.name)
    for index, change in constants.items():
        edits.changing_constant(twin, index, change)()
    edits.write()
    feeds = {
        v: RANDOM.integers(0, 2, v.shape) if v.dtype == np.int64 else _normal(*(v.shape or ()))
        for v in node.dynamic_inputs()
    }
    results = [v for v in node.outputs if v.uses]
    fed = {changed.value(v.name): maps[v].apply(a) if v in maps else a for v, a in feeds.items()}
    before = graph.evaluate(results, feeds, np.float64)
    after = changed.evaluate([changed.value(v.name) for v in results], fed, np.float64)
    assert any(v in maps for v in results)
    for value, old, new in zip(results, before, after, strict=True):
        expected = maps[value].apply(old) if value in maps else old
        np.testing.assert_allclose(new, expected, atol=1e-10, err_msg=value.name)


@pytest.mark.parametrize("name", TORCH)
def test_a_map_goes_through_an_operator_of_torch(name: str) -> None:
    function, op, sizes, axis = TORCH[name]
    graph = _between(function, sizes)
    node = _at(graph, op)
    x = node.data_input()
    assert x.shape is not None
    change = _map(axis, x.shape[axis], len(x.shape), full=True)
    _check_law(graph, node, {x: change})
    maps, _ = _spread_over(graph, node, {x: change})
    _check_law(graph, node, {node.output: maps[node.output]})
    last = len(x.shape) - 1 if op != "Tile" and axis != len(x.shape) - 1 else 1
    with pytest.raises(Refusal, match=SPLIT):
        _spread_over(graph, node, {x: _map(last, x.shape[last], len(x.shape), full=True)})


@pytest.mark.parametrize("opset", [7, 9])
def test_an_upsample_keeps_the_channels_that_keep_their_size(opset: int) -> None:
    body = "y = Upsample<scales = [1.0, 1.0, 2.0, 1.5]>(h)"
    body = body if opset == 7 else "y = Upsample(h, grown)"
    graph = _graph(body, NUMBERS, IMAGE, opset=opset)
    node = _at(graph, "Upsample")
    maps, _ = _spread_over(graph, node, {node.output: _map(1, 4, 4, full=True)})
    assert maps[node.data_input()].axis == 1
    with pytest.raises(Refusal, match=SPLIT):
        _spread_over(graph, node, {node.data_input(): _map(2, 6, 4)})


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("op", [*THROUGH, "aten.roll.default"])
def test_a_map_goes_through(op: str, full: bool) -> None:
    case = THROUGH.get(op, Through(""))
    graph = _graph(case.body, INTS | NUMBERS, case.sizes, case.also) if case.body else _rolled(1)
    node = _at(graph, op)
    x = next(v for v in node.dynamic_inputs() if v.rank == len(case.sizes))
    axis = case.axis % len(case.sizes)
    change = _map(axis, case.sizes[axis], len(case.sizes), full, case.shifts)
    _check_law(graph, node, {x: change})
    maps, _ = _spread_over(graph, node, {x: change})
    _check_law(graph, node, {node.output: maps[node.output]})


REFUSED = [(op, *look) for op, case in THROUGH.items() for look in case.refused]


@pytest.mark.parametrize(("op", "body", "reason"), REFUSED, ids=[body for _, body, _ in REFUSED])
def test_a_look_alike_is_refused(op: str, body: str, reason: str) -> None:
    case = THROUGH[op]
    graph = _graph(body, INTS | NUMBERS, case.sizes, case.also)
    axis = case.axis % len(case.sizes)
    change = _map(axis, case.sizes[axis], len(case.sizes), full=True)
    assert reason in _spread_from(graph, graph.value("h"), change).refusal


def test_a_roll_of_channels_is_refused() -> None:
    graph = _rolled(2)
    node = _at(graph, "aten.roll.default")
    with pytest.raises(Refusal, match="channels whole"):
        _spread_over(graph, node, {node.data_input(): _map(2, 4, 3)})


def test_two_operands_of_a_sum_need_the_same_matrix() -> None:
    graph = _graph("k = Abs(h) y = Sub(h, k)", {}, TOKENS)
    node = _at(graph, "Sub")
    h, k = node.dynamic_inputs()
    change = _map(2, 4, 3, full=True)
    _check_law(graph, node, {h: change, k: change.with_shift(_normal(1, 1, 4))})
    with pytest.raises(Refusal, match="in different ways"):
        _spread_over(graph, node, {h: change, k: _map(2, 4, 3, full=True)})
    alone = Place(WeightEdits(graph), node, {h: change})
    with pytest.raises(Refusal, match="adds to it"):
        list(RULES["Sub"].maps(alone))


def test_parts_that_are_put_together_have_maps_of_their_own() -> None:
    graph = _graph("k = Abs(h) y = Concat<axis = 2>(h, k, t)", {"t": _normal(2, 3, 2)}, TOKENS)
    node = _at(graph, "Concat")
    h, k = node.dynamic_inputs()
    _check_law(graph, node, {h: _map(2, 4, 3, full=True)})
    _check_law(graph, node, {h: _map(2, 4, 3), k: _map(2, 4, 3)})
    _check_law(graph, node, {node.output: _map(2, 10, 3)})
    with pytest.raises(Refusal, match="channels whole"):
        _spread_over(graph, node, {node.output: _map(2, 10, 3, full=True)})


def test_an_axis_that_is_stretched_cannot_be_told_apart_upward() -> None:
    graph = _graph("k = ReduceMean(h, one) y = Expand(k, all)", INTS,
                   TOKENS)  # fmt: skip
    node = _at(graph, "Expand")
    _check_law(graph, node, {node.output: _map(2, 4, 3)})
    with pytest.raises(Refusal, match="channels whole"):
        _spread_over(graph, node, {node.output: _map(1, 3, 3)})


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_a_layer_scale_joins_its_writer(full: bool) -> None:
    """y' = P (c h) = (P diag(c)) h: from y's map to one of h, in place of h itself."""
    graph = _graph("y = Mul(s, h)", {"s": _normal(4)}, TOKENS)
    node = _at(graph, "Mul")
    joins, change = RULES["Mul"].joins, _map(2, 4, 3, full)
    assert joins is not None
    joined = joins(Place(WeightEdits(graph), node, {node.output: change}, downward=False))
    assert (joined is not None) == full  # a diagonal map goes through
    if joined is not None:
        h = _normal(*TOKENS)
        (y,) = graph.evaluate([node.output], {graph.value("h"): h}, np.float64)
        np.testing.assert_allclose(joined[1].apply(h), change.apply(y), atol=1e-10)
    assert [op for op, rule in RULES.items() if rule.joins] == ["Mul"]


def test_sizes_are_read_of_any_value() -> None:
    graph = _graph("s = Shape(h) n = Gather(s, i) y = Expand(t, n)", {"i": INTS["mixed"] % 3,
                   "t": _normal(1, 1, 1)}, TOKENS)  # fmt: skip
    node = _at(graph, "Shape")
    maps, constants = _spread_over(graph, node, {node.data_input(): _map(2, 4, 3)})
    assert list(maps) == [node.data_input()]
    assert not constants


# -- what only a scale goes through ----------------------------------------------------------------


class Attends(nn.Module):
    """A fused attention between weights, which is an operator of FX; ``y`` is read by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x)
        return torch.tanh(self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))))


SCALED: dict[str, tuple[str, list[ChannelMap], list[ChannelMap]]] = {
    "Relu": ("y = Relu(h)", [_map(2, 4, 3, shifts=False), scale(0.25, 3)],
             [scale(-1.0, 3), _map(2, 4, 3), _map(2, 4, 3, full=True)]),
    "LeakyRelu": ("y = LeakyRelu(h)", [_map(2, 4, 3, shifts=False), scale(0.25, 3)],
                  [scale(-1.0, 3), _map(2, 4, 3), _map(2, 4, 3, full=True)]),
    "MatMul": ("t = Transpose<perm = [0, 2, 1]>(h) y = MatMul(t, k)", [scale(0.25, 3)],
               [scale(-1.0, 3), _map(2, 4, 3, shifts=False), _map(2, 4, 3, full=True)]),
    "Attention": ("", [scale(0.25, 3)],
                  [scale(-1.0, 3), _map(2, 4, 3, shifts=False), _map(2, 4, 3, full=True)]),
}  # fmt: skip


def _scaled_at(op: str) -> tuple[Graph, Node, Value]:
    """A graph, its node of the operator, and the input of it that may be scaled."""
    if op == "Attention":
        graph = captured(Attends(), torch.randn(TOKENS), "fx").graph
        return graph, _at(graph, op), _at(graph, op).data_input(2)
    graph = _graph(SCALED[op][0], {}, TOKENS, ", double[2,3,4] k" if op == "MatMul" else "")
    node = next(n for n in reversed(graph.nodes) if n.output.name == "y")
    return graph, node, node.dynamic_inputs()[-1]


@pytest.mark.parametrize("op", SCALED)
def test_a_scale_goes_through(op: str) -> None:
    graph, node, x = _scaled_at(op)
    _, through, refused = SCALED[op]
    for change in through:
        _check_law(graph, node, {x: change})
        _check_law(graph, node, {node.output: change})
    for change in refused:
        for value in (x, node.output):
            with pytest.raises(Refusal, match=f"{op} '{node.output.name}'"):
                _spread_over(graph, node, {value: change})


def test_both_operands_of_a_product_may_be_scaled() -> None:
    graph, node, k = _scaled_at("MatMul")
    other = node.dynamic_inputs()[0]
    both = {k: scale(0.25, 3), other: scale(0.5, 3)}
    _check_law(graph, node, both)
    _check_law(graph, node, {k: scale(0.25, 3), node.output: scale(2.0, 3)})
    with pytest.raises(Refusal, match="in different ways"):
        _spread_over(graph, node, {**both, node.output: scale(0.25, 3)})


@pytest.mark.parametrize("body", ["y = MatMul(h, h)", "t = Transpose<perm = [0, 2, 1]>(h) "
                                  "s = MatMul(h, t) p = Softmax(s) y = MatMul(p, h)"])  # fmt: skip
def test_a_product_with_itself_is_no_multiple(body: str) -> None:
    sizes = (2, 4, 4) if body == "y = MatMul(h, h)" else TOKENS
    graph = _graph(f"a = MatMul(h, w) {body.replace('h,', 'a,').replace('h)', 'a)')}",
                   {"w": _normal(4, 4)}, sizes)  # fmt: skip
    refusal = _spread_from(graph, graph.value("a"), scale(0.5, 3)).refusal
    assert re.search("MatMul 'y'|Softmax 'p'", refusal), refusal


def test_queries_keys_and_masks_of_a_fused_attention_refuse() -> None:
    graph, node, _ = _scaled_at("Attention")
    for index in (0, 1):
        with pytest.raises(Refusal, match="by Attention 'scaled_dot"):
            _spread_over(graph, node, {node.data_input(index): scale(0.5, 3)})


def test_the_values_of_an_attention_and_not_its_scores_are_scaled() -> None:
    body = ("t = Transpose<perm = [0, 2, 1]>(h) s = MatMul(h, t) p = Softmax(s) v = MatMul(h, w) "
            "o = MatMul(p, v) y = MatMul(o, w)")  # fmt: skip
    graph = _graph(body, {"w": _normal(4, 4)}, TOKENS)
    feeds = {graph.inputs[0]: _normal(*TOKENS)}
    before = graph.evaluate([graph.value(name) for name in "oy"], feeds, np.float64)
    edits = WeightEdits(graph)
    change = spread(edits, Start(graph.value("o"), scale(0.25, 3), downward=False))
    assert {value.name for value in change.checked().known} == {"v", "o"}
    _absorb(change)
    after = graph.evaluate([graph.value(name) for name in "oy"], feeds, np.float64)
    assert np.array_equal(after[0], before[0] / 4)
    assert np.array_equal(after[1], before[1])


# -- what absorbs a map ----------------------------------------------------------------------------


ABSORBING: dict[str, tuple[str, Constants, int, tuple[int, ...]]] = {
    "MatMul": ("y = MatMul(h, w)", {"w": _normal(4, 5)}, 2, TOKENS),
    "Gemm": ("y = Gemm<transB = 1, alpha = 0.5>(h, w, b)", {"w": _normal(5, 4), "b": _normal(5)}, 1,
             (3, 4)),
    "Conv": ("y = Conv(h, w)", {"w": _normal(5, 4, 2, 2)}, 1, IMAGE),
    "ConvTranspose": ("y = ConvTranspose(h, w)", {"w": _normal(4, 5, 1, 1)}, 1, IMAGE),
}  # fmt: skip


class Layer(nn.Module):
    """``Linear`` is an operator of FX alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(torch.relu(x)))


def _weight(op: str) -> tuple[Graph, Node, int]:
    if op == "Linear":
        graph, axis = captured(Layer(), torch.randn(TOKENS), "fx").graph, 2
    else:
        body, constants, axis, sizes = ABSORBING[op]
        graph = _graph(body, constants, sizes)
    return graph, _at(graph, op), axis


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("op", ["Linear", *ABSORBING])
@pytest.mark.parametrize("downward", [True, False])
def test_a_weight_absorbs_a_map(op: str, downward: bool, full: bool) -> None:
    graph, node, axis = _weight(op)
    x, y = node.data_input(), node.output
    value = x if downward else y
    change = _map(axis, (value.shape or ())[axis], value.rank or 0, full)
    without_inverse = ChannelMap(change.linear, change.shift, axis=change.axis)
    array = _normal(*(x.shape or ()))
    (old,) = graph.evaluate([y], {x: change.apply(array) if downward else array}, np.float64)
    _absorb(_spread_from(graph, value, without_inverse, downward))
    (last,) = graph.nodes[-1].inputs  # behind the bias that it may have gained
    assert last is not None
    (new,) = graph.evaluate([last], {x: array}, np.float64)
    np.testing.assert_allclose(new, old if downward else change.apply(old), atol=1e-10)


WEIGHTS_REFUSED: dict[str, tuple[str, Constants, tuple[int, ...], str]] = {
    "a_computed_matrix": ("t = Transpose<perm = [0, 2, 1]>(h) y = MatMul(h, t)", {}, TOKENS,
                          "MatMul 'y' reads it"),
    "another_axis": ("t = Transpose<perm = [0, 2, 1]>(h) y = MatMul(t, w)", {"w": _normal(3, 5)},
                     TOKENS, "along another axis"),
    "zeros_for_padding": ("y = Conv<pads = [1, 1, 1, 1]>(h, w)", {"w": _normal(5, 4, 2, 2)}, IMAGE,
                          "pads with zeros"),
    "groups": ("y = Conv<group = 4>(h, w)", {"w": _normal(4, 1, 2, 2)}, IMAGE, "groups"),
    "stretched": ("y = ConvTranspose<strides = [2, 2]>(h, w)", {"w": _normal(4, 5, 1, 1)}, IMAGE,
                  "reaches its outputs unevenly"),
    "a_computed_kernel": ("y = Conv(k, h)", {"k": _normal(1, 4, 7, 7)}, IMAGE, "Conv 'y' reads it"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS_REFUSED)
def test_what_is_no_weight_of_these_channels_refuses(name: str) -> None:
    body, constants, sizes, reason = WEIGHTS_REFUSED[name]
    graph = _graph(body, constants, sizes)
    axis = 1 if len(sizes) == 4 else 2
    change = ChannelMap.along(_normal(4, 4), _normal(4), axis, len(sizes))
    assert reason in _spread_from(graph, graph.value("h"), change).refusal


CONSTANTS: dict[str, tuple[str, str]] = {
    "a_class_token": ("Expand", "s = Shape<start = 0, end = 1>(h) n = Concat<axis = 0>(s, tail) "
                      "y = Expand(cls, n)"),
    "a_table_of_embeddings": ("Gather", "y = Gather(table, i)"),
}  # fmt: skip


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_absorbs_a_map(name: str, full: bool) -> None:
    op, body = CONSTANTS[name]
    constants = {"cls": _normal(1, 4), "tail": np.array([4]), "table": _normal(3, 4)}
    graph = _graph(body, constants, TOKENS, ", int64[2,3] i")
    node = _at(graph, op)
    rank = node.output.rank or 0
    change = _map(rank - 1, 4, rank, full)
    feeds = {graph.inputs[0]: _normal(*TOKENS), graph.inputs[1]: RANDOM.integers(0, 3, (2, 3))}
    (old,) = graph.evaluate([node.output], feeds, np.float64)
    _absorb(_spread_from(graph, node.output, change, downward=False))
    (new,) = graph.evaluate([node.output], feeds, np.float64)
    np.testing.assert_allclose(new, change.apply(old), atol=1e-10)


# -- what does not see a map -----------------------------------------------------------------------

SPELLED = (
    "m = ReduceMean(h, two) d = Sub(h, m) q = Mul(d, d) v = ReduceMean(q, two) e = Add(v, eps) "
    "r = Sqrt(e) n = Div(d, r) k = Mul(n, g) y = Add(k, b)"
)
LAYER_NORMS = {"op": "y = LayerNormalization(h, g, b)", "spelled": SPELLED}
NORM = INTS | {"g": _normal(4), "b": _normal(4), "eps": np.array(1e-5)}


@pytest.mark.parametrize("spelling", LAYER_NORMS)
def test_a_layer_norm_does_not_see_a_mean_and_sees_all_else(spelling: str) -> None:
    graph = _graph("l = MatMul(h, w) " + LAYER_NORMS[spelling].replace("(h,", "(l,"),
                   NORM | {"w": _normal(4, 4)}, TOKENS)  # fmt: skip
    (site,) = locate(graph).sites
    x, y = graph.value(site.input), graph.value(site.output)
    mean = mean_subtraction(4, 2, 3)
    norms = Norms(graph, [site], MEAN)
    change = spread(WeightEdits(graph), Start(x, mean, downward=False, norms=norms))
    assert not change.refusal
    assert change.reaches(site)
    array = _normal(*TOKENS)
    (old,) = graph.evaluate([y], {x: array}, np.float64)
    (new,) = graph.evaluate([y], {x: mean.apply(array)}, np.float64)
    np.testing.assert_allclose(new, old, atol=1e-10)
    others = [
        _map(2, 4, 3, full=True),
        mean_subtraction(3, 1, 3),
        mean.with_shift(_normal(1, 1, 4)),
    ]
    for other in others:
        change = spread(WeightEdits(graph), Start(x, other, downward=False, norms=norms))
        assert "reads it" in change.refusal or "read elsewhere" in change.refusal
        assert not change.reaches(site)
    assert spread(WeightEdits(graph), Start(x, mean, downward=False)).refusal  # if not asked for


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_a_norm_does_not_see_a_scale_and_sees_all_else(kind: str) -> None:
    norm = "LayerNormalization" if kind == "layer_norm" else "RMSNormalization"
    body = f"l = MatMul(h, w) y = {norm}<epsilon = 0.0>(l, g)"
    graph = _graph(body, NORM | {"w": _normal(4, 4)}, TOKENS, opset=23)
    (site,) = locate(graph).sites
    assert site.kind == kind
    x, y = graph.value(site.input), graph.value(site.output)
    norms = Norms(graph, [site], SCALE)
    change = spread(WeightEdits(graph), Start(x, scale(0.25, 3), downward=False, norms=norms))
    assert not change.refusal
    assert change.reaches(site)
    array = _normal(*TOKENS)
    (old,) = graph.evaluate([y], {x: array}, np.float64)
    (new,) = graph.evaluate([y], {x: array / 4}, np.float64)
    np.testing.assert_allclose(new, old, atol=1e-10)
    for other in (_map(2, 4, 3), scale(-1.0, 3), scale(0.5, 3).with_shift(_normal(1, 1, 4))):
        assert spread(WeightEdits(graph), Start(x, other, downward=False, norms=norms)).refusal


def test_a_norm_that_writes_is_left_to_the_pass() -> None:
    graph = _graph("n = LayerNormalization(h, g, b) y = LayerNormalization(n, g, b)", NORM, TOKENS)
    writer, reader = locate(graph).sites
    norms = Norms(graph, [writer, reader], MEAN)
    start = Start(graph.value("n"), mean_subtraction(4, 2, 3), downward=False, norms=norms)
    change = spread(WeightEdits(graph), start)
    assert not change.refusal
    assert change.behind == {graph.value("n"): writer}


def _is_rotation(change: ChannelMap, site: Site) -> bool:
    matrix = change.linear.reshape(change.linear.shape[-1], -1)
    return change.axis == site.axes[0] and np.allclose(matrix @ matrix.T, np.eye(len(matrix)))


@pytest.mark.parametrize("value", ["l", "n"])
def test_a_pass_may_add_what_a_norm_commutes_with(value: str) -> None:
    """An RMSNorm and a rotation: Q goes up into what writes x, and behind the norm Q^T into W."""
    body = "l = MatMul(h, u) n = RMSNormalization(l, ones) y = MatMul(n, w)"
    constants = {"u": _normal(4, 4), "ones": np.ones(4), "w": _normal(4, 5)}
    graph = _graph(body, constants, TOKENS, opset=23)
    rotations = Unseen("rotations", _is_rotation, commutes=True)
    row = replace(RULES["layer_norm"], unseen=(rotations,))
    turn = ChannelMap.along(np.linalg.qr(_normal(4, 4))[0], np.zeros(4), 2, 3).invertible()
    feeds = {graph.inputs[0]: _normal(*TOKENS)}
    before = graph.evaluate([graph.value(v) for v in "lny"], feeds, np.float64)
    with mock.patch.dict(RULES, rms_norm=row):
        norms = Norms(graph, locate(graph).sites, rotations)
        start = Start(graph.value(value), turn, downward=False, norms=norms)
        _absorb(spread(WeightEdits(graph), start))
    after = graph.evaluate([graph.value(v) for v in "lny"], feeds, np.float64)
    np.testing.assert_allclose(after[0], turn.apply(before[0]), atol=1e-10)
    np.testing.assert_allclose(after[1], turn.apply(before[1]), atol=1e-10)
    np.testing.assert_allclose(after[2], before[2], atol=1e-10)


LEAKS: dict[str, tuple[str, str]] = {
    "over_several_axes": ("y = LayerNormalization<axis = 1>(h, wide)", "several axes"),
    "with_values_that_others_read": (SPELLED.replace("y =", "o =") + " y = Mul(o, r)",
                                     "read elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
def test_a_norm_that_sees_its_mean_all_the_same(name: str) -> None:
    body, reason = LEAKS[name]
    graph = _graph(body, NORM | {"wide": _normal(3, 4)}, TOKENS)
    (site,) = locate(graph).sites
    assert reason in Norms(graph, [site], MEAN).reasons[site]


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax", "Erf", "LayerNormalization", "Sqrt"])
def test_any_other_operator_refuses(op: str) -> None:
    graph = _graph(f"y = {op}(h{', g' * (op == 'LayerNormalization')})", NORM, TOKENS)
    node = next(n for n in reversed(graph.nodes) if n.output.name == "y")
    assert op not in RULES
    for known, reason in ((node.data_input(), "reads it"), (node.output, "computes it")):
        place = Place(WeightEdits(graph), node, {known: _map(2, 4, 3)})
        with pytest.raises(Refusal, match=f"{op} 'y' {reason}"):
            rule_of(op).maps(place)


# -- the table itself ------------------------------------------------------------------------------


def test_every_row_is_tested_here() -> None:
    rest = {"aten.roll.default", "Shape", "Linear", "layer_norm", CONSTANT, ANY_OTHER, "Upsample"}
    rest |= {op for _, op, _, _ in TORCH.values()} | set(SCALED) | {"rms_norm"}
    assert set(RULES) == set(THROUGH) | set(ABSORBING) | rest
    without = {"Identity", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}  # refuse no such map
    without |= {"Concat", "Expand"}  # have tests of their own
    assert {op for op, case in THROUGH.items() if not case.refused} == without


def test_moves_are_the_operators_that_moves_py_has_readers_for() -> None:
    sums = {"Add", "Sub", "Mul", "Div", "Neg", "Concat"}
    keep = {operator.name for operator in OPERATORS if operator.keeps_channels}
    of_torch = {op for _, op, _, _ in TORCH.values() if not op.startswith("aten.adaptive")}
    of_torch |= {"aten.roll.default", "Upsample", "aten.adaptive_avg_pool*d.default"}
    assert set(THROUGH) | of_torch == keep | sums


def test_the_page_of_the_documentation_is_the_table() -> None:
    """Write it anew by ``python -m normswap.passes.algebra.rules > docs/rules.md``."""
    page = Path(__file__).parents[2] / "docs/rules.md"
    assert page.read_text(encoding="utf-8") == rules_page()
    assert all(name in rules_page() for name in RULES)
