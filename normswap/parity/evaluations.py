"""What a model yields at its outputs and inside it: of one run, where its graph gives both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array, Runner, Value
from normswap.lowering import kernels_of
from normswap.model import Model
from normswap.parity.batches import has_dynamic_batch
from normswap.parity.pairing import Run, RunFailed, reported_failures, runner

Feeds = Mapping[str, Array]
Slicing = Callable[[Sequence[Value], Sequence[Value]], Runner]
"""From inputs and outputs to what computes these (``Graph.slice``)."""
_HELD = 2**25  # elements of the values inside a model that one run may yield beside its outputs
_FEW_ROWS = 2  # of feeds whose values inside would be more


class Evaluation:
    """Runs a model for its outputs and for ``values`` inside it, where there are any.

    ``dtype``: in which all is computed; None is as in inference. ``run``: how the outputs come
    about; None is by the graph itself, whose runs yield the values along with them.

    Attributes:
        held: the values of the last run for outputs; None where that did not yield them.
    """

    def __init__(
        self, model: Model, values: Sequence[Value], dtype: Any = None, run: Run | None = None
    ) -> None:
        self._model, self._values, self._dtype = model, list(values), dtype
        kernels = dtype is None and bool(kernels_of(model.graph))
        self._together = bool(values) and run is None and not kernels
        self._outputs = run
        self._both: Run | None = None
        self._inside: Run | None = None
        self.held: list[Array] | None = None

    def outputs(self, feeds: Feeds) -> list[Array]:
        """All outputs in order. Raises RunFailed, and NormswapError where nothing runs them."""
        self.held = None
        if self._together and fits(self._model, self._values, feeds):
            wanted = [*self._model.graph.outputs, *self._values]
            self._both = self._both or value_runner(self._model, wanted, self._dtype)
            try:
                with reported_failures():
                    self._model.check_feeds(feeds)
                found = self._both(feeds)
            except RunFailed:  # what lies inside may be to blame
                pass
            else:
                count = len(self._model.graph.outputs)
                self.held = found[count:]
                return found[:count]
        self._outputs = self._outputs or runner(self._model, self._dtype)
        return self._outputs(feeds)

    def inside(self, feeds: Feeds) -> list[Array]:
        """The values alone. Raises RunFailed."""
        self._inside = self._inside or value_runner(self._model, self._values, self._dtype)
        return self._inside(feeds)


def fits(model: Model, values: Sequence[Value], feeds: Feeds) -> bool:
    """Whether ``values`` may be held as they are on ``feeds``."""
    rows = max((len(a) for a in feeds.values() if a.ndim), default=1)
    given = max((len(a) for a in model.examples.values() if a.ndim), default=1)
    sizes = (math.prod(value.shape or ()) for value in dict.fromkeys(values))
    return sum(sizes) * rows <= _HELD * max(given, 1)


def few_rows(model: Model, feeds: Feeds) -> dict[str, Array]:
    """The first of ``feeds``, where the batch is dynamic."""
    dynamic = has_dynamic_batch(model)
    return {name: array[:_FEW_ROWS] if dynamic else array for name, array in feeds.items()}


def value_runner(
    model: Model, values: Sequence[Value], dtype: Any = None, slicing: Slicing | None = None
) -> Callable[[Feeds], list[Array]]:
    """A function from feeds by name to ``values``; whatever goes wrong in it is RunFailed.

    ``slicing``: in place of the graph's own arithmetic in ``dtype``."""
    distinct = list(dict.fromkeys(values))
    places = [distinct.index(value) for value in values]
    try:
        inputs = model.graph.inputs
        run = slicing(inputs, distinct) if slicing else model.graph.slice(inputs, distinct, dtype)
    except NormswapError as error:
        reason = str(error)

        def refuse(_feeds: Feeds) -> list[Array]:
            raise RunFailed(reason)

        return refuse

    def call(feeds: Feeds) -> list[Array]:
        with reported_failures():
            found = run([feeds[spec.name] for spec in model.inputs])
        return [np.asarray(found[place]) for place in places]

    return call
