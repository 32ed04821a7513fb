"""``Plan``: the choices that make one spelling of a norm, and strategies that draw them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.norms.onnx_sheet import FLOAT16, FLOAT32, Size


@dataclass(frozen=True)
class Plan:
    """One spelling. The defaults are the plainest; choices that do not fit are set by ``fitted``.

    ``layout``: which axes are normalised (for batch_norm: which one holds the channels).
    ``mean``, ``average``: how the mean of the values and of their squares is taken.
    ``variance``: 'sum' is sqrt(sum(d^2) + C eps), with sqrt(C) in gamma; 'moments' E[x^2] - E[x]^2.
    ``numbers``: which of gamma, beta, mean and variance (the last two of a batch_norm) are one
    number for all positions, stored as an array of ``number_rank`` axes of size 1. ``statistics``:
    of a batch_norm; 'initial' ones are a mean of 0 and a variance of 1.
    ``restore``: how a reduced axis comes back. ``order``: see ``Writer.assembled``. ``reader``: who
    else reads an intermediate. ``after``: what follows; 'scaled' is a product with one number,
    which is no part of a batch_norm that has its gamma and beta. ``delicate``: a mean may be taken
    by a float32 1 / C, which is the mean up to rounding only.
    """

    kind: str = "layer_norm"
    layout: str = "last"
    rank: int = 3
    batch: Size = "B"
    tokens: int = 3
    width: int = 8
    opset: int = 17
    negative_axes: bool = True
    mean: str = "mean"
    deviation: str = "shared"
    square: str = "pow"
    average: str = "mean"
    variance: str = "biased"
    restore: str = "keep"
    epsilon: float = 1e-5
    epsilon_first: bool = False
    epsilon_how: str = "initializer"
    epsilon_shape: tuple[int, ...] = ()
    root: str = "sqrt_div"
    order: str = "plain"
    swap_mul: bool = False
    swap_add: bool = False
    affine: str = "both"
    affine_shape: str = "vector"
    affine_how: str = "initializer"
    numbers: tuple[str, ...] = ()
    number_rank: int = 0
    statistics: str = "random"
    gamma: str = "random"
    dtype: str = "float32"
    source: str = "graph"
    around: str = "none"
    reader: str = "none"
    after: str = "none"
    seed: int = 0
    delicate: bool = False

    @property
    def sizes(self) -> list[Size]:
        """The sizes of the norm's input."""
        second = 2 + (self.tokens + 1) % 4
        if self.layout == "channels":
            return [self.batch, self.width, self.tokens, second][: self.rank]
        return [self.batch, *[self.tokens, second][: self.rank - 2], self.width]

    @property
    def axes(self) -> tuple[int, ...]:
        """The normalised axes; of a batch_norm the axis of the channels."""
        last = self.rank - 1
        return {"last": (last,), "last_two": (last - 1, last), "channels": (1,)}[self.layout]

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        return tuple(int(self.sizes[axis]) for axis in self.axes)

    @property
    def count(self) -> int:
        return int(np.prod(self.normalized_shape))

    def __str__(self) -> str:
        """What differs from the plainest spelling."""
        pairs = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        chosen = [f"{name}={value}" for name, value, default in pairs if value != default]
        return ", ".join(chosen) or "plain"


