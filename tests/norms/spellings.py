"""ONNX graphs that spell a norm in elementary operators, each with the truth beside it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.norms.spelling_plan import SIMPLE, Plan, plans
from tests.norms.spelling_truth import Case
from tests.norms.spelling_writer import Writer


def written(plan: Plan) -> Case:
    """The norm of ``plan``."""
    writer = Writer(plan)
    x = writer.begin()
    write = writer.batch_norm if plan.kind == "batch_norm" else writer.norm
    y, truth = write(x, writer.affine())
    writer.end(y)
    return writer.case(truth)


def spellings(**choices: tuple[Any, ...]) -> st.SearchStrategy[Case]:
    """Any norm, however it is spelled."""
    return plans(**choices).map(written)


def simple_spellings() -> st.SearchStrategy[Case]:
    """A LayerNorm over the last axis, as exporters write it."""
    return plans(**SIMPLE).map(written)


def moment_spellings() -> st.SearchStrategy[Case]:
    """LayerNorms with E[x^2] - E[x]^2, which cancels where means are large."""
    return plans(kind=("layer_norm",), variance=("moments",)).map(written)


def delicate_spellings() -> st.SearchStrategy[Case]:
    """LayerNorms whose mean is taken by a float32 1 / C: norms up to float32 rounding."""
    drawn = plans(
        kind=("layer_norm",), mean=("sum_mul", "matmul"), delicate=(True,), width=(5, 6, 7, 9, 11)
    )
    return drawn.map(written)
