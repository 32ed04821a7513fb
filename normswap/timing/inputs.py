"""The same inputs for several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from normswap.errors import NormswapError
from normswap.graph.graph import Array
from normswap.model import InputSpec, Model
from normswap.parity.pairing import matched_names, shared_inputs
from normswap.parity.probes import draw_feeds


def common_model(models: Sequence[Model]) -> Model:
    """The first of ``models`` with every size of its inputs fixed that any of them fixes.

    Raises NormswapError naming two of them where no input can fit both.
    """
    first = models[0]
    for other in models[1:]:
        first = replace(first, inputs=shared_inputs(first, other))
    return first


def drawn(model: Model, batch: int | None) -> dict[str, Array]:
    """Random inputs: standard normal numbers, token ids. ``batch``: of 1 by default.

    Raises NormswapError for a model with another fixed batch.
    """
    leading = [spec.shape[0] for spec in model.inputs if spec.shape]
    fixed = leading and all(isinstance(size, int) for size in leading)
    if batch is not None and fixed and batch not in leading:
        raise NormswapError(
            f"{model.name}: its batch is fixed at {leading[0]}, not {batch}; leave --batch out, or "
            "export it with a dynamic batch"
        )
    return draw_feeds(model, "normal", batch or 1, [0, 0])


def named_for(
    model: Model, specs: Sequence[InputSpec], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """``feeds`` of inputs ``specs`` for the inputs of ``model``, in its order: those of the same
    names, and the others in turn, as ``shared_inputs`` matches them."""
    own = [spec.name for spec in model.inputs]
    given = matched_names(own, [spec.name for spec in specs])
    return {name: np.asarray(feeds[given[name]]) for name in own}


def described(feeds: Mapping[str, Array]) -> dict[str, str]:
    """Sizes by name, as '8x3x224x224 float32'."""
    sizes = {name: "x".join(map(str, array.shape)) or "scalar" for name, array in feeds.items()}
    return {name: f"{sizes[name]} {array.dtype.name}" for name, array in feeds.items()}
