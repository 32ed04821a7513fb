"""ONNX graphs that look like a norm and are none: each changes one step of a spelling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from tests.norms import mutations as m
from tests.norms.spelling_plan import Plan, fitted, plans
from tests.norms.spelling_truth import Case
from tests.norms.spelling_writer import Writer


@dataclass(frozen=True)
class Mutation:
    """``write`` gives the numerator and the root, or the whole output.

    ``choices`` replace the plan's; ``min_rank`` leaves axes that are not normalised.
    """

    write: Callable[[Writer, str], m.Parts | str]
    choices: dict[str, Any] = field(default_factory=dict)
    min_rank: int = 2
    has_root: bool = True


_LAYER: dict[str, Any] = {"kind": "layer_norm"}
_OPERATOR: dict[str, Any] = {"dtype": "float32", "around": "none", "kind": "layer_norm"}
MUTATIONS: dict[str, Mutation] = {
    "epsilon_outside": Mutation(m.epsilon_outside),
    "epsilon_twice": Mutation(m.epsilon_twice),
    "epsilon_vector": Mutation(m.epsilon_vector),
    "epsilon_input": Mutation(m.epsilon_input),
    "epsilon_subtracted": Mutation(m.epsilon_subtracted),
    "variance_clamped": Mutation(m.variance_clamped),
    "exponent": Mutation(m.exponent),
    "root_exponent": Mutation(m.root_exponent, has_root=False),
    "root_twice": Mutation(m.root_twice),
    "root_multiplied": Mutation(m.root_multiplied),
    "division_reversed": Mutation(m.division_reversed),
    "mean_axis": Mutation(m.mean_axis, _LAYER, min_rank=3),
    "variance_axis": Mutation(m.variance_axis, _LAYER, min_rank=3),
    "batch_axis": Mutation(m.batch_axis, {"batch": "B", "around": "none"}),
    "other_row": Mutation(m.other_row, min_rank=3),
    "first_half": Mutation(m.first_half),
    "mean_factor": Mutation(m.mean_factor, _LAYER),
    "foreign_numerator": Mutation(m.foreign_numerator),
    "foreign_mean": Mutation(m.foreign_mean, _LAYER),
    "foreign_subtrahend": Mutation(m.foreign_subtrahend, _LAYER),
    "foreign_variance": Mutation(m.foreign_variance),
    "maximum_subtracted": Mutation(m.maximum_subtracted, _LAYER),
    "numerator_uncentred": Mutation(m.numerator_uncentred, _LAYER),
    "variance_uncentred": Mutation(m.variance_uncentred, _LAYER),
    "numerator_through": Mutation(m.numerator_through("Relu", "Tanh", "Exp", "Abs")),
    "variance_through": Mutation(m.variance_through),
    "variance_weighted": Mutation(m.variance_weighted),
    "row_gamma": Mutation(m.row_gamma, min_rank=3),
    "l2": Mutation(m.l2, {"kind": "rms_norm", "affine": "none"}, has_root=False),
    "l2_epsilon": Mutation(m.l2_epsilon, {"kind": "rms_norm"}, has_root=False),
    "absolute_deviation": Mutation(m.absolute_deviation, has_root=False),
    "softmax": Mutation(m.softmax, has_root=False),
    "instance_operator": Mutation(m.instance_operator, _OPERATOR, 3, False),
    "group_operator": Mutation(
        m.group_operator, _OPERATOR | {"layout": "channels", "width": 8, "opset": 21}, 3, False
    ),
    "group_elementwise": Mutation(
        m.group_elementwise, _OPERATOR | {"layout": "channels", "width": 8}, 3
    ),
    "batch_norm_per_element": Mutation(m.batch_norm_per_element, _OPERATOR, 3, False),
    "batch_norm_of_numbers": Mutation(m.batch_norm_of_numbers, _OPERATOR, has_root=False),
    "number_root": Mutation(m.number_root, _OPERATOR, has_root=False),
}


def mutable(plan: Plan, name: str) -> Plan:
    """``plan``, as the mutation ``name`` needs it."""
    mutation = MUTATIONS[name]
    plan = replace(plan, **mutation.choices)
    rank = mutation.min_rank + (plan.layout == "last_two" and mutation.min_rank > 2)
    if plan.around == "rows" and (mutation.min_rank > 2 or name.startswith("foreign")):
        plan = replace(plan, around="none")
    return fitted(replace(plan, rank=max(plan.rank, rank)))


def near_miss(plan: Plan, name: str) -> Case:
    """The spelling of ``plan`` with the mutation ``name``."""
    mutation, plan = MUTATIONS[name], mutable(plan, name)
    w = Writer(plan)
    x = w.begin()
    parts = mutation.write(w, x)
    if isinstance(parts, str):
        y = parts
    else:
        affine = w.affine()
        y, _ = w.assembled(x, None, *parts, affine)
    w.end(y)
    rooted = mutation.has_root and plan.root != "exp_log"
    return w.case(note=name, has_root=rooted)


def near_misses(*names: str) -> st.SearchStrategy[Case]:
    """Graphs without a norm, of the mutations ``names`` or of all."""
    drawn = plans(
        kind=("layer_norm", "rms_norm"), reader=("none",),
        order=("plain", "scale_first", "gamma_inside", "shift_inside"), source=("graph", "add"),
    )  # fmt: skip
    return st.builds(near_miss, drawn, st.sampled_from(names or tuple(MUTATIONS)))
