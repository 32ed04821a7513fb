"""Any graph computes the same bits with its streams scaled; wrong passes are noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

import normswap as ns
from normswap.io.load import model_from_onnx
from normswap.passes import rescale_plan
from normswap.passes.rescale_plan import Plan
from tests.effort import examples_of, thorough
from tests.passes.fold_sketch import Case
from tests.passes.norm_graphs import stream_graphs
from tests.passes.rescale_checks import check_rescaled
from tests.passes.test_fold_random import FIXED, SLOW

TIGHT = ns.Rescale(headroom=16)  # nothing may be larger than 1
DOUBLE, FLOAT = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT


def single(case: Case) -> tuple[ns.Model, dict[str, np.ndarray]]:
    """The graph and its feeds in float32, for which a runtime has all operators."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    for tensor in proto.graph.initializer:
        if tensor.data_type == DOUBLE:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if value.type.tensor_type.elem_type == DOUBLE:
            value.type.tensor_type.elem_type = FLOAT
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == DOUBLE:
                attribute.i = FLOAT
    feeds = case.feeds()
    feeds = {k: a.astype(np.float32) if a.dtype == np.float64 else a for k, a in feeds.items()}
    return model_from_onnx(ir.serde.deserialize_model(proto), "random"), feeds


@settings(max_examples=examples_of(8, 100), suppress_health_check=SLOW, deadline=None)
@given(stream_graphs())
def test_rescaled_graphs_compute_the_same_bits(case: Case) -> None:
    check_rescaled(*single(case), TIGHT)


@thorough
def test_the_graphs_have_what_the_rules_are_about() -> None:
    done: Counter[str] = Counter()
    notes: list[str] = []

    @settings(FIXED, max_examples=40)
    @given(stream_graphs())
    def tally(case: Case) -> None:
        result = check_rescaled(*single(case), TIGHT)
        done.update(site.spelling for site in result.done)
        notes.extend(result.notes)

    tally()
    assert set(done) == {"op", "decomposed"}
    for word in ("the stream of", "what it is made of", "is written as", "it stays",
                 "output of the model"):  # fmt: skip
        assert any(word in note for note in notes), word


def _without_epsilon(graph: Any, site: ns.Site, reads: int, writes: int) -> ns.Site:
    return site


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "epsilons_that_stay": (rescale_plan, "_scaled", _without_epsilon),
    "outputs_that_are_not_restored": (Plan, "_restore", lambda *_: None),
}


@thorough
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_pass_is_noticed(mutant: str) -> None:
    @settings(FIXED, max_examples=40)
    @given(stream_graphs())
    def check(case: Case) -> None:
        check_rescaled(*single(case), TIGHT)

    place, name, wrong = MUTANTS[mutant]
    with mock.patch.object(place, name, wrong), pytest.raises(AssertionError):
        check()
