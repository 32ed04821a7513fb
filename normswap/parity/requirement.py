"""``--ensure``: how close to the original an approximate swap has to stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Value
from normswap.model import Model
from normswap.parity.metrics import Similarity

METRICS = ("top1", "cosine", "sqnr")
_FORM = re.compile(r"\s*([a-z0-9]+)\s*>=\s*([-+0-9.e]+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Requirement:
    """``metric`` must reach ``least``: 'top1', the share of samples whose largest class score is
    the original's (0 to 1); 'cosine', the mean over rows (-1 to 1); 'sqnr', in decibels."""

    metric: str
    least: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """From ``METRIC>=NUMBER``. Raises NormswapError for anything else."""
        match = _FORM.fullmatch(text)
        try:
            metric, least = (match[1].lower(), float(match[2])) if match else ("", 0.0)
        except ValueError:
            metric, least = "", 0.0
        if metric not in METRICS or not np.isfinite(least):
            raise NormswapError(
                f"--ensure: '{text}' is no requirement; give {' or '.join(METRICS)}, '>=' and a "
                f"number, as in 'top1>=0.99'"
            )
        top = {"top1": 1.0, "cosine": 1.0}.get(metric)
        if top is not None and least > top:
            raise NormswapError(f"--ensure: {metric} is never above {top:g}, got {least:g}")
        return cls(metric, least)

    def __str__(self) -> str:
        return f"{self.metric} >= {self.least:g}"


class Judge:
    """Holds models against the original, on data that no fit has seen.

    Judged are the outputs that depend on nothing but the data's inputs: all of them, the worst of
    which counts; for 'top1' the first called ``logits*``, else the first of rank 2 that depends on
    all that any output does.
    Raises NormswapError where there is none.
    """

    def __init__(
        self, model: Model, batches: Sequence[Mapping[str, Array]], requirement: Requirement
    ) -> None:
        self.requirement = requirement
        self._batches = batches
        given = set(batches[0])
        named = list(zip(model.output_names, model.graph.outputs, strict=True))
        sources = {name: _sources(model, value) for name, value in named}
        found = [(n, v) for n, v in named if set() < sources[n] <= given]
        if requirement.metric == "top1":
            # Where another output depends on more, as the scores of a CLIP do, it is an embedding.
            all_inputs = set().union(*sources.values())
            found = _scores(found, [n for n, _ in found if sources[n] == all_inputs])
        if not found:
            wanted = "class scores" if requirement.metric == "top1" else "an output"
            raise NormswapError(
                f"--ensure: {model.name} has no output with {wanted} that the calibration data "
                f"({', '.join(sorted(given))}) is enough for; try cosine>="
            )
        self._positions = [model.output_names.index(name) for name, _ in found]
        self._inputs = sorted(set().union(*(_sources(model, v) for _, v in found)))
        self._expected = self._run(model)

    @property
    def samples(self) -> int:
        return sum(len(next(iter(batch.values()))) for batch in self._batches)

    def measure(self, model: Model) -> float:
        """The requirement's metric, of the original and ``model``."""
        values = [_METRIC[self.requirement.metric](s) for s in self._similarities(model)]
        return float(np.min(values))  # NaN if any is

    def error(self, model: Model) -> float:
        """The error's share of the outputs' power: tells apart what 'top1' does not."""
        shares = [10 ** (-s.sqnr_db / 10) for s in self._similarities(model)]
        return float(np.max(np.where(np.isnan(shares), np.inf, shares)))

    def meets(self, model: Model) -> bool:
        return self.measure(model) >= self.requirement.least

    def _similarities(self, model: Model) -> list[Similarity]:
        tallies = [Similarity() for _ in self._positions]
        for expected, got in zip(self._expected, self._run(model), strict=True):
            for tally, a, b in zip(tallies, expected, got, strict=True):
                tally.add(a, b)
        return tallies

    def _run(self, model: Model) -> list[list[Array]]:
        graph = model.graph
        inputs = [graph.value(name) for name in self._inputs]
        run = graph.slice(inputs, [graph.outputs[i] for i in self._positions])
        return [run([batch[name] for name in self._inputs]) for batch in self._batches]


_METRIC = {
    "top1": lambda s: s.top1_agreement,
    "cosine": lambda s: s.cosine_mean,
    "sqnr": lambda s: s.sqnr_db,
}


def _scores(outputs: Sequence[tuple[str, Value]], likely: list[str]) -> list[tuple[str, Value]]:
    """The output that holds class scores; ``likely``: those that may, by what they depend on."""
    named = [(n, v) for n, v in outputs if n.startswith("logits") and v.rank == 2]
    other = [(n, v) for n, v in outputs if n in likely and v.rank == 2 and "embed" not in n]
    return [*named, *other][:1]


def _sources(model: Model, value: Value) -> set[str]:
    """The names of the inputs that a value depends on."""
    return {source.name for source in model.graph.sources([value])}