_BOTH = (False, True)
ORDERS = (
    "plain", "scale_first", "gamma_inside", "affine", "affine_steps", "shift_inside", "inner",
    "inner_shift",
)  # fmt: skip
PARAMETERS = ("gamma", "beta", "mean", "variance")
NUMBERS = tuple(some for k in range(5) for some in combinations(PARAMETERS, k))
CHOICES: dict[str, tuple[Any, ...]] = {
    "kind": ("layer_norm", "rms_norm", "batch_norm"),
    "layout": ("last", "channels", "last_two"),
    "rank": (3, 2, 4),
    "batch": ("B", 2, 1),
    "tokens": (3, 2, 4, 5),
    "width": (8, 4, 5, 6, 7, 9, 10, 11, 12),
    "opset": (17, 11, 13, 14, 18, 20),
    "negative_axes": (True, False),
    "mean": ("mean", "sum_div", "sum_mul", "matmul", "pool"),
    "deviation": (
        "shared", "second", "second_mean", "reversed", "reversed_numerator", "reversed_variance",
        "negative",
    ),
    "square": ("pow", "pow_int", "pow_cast", "mul", "abs", "sum_square", "l2"),
    "average": ("mean", "sum_div", "sum_mul", "matmul", "pool"),
    "variance": ("biased", "unbiased", "sum"),
    "restore": ("keep", "unsqueeze", "reshape"),
    "epsilon_first": _BOTH,
    "epsilon_how": ("initializer", "node", "number", "cast", "identity"),
    "epsilon_shape": ((), (1,)),
    "root": (
        "sqrt_div", "sqrt_reciprocal", "one_over", "pow_div", "pow_mul", "reciprocal_sqrt",
        "exp_log",
    ),
    "order": ORDERS,
    "swap_mul": _BOTH,
    "swap_add": _BOTH,
    "affine": ("both", "gamma", "beta", "none"),
    "affine_shape": ("vector", "row", "full", "partial"),
    "affine_how": ("initializer", "node", "identity", "cast", "transpose"),
    "numbers": NUMBERS,
    "number_rank": (0, 1, 3),
    "statistics": ("random", "random", "initial"),
    "gamma": ("random", "ones", "with_zero"),
    "dtype": ("float32", "float16_around", "float16_inside", "float16_statistics", "float16"),
    "source": ("graph", "relu", "add"),
    "around": ("none", "transposed", "rows"),
    "reader": ("none", "normalised", "mean", "deviation"),
    "after": ("none", "relu", "linear", "adaln", "scaled"),
}  # fmt: skip
# A LayerNorm over the last axis, as exporters write it.
SIMPLE: dict[str, tuple[Any, ...]] = {
    "kind": ("layer_norm",),
    "layout": ("last",),
    "mean": ("mean", "sum_div"),
    "deviation": ("shared", "second", "second_mean", "reversed", "reversed_numerator"),
    "square": ("pow", "pow_int", "pow_cast", "mul", "abs"),
    "average": ("mean", "sum_div"),
    "variance": ("biased",),
    "restore": ("keep",),
    "root": ("sqrt_div", "sqrt_reciprocal", "one_over", "pow_div", "pow_mul"),
    "affine_shape": ("vector", "row", "full"),
    "gamma": ("random", "ones"),
    "dtype": ("float32",),
    "around": ("none",),
}
EPSILONS = st.sampled_from((1e-5, 1e-12, 1e-6, 1e-3)) | st.floats(-12, -3).map(lambda e: 10**e)


def plans(**choices: tuple[Any, ...]) -> st.SearchStrategy[Plan]:
    """Plans with every choice free, but for those given."""
    drawn = {name: st.sampled_from(some) for name, some in (CHOICES | choices).items()}
    return st.builds(
        Plan, epsilon=EPSILONS, seed=st.integers(0, 2**16), **drawn
    ).map(fitted)  # fmt: skip


