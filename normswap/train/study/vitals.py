"""What a training run looked like from inside, every few steps, and where a crash began."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from normswap.graph.graph import Array
from normswap.model import Model
from normswap.norms.structure import ffn_of, residuals
from normswap.train.batch_norms import BatchNorm, batch_norms, own_statistics
from normswap.train.taps import arguments, tapped

RECORDS = 100  # in a run that goes all the way
_SAMPLES = 16  # that FFNs and BatchNorms are looked at with: a tenth of a step or less
_FEWEST = 3  # records that say what is usual
_TIMES, _NATS = 10.0, 1.0

HIDDEN, RATIO, GRADIENT, LOSS = "hidden", "ratio", "gradient_norm", "loss"
STATISTICS: Mapping[str, str] = {
    HIDDEN: "variance of an FFN's hidden values",
    RATIO: "a BatchNorm's batch variance / running variance",
    GRADIENT: "gradient norm",
    LOSS: "loss",
}


@dataclass(frozen=True)
class Vitals:
    """After the update of ``step``; ``loss`` (nats) and ``gradient_norm`` (before clipping) are
    those of its batch.

    ``hidden``: the variance of each FFN's hidden values in front of the activation, in the order of
    execution. ``ratio``: of the BatchNorm whose batch variance is furthest from its running one
    (the geometric mean over channels), that ratio, and ``norm``, its name; None without BatchNorms.
    What is not finite is None too.
    """

    step: int
    loss: float | None
    gradient_norm: float | None
    hidden: list[float | None]
    ratio: float | None
    norm: str | None


@dataclass(frozen=True)
class Onset:
    """The first record at which something had left its range. ``statistics``: what, of
    ``STATISTICS``; several where they did between the same two records. ``places``: which FFN and
    which BatchNorm, where those are among them."""

    step: int
    statistics: list[str]
    places: list[str]


class VitalSigns:
    """Takes the entries of a training's log, and measures ``module`` each time that it is due.

    A forward of its own, in training mode, on a few samples that stay the same; BatchNorms keep
    their running statistics. ``records``: what was found. ``hidden``: names of the FFNs.
    """

    def __init__(
        self, module: fx.GraphModule, model: Model, feeds: Mapping[str, Array], steps: int
    ) -> None:
        """``model``: the one that ``module`` was made from, which tells where the FFNs are."""
        found = hidden_values(model)
        self.hidden = list(found)
        self.records: list[Vitals] = []
        self._every = max(1, steps // RECORDS)
        self._norms = batch_norms(module)
        self._tap = tapped(module, [*found.values(), *_outputs(module)])
        self._feeds = {
            name: torch.from_numpy(np.array(feeds[name][:_SAMPLES]))
            for name in arguments(self._tap)
        }

    def __call__(self, entry: Mapping[str, Any]) -> None:
        if entry["step"] % self._every == 0:
            self.measure(entry["step"], entry[LOSS], entry[GRADIENT])

    def measure(self, step: int, loss: float, gradient_norm: float) -> None:
        ratios: dict[str, float] = {}

        def note(name: str) -> Callable[..., None]:
            return lambda norm, args: ratios.update({name: _ratio(norm, args[0])})

        hooks = [norm.register_forward_pre_hook(note(n)) for n, norm in self._norms.items()]
        try:
            with torch.no_grad(), own_statistics(self._norms.values()):
                values = self._tap(**self._feeds)[: len(self.hidden)]
        finally:
            for hook in hooks:
                hook.remove()
        worst = max(ratios, key=lambda name: _distance(ratios[name]), default=None)
        self.records.append(
            Vitals(
                step,
                _finite(loss),
                _finite(gradient_norm),
                [_finite(float(value.float().var())) for value in values],
                None if worst is None else _finite(ratios[worst]),
                worst,
            )
        )

    def onset(self) -> Onset | None:
        return onset(self.records, self.hidden)


def hidden_values(model: Model) -> dict[str, str]:
    """By the names of the first linear layers of each FFN, their outputs in the torch graph."""
    branches = residuals(model.graph)
    found = [ffn_of(model.graph, branches, s) for s in model.sites if s.role.endswith("_mlp")]
    return {
        linear.name.removesuffix(".weight"): linear.output.name
        for ffn in found
        if ffn is not None
        for linear in ffn.first
    }


def _outputs(module: fx.GraphModule) -> list[str]:
    """Of a graph, so that all its BatchNorms run, also those behind the last FFN."""
    (output,) = module.graph.find_nodes(op="output")
    return [node.name for node in output.all_input_nodes]


def _ratio(norm: BatchNorm, x: torch.Tensor) -> float:
    assert norm.running_var is not None
    axes = [axis for axis in range(x.dim()) if axis != 1]
    batch = x.detach().double().var(axes, correction=0) + norm.eps
    return float((batch / (norm.running_var.double() + norm.eps)).log().mean().exp())


def _distance(ratio: float) -> float:
    """From 1, in powers of e; what is not a positive number is furthest."""
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def _finite(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


# -- where it began ------------------------------------------------------------------------------


def onset(records: Sequence[Vitals], hidden: Sequence[str]) -> Onset | None:
    """Where something first left its range, and was still out of it at the next record.

    Ranges: ten times the median of the records before, for the variance of each FFN's hidden values
    and for the gradient norm; a tenth to ten for a BatchNorm's ratio; one nat above the median of
    the records before, for the loss. None if nothing did. ``hidden``: the names of the FFNs.
    """
    for index in range(_FEWEST, len(records)):
        before, now = records[:index], records[index]
        later = records[min(index + 1, len(records) - 1)]
        places = [
            name
            for place, name in enumerate(hidden)
            if _above([r.hidden[place] for r in before], now.hidden[place], later.hidden[place])
        ]
        left = [HIDDEN] if places else []
        if now.norm is not None and all(_far(record.ratio) for record in (now, later)):
            left.append(RATIO)
            places.append(now.norm)
        gradients = [r.gradient_norm for r in before]
        if _above(gradients, now.gradient_norm, later.gradient_norm):
            left.append(GRADIENT)
        usual = float(np.median([math.inf if r.loss is None else r.loss for r in before]))
        if all(r.loss is None or r.loss > usual + _NATS for r in (now, later)):
            left.append(LOSS)
        if left:
            return Onset(now.step, left, places)
    return None


def _above(before: Sequence[float | None], *now: float | None) -> bool:
    usual = float(np.median([math.inf if value is None else value for value in before]))
    return all(value is None or value > _TIMES * usual for value in now)


def _far(ratio: float | None) -> bool:
    return ratio is None or _distance(ratio) > math.log(_TIMES)
