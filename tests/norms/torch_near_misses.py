"""Torch modules that look like a norm and are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from hypothesis import strategies as st
from torch import Tensor

from tests.norms.torch_spellings import Norm, TorchCase, TorchPlan, example, fitted, torch_plans


@dataclass(frozen=True)
class Mutation:
    """``write(module, x, z)`` is the output; ``z`` is there for those with ``foreign`` only."""

    write: Callable[[Mutant, Tensor, Tensor], Tensor]
    choices: dict[str, Any] = field(default_factory=dict)
    has_root: bool = True
    foreign: bool = False


class Mutant(Norm):
    """The norm of ``plan`` with another step in it."""

    def __init__(self, plan: TorchPlan, mutation: Mutation) -> None:
        super().__init__(plan)
        self.write = mutation.write
        shape = plan.normalized_shape
        random = torch.Generator().manual_seed(plan.seed)
        weights = torch.rand(shape, generator=random) + 0.5
        self.weights = torch.nn.Parameter(self._shaped(weights.numpy()))
        self.channels = torch.nn.Parameter(torch.linspace(0.5, 2, plan.sizes[1]))

    def normalised(self, *inputs: Tensor) -> Tensor:
        x, z = inputs[0].to(self.wide), inputs[-1].to(self.wide)
        return self.write(self, x, z).to(inputs[0].dtype)

    def deviations(self, x: Tensor) -> Tensor:
        return x if self.plan.kind == "rms_norm" else x - self.mean_of(x)

    def spread(self, x: Tensor) -> Tensor:
        return self.variance_of(self.deviations(x))

    def true_e(self, x: Tensor) -> Tensor:
        return self.spread(x) + self.plan.epsilon

    @property
    def other(self) -> tuple[int, ...]:
        """Axes that are not the norm's, nor the batch."""
        rest = [(axis,) for axis in range(1, self.plan.rank)]
        return next(axes for axes in rest if axes != self.plan.axes)

    def finished(self, n: Tensor) -> Tensor:
        n = n if self.gamma is None else n * self.gamma
        return n if self.beta is None else n + self.beta