def fitted(plan: Plan) -> Plan:
    """The plan with what cannot go together replaced by the plainer choice."""
    p = plan
    batch_norm, layer_norm = p.kind == "batch_norm", p.kind == "layer_norm"
    if batch_norm and p.layout == "last_two":
        p = replace(p, layout="last")
    if p.layout != "last":
        p = replace(p, rank=max(p.rank, 3))
    if p.around == "rows":
        p = replace(p, around="rows" if p.layout == "last" and p.rank > 2 else "none")
    elif p.rank == 2:
        p = replace(p, around="none")
    if p.opset < 12 and p.square == "pow_int":
        p = replace(p, square="pow")
    if p.affine_shape == "partial" and p.layout != "last_two":
        p = replace(p, affine_shape="vector")
    if p.variance == "sum" and not batch_norm:  # without gamma it would be an L2 normalisation
        p = replace(p, affine={"none": "gamma", "beta": "both"}.get(p.affine, p.affine))
    if p.order in ("shift_inside", "inner_shift"):
        p = replace(p, order=p.order if p.affine == "both" else "plain")
        p = replace(p, gamma="random" if p.gamma == "with_zero" else p.gamma)
    if p.order == "inner":
        p = replace(p, order="inner" if p.affine in ("both", "gamma") else "plain")
    p = replace(p, numbers=numbers_of(p))
    whole = p.affine == "both" and not (p.gamma == "ones" and "gamma" in p.numbers)
    if p.after == "scaled" and not (batch_norm and whole):  # it would be part of the norm
        p = replace(p, after="none")
    if batch_norm:
        inside = p.dtype in ("float16_inside", "float16_statistics")
        p = replace(p, dtype="float16_around" if inside else p.dtype)
    else:
        p = replace(p, statistics="random")
    if not layer_norm:
        alike = ("shared", "second", "reversed", "negative") if batch_norm else ("shared",)
        p = replace(p, deviation=p.deviation if p.deviation in alike else "shared")
        p = replace(p, reader=p.reader if p.reader == "normalised" else "none")
        p = replace(p, variance="biased" if p.variance == "moments" else p.variance)
    if p.dtype == "float16_inside" and p.order != "shift_inside":
        p = replace(p, order="plain")
    if p.dtype == "float16":
        p = replace(p, epsilon=max(p.epsilon, 1e-4))
    if p.reader == "normalised" and p.order != "plain":
        p = replace(p, reader="none")
    return _averaged(p)


def numbers_of(p: Any) -> tuple[str, ...]:
    """Those of a plan's ``numbers`` that it has. A batch_norm has to have a vector as well, or its
    channels would be along no axis."""
    there = {"both": ["gamma", "beta"], "none": []}.get(p.affine, [p.affine])
    there += ["mean", "variance"] if p.kind == "batch_norm" else []
    numbers = tuple(name for name in p.numbers if name in there)
    if p.kind == "batch_norm" and len(numbers) == len(there):
        return numbers[:-1]
    return numbers


def _averaged(p: Plan) -> Plan:
    """The same for the ways of taking a mean."""
    rank = 2 if p.around == "rows" else p.rank
    refused = set()
    if p.layout != "last":
        refused.add("matmul")
    if rank < 3 or p.axes != tuple(range(2, rank)):
        refused.add("pool")
    rounded = p.count & (p.count - 1)  # then float32 has no exact 1 / count
    moments = p.variance == "moments"
    exact = not p.delicate or p.dtype == "float16" or moments
    inexact = {"sum_mul", "matmul"} if rounded and exact else set()
    mean = "mean" if p.mean in refused else "sum_div" if p.mean in inexact else p.mean
    average = "mean" if p.average in refused else p.average
    if moments and average in inexact:
        average = "sum_div"
    return replace(p, mean=mean, average=average)


def working_dtypes(plan: Plan) -> tuple[Any, Any, Any, Any]:
    """The dtypes of the graph, of the deviations, of the statistics and of gamma and beta."""
    return {
        "float32": (FLOAT32, FLOAT32, FLOAT32, FLOAT32),
        "float16": (FLOAT16, FLOAT16, FLOAT16, FLOAT16),
        "float16_around": (FLOAT16, FLOAT32, FLOAT32, FLOAT32),
        "float16_inside": (FLOAT16, FLOAT32, FLOAT32, FLOAT16),
        "float16_statistics": (FLOAT16, FLOAT16, FLOAT32, FLOAT16),
    }[plan.dtype]
