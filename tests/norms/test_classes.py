"""Norms of one structure are proven once, and what is found is what the proof of each finds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from normswap.graph.graph import Graph
from normswap.graph.onnx.graph import read_graph
from normswap.norms import Location, classes, decomposed, locate
from tests.graph.onnx_text import onnx_graph
from tests.norms.near_misses import near_misses
from tests.norms.spelling_checks import examples
from tests.norms.spelling_truth import Case
from tests.norms.spellings import spellings

Change = Callable[[np.random.Generator, np.ndarray], np.ndarray]
WIDTH = 32


def _some_zero(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    return np.where(rng.random(array.shape) < 0.3, 0, array)


CHANGES: dict[str, Change] = {
    "same": lambda _, array: array,
    "others": lambda rng, array: array * rng.uniform(0.5, 2, array.shape),
    "a little": lambda rng, array: array * (1 + 1e-6 * rng.standard_normal(array.shape)),
    "some zero": _some_zero,
    "zero": lambda _, array: np.zeros_like(array),
    "uniform": lambda _, array: np.full_like(array, 1.5),
    "not a number": lambda _, array: np.full_like(array, np.nan),
}


def found(location: Location) -> list[Any]:
    sites = [
        (
            s.to_json(),
            None if s.weight is None else s.weight.tolist(),
            s.bias is None or s.bias.tolist(),
        )
        for s in location.sites
    ]
    return [sites, location.rejected]


def each_by_itself(graph: Graph) -> list[Any]:
    with mock.patch.object(classes, "_class_of", return_value=None):
        return found(locate(graph))


def twice(proto: onnx.ModelProto, change: Change, seed: int) -> Graph:
    """The graph beside itself with other numbers in its floating constants of several elements."""
    model, rng = copy.deepcopy(proto), np.random.default_rng(seed)
    given = {value.name for value in model.graph.input} | {""}

    def renamed(name: str) -> str:
        return name if name in given else f"{name}_2"

    def changed(tensor: onnx.TensorProto) -> onnx.TensorProto:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.size > 1:
            array = change(rng, array.astype(np.float64)).astype(array.dtype)
        return numpy_helper.from_array(array, renamed(tensor.name))

    for tensor in list(model.graph.initializer):
        model.graph.initializer.append(changed(tensor))
    for node in list(model.graph.node):
        twin = copy.deepcopy(node)
        twin.name = renamed(node.name)
        twin.input[:] = [renamed(name) for name in node.input]
        twin.output[:] = [renamed(name) for name in node.output]
        for attribute in twin.attribute:
            if attribute.HasField("t"):
                attribute.t.CopyFrom(changed(attribute.t))
        model.graph.node.append(twin)
    for value in list(model.graph.output):
        other = copy.deepcopy(value)
        other.name = renamed(value.name)
        model.graph.output.append(other)
    del model.graph.value_info[:]
    return read_graph(ir.serde.deserialize_model(model))


@examples(12, thorough=400)
@given(spellings(), st.sampled_from(sorted(CHANGES)), st.integers(0, 9))
def test_as_by_itself(case: Case, change: str, seed: int) -> None:
    graph = twice(case.proto, CHANGES[change], seed)
    assert found(locate(graph)) == each_by_itself(graph)


@examples(12, thorough=400)
@given(near_misses(), st.sampled_from(sorted(CHANGES)), st.integers(0, 9))
def test_what_is_no_norm_by_itself_is_none(case: Case, change: str, seed: int) -> None:
    graph = twice(case.proto, CHANGES[change], seed)
    assert found(locate(graph)) == each_by_itself(graph)


@pytest.fixture
def proofs() -> Iterator[mock.Mock]:
    with mock.patch.object(classes, "prove", side_effect=classes.prove) as counted:
        yield counted


def _chain(count: int, constants: dict[str, np.ndarray], centre: str) -> Graph:
    """Norms behind one another; ``centre``: how one of them, number {i}, makes d{i} of h{i}."""
    lines = ["h0 = Identity(x)"]
    for i in range(count):
        lines += [
            centre.format(i=i),
            f"s{i} = Mul(d{i}, d{i}) v{i} = ReduceMean<axes = [-1]>(s{i})",
            f"e{i} = Add(v{i}, eps{i}) r{i} = Sqrt(e{i}) q{i} = Div(d{i}, r{i})",
            f"g{i} = Mul(q{i}, w{i}) n{i} = Add(g{i}, b{i})",
            f"h{i + 1} = MatMul(n{i}, p)",
        ]
    text = f"(float[2,5,{WIDTH}] x) => (float[2,5,{WIDTH}] h{count}) {{ {' '.join(lines)} }}"
    return onnx_graph(text, constants, opset=13)


def _constants(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {"p": rng.standard_normal((WIDTH, WIDTH))}
    for i in range(count):
        made[f"w{i}"], made[f"b{i}"] = rng.uniform(0.5, 2, WIDTH), rng.standard_normal(WIDTH)
        made[f"eps{i}"] = np.array(1e-5)
    return {name: array.astype(np.float32) for name, array in made.items()}


OWN_MEAN = "m{i} = ReduceMean<axes = [-1]>(h{i}) d{i} = Sub(h{i}, m{i})"


def test_a_dozen_of_one_structure_are_proven_once(proofs: mock.Mock) -> None:
    constants = _constants(12)
    sites = locate(_chain(12, constants, OWN_MEAN)).sites
    once = proofs.call_count
    assert [site.kind for site in sites] == ["layer_norm"] * 12
    for i, site in enumerate(sites):
        assert site.epsilon == 1e-5
        assert site.weight is not None
        assert site.bias is not None
        np.testing.assert_array_equal(site.weight, constants[f"w{i}"])
        np.testing.assert_array_equal(site.bias, constants[f"b{i}"])
    locate(_chain(2, _constants(2), OWN_MEAN))
    assert once == proofs.call_count - once < 6


def test_another_epsilon_is_another_structure() -> None:
    constants = _constants(4)
    constants["eps2"] = np.array(1e-6, np.float32)
    sites = locate(_chain(4, constants, OWN_MEAN)).sites
    assert [site.epsilon for site in sites] == [1e-5, 1e-5, 1e-6, 1e-5]


@pytest.mark.parametrize("off", [0.0, 1e-4, 1.0])
def test_a_column_that_averages(off: float) -> None:
    """The mean is a product with a column, which in the third block is another one."""
    constants = _constants(4)
    for i in range(4):
        constants[f"a{i}"] = np.full((WIDTH, 1), 1 / WIDTH, np.float32)
        constants[f"a{i}"][3] *= 1 + off * (i == 2)
    graph = _chain(4, constants, "m{i} = MatMul(h{i}, a{i}) d{i} = Sub(h{i}, m{i})")
    location = locate(graph)
    assert found(location) == each_by_itself(graph)
    assert ("h2" in {site.input for site in location.sites}) is (not off)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_an_epsilon_for_each_channel_in_one_block_alone(epsilon: float) -> None:
    constants = _constants(4)
    for i in range(4):
        constants[f"eps{i}"] = np.full(WIDTH, epsilon, np.float32)
    constants["eps1"][3] *= 2
    graph = _chain(4, constants, OWN_MEAN)
    location = locate(graph)
    assert found(location) == each_by_itself(graph)
    assert "h1" not in {site.input for site in location.sites}
    assert len(location.sites) >= 3


def test_a_dozen_in_the_same_surroundings_are_searched_once() -> None:
    graph = _chain(12, _constants(12), OWN_MEAN)
    finder = decomposed._Finder
    search = mock.patch.object(finder, "_search", autospec=True, side_effect=finder._search)
    with search as searched:
        assert len(locate(graph).sites) == 12
    assert searched.call_count == 1


@pytest.mark.parametrize("read", ["n2", "q2", "d2", "v2", "h2"])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_other_surroundings_of_one_block(read: str, op: str) -> None:
    """One more reader of a value of the third block, by which the norm goes on or does not."""
    graph = _chain(4, _constants(4), OWN_MEAN)
    norm, value = graph.value("n2"), graph.value(read)
    other = graph.value("w3") if op == "Mul" else norm
    more = graph.insert(op, [value, other], name="more", like=norm.producer)
    total = graph.insert("Add", [norm, more], name="total", like=norm.producer)
    kept = [node for node in (more.producer, total.producer) if node is not None]
    graph.replace_uses(norm, total, keep=kept)
    assert found(locate(graph)) == each_by_itself(graph)