def _epsilon_outside(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.finished(w.deviations(x) / (torch.sqrt(w.spread(x)) + w.plan.epsilon))


def _std_epsilon_outside(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    """The LayerNorm of "The Annotated Transformer"."""
    std = x.std(w.plan.axes, keepdim=True)
    return w.finished((x - w.mean_of(x)) / (std + w.plan.epsilon))


def _epsilon_vector(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    e = w.spread(x) + w.plan.epsilon * w.weights
    return w.assembled(w.deviations(x), e)


def _clamped(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.assembled(w.deviations(x), w.spread(x).clamp(min=w.plan.epsilon))


def _exponent(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    d = w.deviations(x)
    exponent = (4, 3, 1.5)[w.plan.seed % 3]
    v = d.abs().pow(exponent).mean(w.plan.axes, keepdim=True)
    return w.assembled(d, v + w.plan.epsilon)


def _no_root(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.finished(w.deviations(x) / w.true_e(x))


def _root_exponent(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.finished(w.deviations(x) / w.true_e(x) ** (0.4, 1 / 3)[w.plan.seed % 2])


def _root_twice(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.assembled(w.deviations(x), torch.sqrt(w.true_e(x)))


def _mean_axis(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.assembled(x - w.mean_of(x, w.other), w.true_e(x))


def _variance_axis(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    v = torch.var(x, w.other, correction=0, keepdim=True)
    return w.assembled(x - w.mean_of(x), v + w.plan.epsilon)


def _batch_axis(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    axes = ((0,), (0, *w.plan.axes))[w.plan.seed % 2]
    d = x - x.mean(axes, keepdim=True)
    return w.assembled(d, d.pow(2).mean(axes, keepdim=True) + w.plan.epsilon)


def _mean_factor(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.assembled(x - (0.5, 1.001)[w.plan.seed % 2] * w.mean_of(x), w.true_e(x))


def _numerator_uncentred(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.assembled(x, w.true_e(x))


def _variance_uncentred(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    v = x.pow(2).mean(w.plan.axes, keepdim=True)
    return w.assembled(x - w.mean_of(x), v + w.plan.epsilon)


def _maximum_subtracted(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.assembled(x - x.amax(w.plan.axes, keepdim=True), w.true_e(x))


def _median_subtracted(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    middle = x.median(w.plan.axes[-1], keepdim=True).values
    return w.assembled(x - middle, w.true_e(x))


def _foreign_numerator(w: Mutant, x: Tensor, z: Tensor) -> Tensor:
    d = z if w.plan.kind == "rms_norm" else z - w.mean_of(x)
    return w.assembled(d, w.true_e(x))


def _foreign_subtrahend(w: Mutant, x: Tensor, z: Tensor) -> Tensor:
    return w.assembled(x - z, w.true_e(x))


def _foreign_variance(w: Mutant, x: Tensor, z: Tensor) -> Tensor:
    return w.assembled(w.deviations(x), w.true_e(z))


def _through(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    function = (torch.relu, torch.tanh, torch.abs, F.gelu)[w.plan.seed % 4]
    return w.assembled(function(w.deviations(x)), w.true_e(x))


def _variance_through(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    d = w.deviations(x)
    v = torch.tanh(d).pow(2).mean(w.plan.axes, keepdim=True)
    return w.assembled(d, v + w.plan.epsilon)


def _variance_weighted(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    d = w.deviations(x)
    v = (d * w.weights).pow(2).mean(w.plan.axes, keepdim=True)
    return w.assembled(d, v + w.plan.epsilon)


def _row_gamma(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    shape = [-1 if i == w.other[0] else 1 for i in range(w.plan.rank)]
    size = w.plan.sizes[w.other[0]]
    gamma = w.channels[:1].expand(size) * torch.arange(1, size + 1)
    return w.deviations(x) * (gamma.reshape(shape) * w.inverse(w.true_e(x)))


def _normalize(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.finished(F.normalize(x, dim=w.plan.axes[-1], eps=w.plan.epsilon))


def _l2(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return x / x.norm(dim=w.plan.axes[-1], keepdim=True)


def _l2_epsilon(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.finished(x / (x.norm(dim=w.plan.axes[-1], keepdim=True) + w.plan.epsilon))


def _absolute_deviation(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    d = w.deviations(x)
    return w.finished(d / (d.abs().mean(w.plan.axes, keepdim=True) + w.plan.epsilon))


def _softmax(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return w.finished(torch.softmax(x, w.plan.axes[-1]))


def _instance_norm(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return F.instance_norm(x, weight=w.channels, bias=w.channels, eps=w.plan.epsilon)


def _group_norm(w: Mutant, x: Tensor, _: Tensor) -> Tensor:
    return F.group_norm(x, 2, w.channels, w.channels, w.plan.epsilon)


_LAYER: dict[str, Any] = {"kind": "layer_norm"}
_RANK: dict[str, Any] = {"rank": 4}
_RMS: dict[str, Any] = {"kind": "rms_norm", "layout": "last"}
_CHANNELS: dict[str, Any] = {"layout": "channels", "width": 8, "half": False}
MUTATIONS: dict[str, Mutation] = {
    "epsilon_outside": Mutation(_epsilon_outside),
    "std_epsilon_outside": Mutation(_std_epsilon_outside, _LAYER),
    "epsilon_vector": Mutation(_epsilon_vector),
    "clamped": Mutation(_clamped),
    "exponent": Mutation(_exponent),
    "no_root": Mutation(_no_root, has_root=False),
    "root_exponent": Mutation(_root_exponent, has_root=False),
    "root_twice": Mutation(_root_twice),
    "mean_axis": Mutation(_mean_axis, _LAYER | _RANK),
    "variance_axis": Mutation(_variance_axis, _LAYER | _RANK),
    "batch_axis": Mutation(_batch_axis),
    "mean_factor": Mutation(_mean_factor, _LAYER),
    "numerator_uncentred": Mutation(_numerator_uncentred, _LAYER),
    "variance_uncentred": Mutation(_variance_uncentred, _LAYER),
    "maximum_subtracted": Mutation(_maximum_subtracted, _LAYER),
    "median_subtracted": Mutation(_median_subtracted, _LAYER),
    "foreign_numerator": Mutation(_foreign_numerator, foreign=True),
    "foreign_subtrahend": Mutation(_foreign_subtrahend, _LAYER, foreign=True),
    "foreign_variance": Mutation(_foreign_variance, foreign=True),
    "through": Mutation(_through),
    "variance_through": Mutation(_variance_through),
    "variance_weighted": Mutation(_variance_weighted),
    "row_gamma": Mutation(_row_gamma, _RANK | {"layout": "last"}),
    "normalize": Mutation(_normalize, _RMS, has_root=False),
    "l2": Mutation(_l2, _RMS, has_root=False),
    "l2_epsilon": Mutation(_l2_epsilon, _RMS, has_root=False),
    "absolute_deviation": Mutation(_absolute_deviation, has_root=False),
    "softmax": Mutation(_softmax, has_root=False),
    "instance_norm": Mutation(_instance_norm, _CHANNELS, has_root=False),
    "group_norm": Mutation(_group_norm, _CHANNELS, has_root=False),
}


def near_miss(plan: TorchPlan, name: str) -> TorchCase:
    mutation = MUTATIONS[name]
    plan = fitted(replace(plan, **mutation.choices))
    module = Mutant(plan, mutation).eval()
    inputs = tuple(example(plan, seed) for seed in range(1 + mutation.foreign))
    return TorchCase(module, inputs, (), f"{name}: {plan}", mutation.has_root)


def torch_near_misses(*names: str) -> st.SearchStrategy[TorchCase]:
    """Modules without a norm, of the mutations ``names`` or of all."""
    drawn = torch_plans(
        kind=("layer_norm", "rms_norm"), operator=(False,),
        order=("plain", "scale_first", "gamma_inside", "shift_inside"),
    )  # fmt: skip
    return st.builds(near_miss, drawn, st.sampled_from(names or tuple(MUTATIONS)))
