"""Torch modules that spell a norm, for FX, and modules that look like one."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.norms.spelling_plan import EPSILONS, NUMBERS, ORDERS, numbers_of
from tests.norms.spelling_truth import Truth


@dataclass(frozen=True)
class TorchPlan:
    """One spelling; the defaults are the plainest. See ``Norm.forward``.

    ``numbers``: which parameters (of ``PARAMETERS``) are one number for all positions, as
    ``number_how`` says: a number of Python, or a tensor of that many axes of size 1. ``statistics``
    of a batch_norm: 'initial' ones are a mean of 0 and a variance of 1.
    """

    kind: str = "layer_norm"
    layout: str = "last"
    rank: int = 3
    tokens: int = 3
    width: int = 8
    mean: str = "method"
    square: str = "pow"
    variance: str = "mean"
    keepdim: bool = True
    root: str = "sqrt_div"
    order: str = "plain"
    affine: str = "both"
    affine_shape: str = "vector"
    numbers: tuple[str, ...] = ()
    number_how: str | int = "python"
    statistics: str = "random"
    epsilon: float = 1e-5
    half: bool = False
    operator: bool = False
    after: str = "none"
    seed: int = 0

    @property
    def sizes(self) -> list[int]:
        """The sizes of the input, for a batch of 2."""
        second = 2 + (self.tokens + 1) % 4
        if self.layout == "channels":
            return [2, self.width, self.tokens, second][: self.rank]
        return [2, *[self.tokens, second][: self.rank - 2], self.width]

    @property
    def axes(self) -> tuple[int, ...]:
        last = self.rank - 1
        return {"last": (last,), "last_two": (last - 1, last), "channels": (1,)}[self.layout]

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        return tuple(self.sizes[axis] for axis in self.axes)

    def __str__(self) -> str:
        pairs = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        chosen = [f"{name}={value}" for name, value, default in pairs if value != default]
        return ", ".join(chosen) or "plain"


INSIDE = ("shift_inside", "inner_shift")  # orders that add beta before the product with gamma
CHOICES: dict[str, tuple[Any, ...]] = {
    "kind": ("layer_norm", "rms_norm", "batch_norm"),
    "layout": ("last", "channels", "last_two"),
    "rank": (3, 2, 4),
    "tokens": (3, 2, 4, 5),
    "width": (8, 4, 5, 6, 7, 9, 10, 11, 12),
    "mean": ("method", "function", "sum", "var_mean"),
    "square": ("pow", "square", "mul", "abs"),
    "variance": (
        "mean", "sum", "var", "var_method", "var_unbiased", "var_mean", "std", "std_unbiased",
        "vector_norm",
    ),
    "keepdim": (True, False),
    "root": ("sqrt_div", "rsqrt", "pow_div", "pow_mul", "reciprocal"),
    "order": ORDERS,
    "affine": ("both", "gamma", "beta", "none"),
    "affine_shape": ("vector", "full"),
    "numbers": NUMBERS,
    "number_how": ("python", 0, 1, 3),
    "statistics": ("random", "random", "initial"),
    "half": (False, True),
    "operator": (False, False, False, True),
    "after": ("none", "linear", "gelu"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TorchCase:
    """A module, its example inputs, and the norms in it; none for a near-miss."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    truths: tuple[Truth, ...]
    description: str
    has_root: bool = False

    def __repr__(self) -> str:
        return f"TorchCase({self.description})"


