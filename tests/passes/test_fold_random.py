"""Any graph computes the same once its BatchNorms are folded, and what cannot fold says why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from normswap.io.load import model_from_onnx
from normswap.model import Model
from normswap.passes import Fold
from normswap.passes.base import PassResult
from tests.effort import examples_of, thorough
from tests.passes.fold_checks import check_fold
from tests.passes.fold_graphs import Case, fold_graphs

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
OPERATORS = """
    Add AveragePool Cast Concat Conv Div Dropout Erf Expand Flatten Gather GatherND Gemm
    GlobalAveragePool Identity MatMul Mul Pad ReduceMean ReduceSum Relu Reshape Shape Sigmoid Slice
    Softmax Split Squeeze Sub Tile Transpose Unsqueeze
"""
FIXED = settings(
    max_examples=250,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=SLOW,
)


def _model(case: Case) -> Model:
    return model_from_onnx(ir.serde.deserialize_model(case.proto), "random")


@settings(max_examples=examples_of(40, 1000), suppress_health_check=SLOW)
@given(fold_graphs())
def test_a_folded_graph_is_the_same_function(case: Case) -> None:
    check_fold(_model(case), case.feeds())


@thorough
def test_the_graphs_have_what_the_rules_are_about() -> None:
    """A good share of the norms folds; every operator, norm and refusal occurs."""
    operators: Counter[str] = Counter()
    norms: Counter[str] = Counter()
    reasons: list[str] = []
    folded = 0

    @FIXED
    @given(fold_graphs())
    def tally(case: Case) -> None:
        nonlocal folded
        operators.update(case.operators)
        norms.update(case.norms)
        result = Fold()(_model(case))
        folded += len(result.done)
        reasons.extend(reason for _, reason in result.skipped)

    tally()
    print(folded, len(reasons), Counter(re.sub("'.*?'", "_", reason) for reason in reasons))
    assert set(norms) == {"last", "axis_1", "spelled", "rep", "training"}
    assert set(operators) >= set(OPERATORS.split())
    assert folded > 0.5 * (folded + len(reasons))
    for word in ("training mode", "output of the model", "Relu", "Softmax", "axis", "channels"):
        assert any(word in reason for reason in reasons), word


# -- folds that are wrong in one thing, which the check has to notice ---------------------------


def _constants_changed(change: Callable[[list[np.ndarray]], list[np.ndarray]]):  # type: ignore[no-untyped-def]
    """The fold of other norms: ``change`` is given gamma, beta, mean and variance."""

    def fold(model: Model) -> PassResult:
        other = model.copy()
        for node in other.graph.nodes:
            if node.op == "BatchNormalization" and not node.attributes["training_mode"]:
                arrays = [other.graph.constant(node.data_input(i)) for i in range(1, 5)]
                assert all(a is not None for a in arrays)
                for i, array in enumerate(change(arrays), 1):  # type: ignore[arg-type]
                    other.graph.set_input(node, i, other.graph.add_constant(array, "changed"))
        result = Fold()(other)
        return result if result.modified else replace(result, model=model)

    return fold


def _without_shift(arrays: list[np.ndarray]) -> list[np.ndarray]:
    gamma, _, mean, variance = arrays
    return [gamma, np.zeros_like(mean), np.zeros_like(mean), variance]


def _without_epsilon(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [*arrays[:3], arrays[3] - 2.0**-7]


def _channels_reversed(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array[::-1].copy() for array in arrays]


def _in_single_precision(model: Model) -> PassResult:
    result = Fold()(model)
    graph = result.model.graph
    for value in list(graph.values()) if result.modified else []:
        array = graph.constant(value) if value.producer is None else None
        if array is not None and array.dtype == np.float64:
            graph.replace_constant(value, array.astype(np.float32).astype(np.float64))
    return result


def _silently_skipping(model: Model) -> PassResult:
    return replace(Fold()(model), skipped=[])


def _claiming(model: Model) -> PassResult:
    result = Fold()(model)
    return replace(result, model=model.copy() if result.modified else model)


def _changing_its_input(model: Model) -> PassResult:
    result = Fold()(model)
    for value in list(model.graph.values()):
        array = model.graph.constant(value) if value.producer is None else None
        if array is not None and array.dtype == np.float64:
            model.graph.replace_constant(value, array * (1 + 1e-15))
    return result


MUTANTS: dict[str, tuple[Callable[[Model], PassResult], str]] = {
    "without_shift": (_constants_changed(_without_shift), "is off by"),
    "without_epsilon": (_constants_changed(_without_epsilon), "is off by"),
    "channels_reversed": (_constants_changed(_channels_reversed), "is off by"),
    "in_single_precision": (_in_single_precision, "is off by"),
    "silently_skipping": (_silently_skipping, "not all are told of"),
    "claiming": (_claiming, "done and there"),
    "changing_its_input": (_changing_its_input, "the input has changed"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_fold_is_noticed(mutant: str) -> None:
    fold, notice = MUTANTS[mutant]

    @settings(FIXED, max_examples=50)
    @given(fold_graphs())
    def check(case: Case) -> None:
        check_fold(_model(case), case.feeds(), fold)

    with pytest.raises(AssertionError, match=notice):
        check()
