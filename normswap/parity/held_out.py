"""How close a model's outputs are to the original's on data that is kept for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from normswap.graph.graph import Array, Runner, Value
from normswap.model import Model
from normswap.parity.metrics import Similarity, finite_or_none

RunBy = Callable[[Model, Sequence[str], Sequence[int]], Runner]
"""From a model, the names of inputs and the places of outputs to what computes these."""


@dataclass(frozen=True)
class Agreement:
    """One output of two models on the same ``samples``.

    ``sqnr_db``: 10 log10 of the original's power over that of the difference. ``cosine``,
    ``cosine_worst``: between rows, the mean and the least. ``top1``: the share of rows whose
    largest element is at the same place, for class scores; None for other outputs.
    """

    output: str
    samples: int
    sqnr_db: float
    cosine: float
    cosine_worst: float
    top1: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields; null for what is not finite."""
        numbers = asdict(self)
        return {k: finite_or_none(v) if isinstance(v, float) else v for k, v in numbers.items()}


class HeldOut:
    """A model's outputs on ``batches``: those that depend on nothing but the inputs given there.

    ``run_by``: how the models are run that are held against it; None is as their graphs do.
    ``outputs``: their names; empty where every output needs more.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Mapping[str, Array]],
        run_by: RunBy | None = None,
    ) -> None:
        given = set(batches[0])
        named = zip(model.output_names, model.graph.outputs, strict=True)
        sources = {name: _sources(model, value) for name, value in named}
        self._batches = batches
        self._model, self._run_by = model, run_by
        self._sources = sources
        self.outputs = [name for name, needed in sources.items() if set() < needed <= given]
        self._expected: list[list[Array]] | None = None

    @property
    def samples(self) -> int:
        return sum(len(next(iter(batch.values()))) for batch in self._batches)

    @property
    def scores(self) -> str | None:
        """The output that holds class scores: the first called ``logits*``; else the first that
        depends on all that any output does and is no embedding. For each sample, or for each
        position where no output has them for samples."""
        # Where another output depends on more, as the scores of a CLIP do, it is an embedding.
        every = set().union(*self._sources.values())
        likely = [n for n in self.outputs if self._sources[n] == every and "embed" not in n]
        named = [n for n in self.outputs if n.startswith("logits")]
        ranks = {name: self._value(name).rank for name in self.outputs}
        found = [n for rank in (2, 3) for n in (*named, *likely) if ranks[n] == rank]
        return next(iter(found), None)

    def similarities(self, model: Model, outputs: Sequence[str]) -> list[Similarity]:
        """Of the original and ``model``, at ``outputs`` of ``self.outputs``."""
        if self._expected is None:
            self._expected = self._run(self._model)
        places = [self.outputs.index(name) for name in outputs]
        tallies = [Similarity() for _ in outputs]
        for expected, got in zip(self._expected, self._run(model), strict=True):
            for tally, place in zip(tallies, places, strict=True):
                tally.add(expected[place], got[place])
        return tallies

    def agreement(self, model: Model) -> list[Agreement]:
        """A row for each of ``outputs``."""
        if not self.outputs:
            return []
        found = self.similarities(model, self.outputs)
        return [
            Agreement(
                name,
                self.samples,
                s.sqnr_db,
                s.cosine_mean,
                s.cosine_worst,
                s.top1_agreement if name == self.scores else None,
            )
            for name, s in zip(self.outputs, found, strict=True)
        ]

    def _value(self, name: str) -> Value:
        return self._model.graph.outputs[self._model.output_names.index(name)]

    def _run(self, model: Model) -> list[list[Array]]:
        inputs = sorted(set().union(*(self._sources[name] for name in self.outputs)))
        places = [self._model.output_names.index(name) for name in self.outputs]
        run_by = self._run_by or as_graph
        run = (as_graph if model is self._model else run_by)(model, inputs, places)
        return [run([batch[name] for name in inputs]) for batch in self._batches]


def as_graph(model: Model, inputs: Sequence[str], outputs: Sequence[int]) -> Runner:
    """A ``RunBy``: as the graph of the model does."""
    graph = model.graph
    return graph.slice([graph.value(name) for name in inputs], [graph.outputs[i] for i in outputs])


def _sources(model: Model, value: Value) -> set[str]:
    """The names of the inputs that a value depends on."""
    return {source.name for source in model.graph.sources([value])}
