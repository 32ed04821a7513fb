"""Kernels that overwrite buffers: only where nobody reads them any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from normswap.lowering import torch_kernels
from tests.effort import examples_of

_aten = torch.ops.aten
_CHANNELS = 8
_SHAPE = (3, 3, _CHANNELS)


class _Recorder(fx.Interpreter):
    """Fills in what torch.export records of every value."""

    def run_node(self, n: fx.Node) -> object:
        n.meta["val"] = super().run_node(n)
        return n.meta["val"]


class _Draft:
    """An fx graph that grows by one operator at a time over values of one shape."""

    def __init__(self, inputs: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.module = torch.nn.Module()
        for name, shape in (("w", (_CHANNELS, _CHANNELS)), ("g", (_CHANNELS,)), ("b", _SHAPE)):
            self.module.register_buffer(name, torch.randn(shape, generator=random))
        self.graph = fx.Graph()
        given = [self.graph.placeholder(f"x{i}") for i in range(inputs)]
        self.w, self.g, self.b = (self.graph.get_attr(n) for n in ("w", "g", "b"))
        self.values = [*given, self.b]

    def call(self, target: object, *args: object) -> fx.Node:
        node = self.graph.call_function(target, args)  # type: ignore[arg-type]
        self.values.append(node)
        return node

    def norm(self, x: fx.Node) -> fx.Node:
        return self.call(_aten.layer_norm.default, x, [_CHANNELS], self.g, self.g, 1e-5)

    def finished(self, outputs: list[fx.Node]) -> fx.GraphModule:
        self.graph.output(tuple(outputs))
        module = fx.GraphModule(self.module, self.graph)
        _Recorder(module).run(
            *[torch.zeros(_SHAPE) for _ in module.graph.find_nodes(op="placeholder")]
        )
        for node in module.graph.nodes:
            if torch_kernels.is_norm(node):
                torch_kernels.mark(node, torch_kernels.KERNELS)
        return module


def _residual(d: _Draft, one: fx.Node, other: fx.Node) -> None:
    d.norm(d.call(_aten.add.Tensor, one, other))


def _block(d: _Draft, one: fx.Node, other: fx.Node) -> None:
    branch = d.call(_aten.linear.default, one, d.w)
    d.norm(d.call(_aten.add.Tensor, other, branch))


def _scaled_block(d: _Draft, one: fx.Node, other: fx.Node) -> None:
    branch = d.call(_aten.linear.default, d.norm(one), d.w)
    d.norm(d.call(_aten.add.Tensor, d.call(_aten.mul.Tensor, branch, d.g), other))


def _late(d: _Draft, one: fx.Node, other: fx.Node) -> None:
    """Something stands between the sum and its norm."""
    total = d.call(_aten.add.Tensor, one, other)
    d.call(_aten.gelu.default, one)
    d.norm(total)


def _twice(d: _Draft, one: fx.Node, other: fx.Node) -> None:
    """Two norms read one sum."""
    branch = d.call(_aten.linear.default, one, d.w)
    total = d.call(_aten.add.Tensor, branch, d.call(_aten.gelu.default, other))
    d.norm(total)
    d.norm(total)


def _moved(d: _Draft, one: fx.Node, other: fx.Node) -> None:
    turned = d.call(_aten.transpose.int, one, 0, 1)
    d.call(_aten.view.default, d.call(_aten.contiguous.default, turned), list(_SHAPE))


def _sliced(d: _Draft, one: fx.Node, other: fx.Node) -> None:
    row = d.call(_aten.slice.Tensor, one, 0, 0, 1)
    d.values.pop()  # of another shape
    d.call(_aten.expand.default, row, list(_SHAPE))


_GROWTH: list[Callable[[_Draft, fx.Node, fx.Node], object]] = [
    _residual,
    _block,
    _block,
    _scaled_block,
    _late,
    _twice,
    _moved,
    _sliced,
    lambda d, one, other: d.norm(one),
    lambda d, one, other: d.call(_aten.rms_norm.default, one, [_CHANNELS], d.g, 1e-5),
    lambda d, one, other: d.call(_aten.linear.default, one, d.w),
    lambda d, one, other: d.call(_aten.gelu.default, one),
    lambda d, one, other: d.call(_aten.dropout.default, one, 0.5, False),
    lambda d, one, other: d.call(_aten.view.default, one, list(_SHAPE)),
    lambda d, one, other: d.call(_aten.permute.default, one, [0, 1, 2]),
    lambda d, one, other: d.call(_aten.type_as.default, one, other),
    lambda d, one, other: d.call(_aten.relu_.default, d.call(_aten.clone.default, one)),
]


@st.composite
def _modules(draw: st.DrawFn) -> fx.GraphModule:
    draft = _Draft(draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(1, 10))):
        recent = st.integers(0, min(len(draft.values), 5) - 1)  # blocks in a row, mostly
        one, other = (draft.values[-1 - draw(recent)] for _ in range(2))
        draw(st.sampled_from(_GROWTH))(draft, one, other)
    picks = st.lists(st.sampled_from(draft.values[-6:]), min_size=1, max_size=3)
    return draft.finished([draft.values[-1], *draw(picks)])


def _run(module: fx.GraphModule, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    copies = {id(x): x.clone() for x in inputs}
    given = [copies[id(x)] for x in inputs]  # fed twice, it is one tensor
    with torch.no_grad():
        results = [r.clone() for r in module(*given)]
    for x, before in zip(given, inputs, strict=True):
        assert torch.equal(x, before), "an input was overwritten"
    return results


_REUSING = [getattr(torch.ops.normswap, name).default for name in torch_kernels.IN_PLACE]
_counted = {"graphs": 0, "kernels": 0}


@settings(max_examples=examples_of(120, 400))
@given(_modules(), st.booleans())
def test_no_reuse_of_a_buffer_changes_what_a_graph_computes(
    module: fx.GraphModule, same_input: bool
) -> None:
    random = torch.Generator().manual_seed(1)
    count = len(module.graph.find_nodes(op="placeholder"))
    inputs = [torch.randn(_SHAPE, generator=random) for _ in range(count)]
    if same_input:
        inputs = [inputs[0]] * count
    expected = _run(module, inputs)
    state = {name: t.clone() for name, t in module.state_dict().items()}
    torch_kernels.write_kernels(module)
    _counted["kernels"] += sum(n.target in _REUSING for n in module.graph.nodes)
    _counted["graphs"] += 1
    for _ in range(2):  # the second run sees what the first one wrote
        for got, wanted in zip(_run(module, inputs), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), "a weight was overwritten"
    torch_kernels.restore_norms(module)
    module.recompile()
    assert not [n for n in module.graph.nodes if "normswap" in str(n.target)]
    for got, wanted in zip(_run(module, inputs), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_graphs_above_do_reuse_buffers() -> None:
    assert _counted["kernels"] > 0.5 * _counted["graphs"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_branch_with_the_tokens_first_is_left_alone(turned: bool) -> None:
    """A kernel would have to copy it."""
    draft = _Draft(1)
    x = draft.values[0]
    residual, branch = (draft.call(_aten.linear.default, x, draft.w) for _ in range(2))
    if turned:
        branch = draft.call(_aten.transpose.int, branch, 0, 1)
    module = draft.finished([draft.norm(draft.call(_aten.add.Tensor, residual, branch))])
    kernels = [placement.kernel for placement in torch_kernels.placements(module.graph)]
    assert kernels == (["layer_norm_"] if turned else ["add_layer_norm_"])