class Norm(nn.Module):
    """The norm of ``plan``. ``wide`` is the dtype of its statistics."""

    gamma: Tensor | float | None
    beta: Tensor | float | None  # b / g of the orders that add it inside
    mean: Tensor | float  # of a batch_norm
    variance: Tensor

    def __init__(self, plan: TorchPlan) -> None:
        super().__init__()
        self.plan, self.wide = plan, torch.float32
        random = np.random.default_rng(plan.seed)
        shape = plan.normalized_shape
        gamma, beta = random.uniform(0.5, 1.5, shape), random.standard_normal(shape)
        self.truth_gamma: np.ndarray | None = None
        self.truth_beta: np.ndarray | None = None
        self.gamma = self.beta = None
        if plan.affine in ("both", "gamma"):
            self.gamma, self.truth_gamma = self._parameter("gamma", gamma)
        if self.truth_gamma is not None and plan.order in INSIDE:
            self.beta, inside = self._parameter("beta", beta / self.truth_gamma)
            self.truth_beta = inside * self.truth_gamma
        elif plan.affine in ("both", "beta"):
            self.beta, self.truth_beta = self._parameter("beta", beta)
        self.statistics: dict[str, np.ndarray] = {}
        if plan.kind == "batch_norm":
            mean, variance = random.standard_normal(shape), random.uniform(0.5, 2, shape)
            if plan.statistics == "initial":
                mean, variance = np.zeros(shape), np.ones(shape)
            self.mean, self.statistics["mean"] = self._parameter("mean", mean)
            self.variance, self.statistics["variance"] = self._parameter("variance", variance)
        self.head = nn.Linear(plan.sizes[-1], 3) if plan.after == "linear" else None

    def _shaped(self, array: np.ndarray) -> Tensor:
        p = self.plan
        full = [n if i in p.axes else 1 for i, n in enumerate(p.sizes)]
        leading = 0 if p.affine_shape == "full" and not p.operator else p.axes[0]
        return torch.tensor(array, dtype=torch.float32).reshape(full[leading:])

    def _parameter(self, name: str, array: np.ndarray) -> tuple[Tensor | float, np.ndarray]:
        """A parameter, or one number for all; and the same in float64."""
        stored, is_number = self._shaped(array), name in self.plan.numbers
        if is_number:
            how = self.plan.number_how
            if how == "python" and name != "variance":  # torch takes no root of a float
                return float(array.flat[0]), np.full_like(array, array.flat[0])
            axes = 0 if how == "python" else min(int(how), self.plan.rank)
            stored = stored.reshape(-1)[:1].reshape((1,) * axes)
        stored = nn.Parameter(stored)
        rounded = stored.detach().double().numpy().reshape(() if is_number else array.shape)
        return stored, np.broadcast_to(rounded, array.shape)

    # -- steps -----------------------------------------------------------------------------------

    def mean_of(self, x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
        p, axes = self.plan, axes or self.plan.axes
        if p.mean == "function":
            y = torch.mean(x, axes, keepdim=p.keepdim)
        elif p.mean == "sum":
            y = x.sum(axes, keepdim=p.keepdim) / int(np.prod([p.sizes[a] for a in axes]))
        elif p.mean == "var_mean":
            y = torch.var_mean(x, axes, keepdim=p.keepdim)[1]
        else:
            y = x.mean(axes, keepdim=p.keepdim)
        return self.restored(y, axes)

    def restored(self, y: Tensor, axes: tuple[int, ...]) -> Tensor:
        if self.plan.keepdim:
            return y
        for axis in axes:
            y = y.unsqueeze(axis)
        return y

    def squared(self, d: Tensor) -> Tensor:
        if self.plan.square == "mul":
            return d * d
        if self.plan.square == "square":
            return torch.square(d)
        return (d.abs() if self.plan.square == "abs" else d).pow(2)

    def variance_of(self, d: Tensor) -> Tensor:
        """Of deviations; those that torch centres itself are taken of them all the same."""
        p = self.plan
        axes, keep, count = p.axes, p.keepdim, int(np.prod(p.normalized_shape))
        if p.variance == "var":
            y = torch.var(d, axes, correction=0, keepdim=keep)
        elif p.variance == "var_method":
            y = d.var(axes, unbiased=False, keepdim=keep)
        elif p.variance == "var_unbiased":
            y = d.var(axes, keepdim=keep)
        elif p.variance == "var_mean":
            y = torch.var_mean(d, axes, correction=0, keepdim=keep)[0]
        elif p.variance in ("std", "std_unbiased"):
            correction = int(p.variance == "std_unbiased")
            y = torch.std(d, axes, correction=correction, keepdim=keep) ** 2
        elif p.variance == "vector_norm":
            y = torch.linalg.vector_norm(d, dim=axes, keepdim=keep) ** 2 / count
        elif p.variance == "sum":
            y = self.squared(d).sum(axes, keepdim=keep) / count
        else:
            y = self.squared(d).mean(axes, keepdim=keep)
        return self.restored(y, axes)

    def divided(self, d: Tensor, e: Tensor) -> Tensor:
        """d / sqrt(e)"""
        root = self.plan.root
        if root in ("sqrt_div", "pow_div"):
            return d / (torch.sqrt(e) if root == "sqrt_div" else e**0.5)
        return d * self.inverse(e)

    def inverse(self, e: Tensor) -> Tensor:
        """1 / sqrt(e)"""
        if self.plan.root == "pow_mul":
            return e**-0.5
        return torch.rsqrt(e) if self.plan.root == "rsqrt" else 1 / torch.sqrt(e)

    # -- the formula -----------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> Tensor:
        y = self.normalised(*inputs)
        if self.plan.after == "gelu":
            return F.gelu(y)
        return self.head(y) if self.head is not None else y

    def normalised(self, *inputs: Tensor) -> Tensor:
        (given,) = inputs
        p, x = self.plan, given.to(self.wide)
        if p.operator:
            return self.by_operator(x).to(given.dtype)
        d: Tensor
        e: Tensor
        if p.kind == "batch_norm":
            d, e = x - self.mean, self.variance + p.epsilon
        elif p.kind == "rms_norm":
            d, e = x, self.variance_of(x) + p.epsilon
        else:
            d = x - self.mean_of(x)
            e = self.variance_of(d) + p.epsilon
        if p.order not in ("affine", "affine_steps", "inner", "inner_shift"):
            return self.assembled(d, e).to(given.dtype)
        m = self.mean if p.kind == "batch_norm" else self.mean_of(x)
        return self.as_affine_map(x, None if p.kind == "rms_norm" else m, e).to(given.dtype)

    def as_affine_map(self, x: Tensor, m: Tensor | float | None, e: Tensor) -> Tensor:
        """See ``spelling_writer.Writer.assembled``; without a mean ``m`` of an rms_norm."""
        g, b, order = self.gamma, self.beta, self.plan.order
        inner = order in ("inner", "inner_shift")
        a = self.inverse(e) if g is None or inner else g * self.inverse(e)
        y = x * a
        if m is not None and (b is None or order in ("affine_steps", "inner")):
            y = y - m * a
        elif m is not None and b is not None:
            b = b - m * a
        if order == "inner_shift" and b is not None:
            y, b = y + b, None
        y = y * g if inner and g is not None else y
        return y if b is None else y + b

    def assembled(self, d: Tensor, e: Tensor) -> Tensor:
        """See ``spelling_writer.Writer.assembled``."""
        g, order = self.gamma, self.plan.order
        if order == "shift_inside" and self.beta is not None and g is not None:
            return (self.divided(d, e) + self.beta) * g
        if g is None:
            y = self.divided(d, e)
        elif order == "scale_first":
            y = d * (g * self.inverse(e))
        elif order == "gamma_inside":
            y = self.divided(d * g, e)
        else:
            y = g * self.divided(d, e)
        return y if self.beta is None else y + self.beta

    def by_operator(self, x: Tensor) -> Tensor:
        p = self.plan
        weight = self.gamma if isinstance(self.gamma, Tensor) else None
        bias = self.beta if isinstance(self.beta, Tensor) else None
        if p.kind == "layer_norm":
            return F.layer_norm(x, p.normalized_shape, weight, bias, p.epsilon)
        return F.rms_norm(x, p.normalized_shape, weight, p.epsilon)

    def truth(self) -> Truth:
        p = self.plan
        count, gamma = int(np.prod(p.normalized_shape)), self.truth_gamma
        unbiased = p.variance in ("var_unbiased", "std_unbiased") and not p.operator
        factor = count / (count - 1) if unbiased and p.kind != "batch_norm" else 1.0
        if factor != 1:
            gamma = (np.ones(p.normalized_shape) if gamma is None else gamma) / np.sqrt(factor)
        return Truth(
            p.kind, p.axes, p.normalized_shape, p.epsilon / factor, gamma, self.truth_beta,
            "", "", **self.statistics,
        )  # fmt: skip


def fitted(plan: TorchPlan) -> TorchPlan:
    """The plan with what cannot go together replaced by the plainer choice."""
    p = plan
    if p.kind == "batch_norm" and p.layout == "last_two":
        p = replace(p, layout="last")
    if p.layout != "last":
        p = replace(p, rank=max(p.rank, 3))
    if p.kind == "rms_norm" and p.variance.startswith(("var", "std")):
        p = replace(p, variance="mean")
    if p.order in INSIDE and p.affine != "both":
        p = replace(p, order="plain")
    if p.order == "inner" and p.affine not in ("both", "gamma"):
        p = replace(p, order="plain")
    p = replace(p, numbers=numbers_of(p))
    if p.kind != "batch_norm":
        p = replace(p, statistics="random")
    if p.kind == "batch_norm" or p.layout == "channels" or p.numbers:
        p = replace(p, operator=False)
    if p.operator:
        gone = p.kind == "rms_norm" or p.affine == "beta"
        p = replace(p, order="plain", affine_shape="vector")
        p = replace(p, affine="gamma" if gone and p.affine != "none" else p.affine)
    return p


def torch_plans(**choices: tuple[Any, ...]) -> st.SearchStrategy[TorchPlan]:
    """Plans with every choice free, but for those given."""
    drawn: dict[str, Any] = {n: st.sampled_from(some) for n, some in (CHOICES | choices).items()}
    return st.builds(
        TorchPlan, epsilon=EPSILONS, seed=st.integers(0, 2**16), **drawn
    ).map(fitted)  # fmt: skip


def example(plan: TorchPlan, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(plan.sizes, generator=random)
    return x.half() if plan.half else x


def written(plan: TorchPlan) -> TorchCase:
    module = Norm(plan).eval()
    return TorchCase(module, (example(plan),), (module.truth(),), str(plan))


def torch_spellings(**choices: tuple[Any, ...]) -> st.SearchStrategy[TorchCase]:
    """Any norm, however it is spelled in torch."""
    return torch_plans(**choices).map(written)
