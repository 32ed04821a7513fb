"""A BatchNorm between the two linear layers of each FFN, for training to make use of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from normswap.fit.batch_norm import identity
from normswap.fit.batches import calibration_batches
from normswap.fit.moments import ChannelMoments
from normswap.fit.sweep import Stop, sweep
from normswap.graph.graph import Graph, Value
from normswap.graph.linear import Linear, linear_reading
from normswap.io.data import Data
from normswap.locate import locate
from normswap.locate.passthrough import PASS_THROUGH
from normswap.locate.site import Site
from normswap.model import Model
from normswap.passes.base import Pass, PassResult
from normswap.passes.insert import insert_batch_norm
from normswap.passes.select import select_sites

_EPSILON = 1e-5  # torch's default


@dataclass
class InsertFfnBatchNorm(Pass):
    """h = BN(W1 x + b1) before the activation, in every plain FFN behind a norm.

    Exact at evaluation: gamma = sqrt(var + eps) and beta = mean undo the statistics of the BN's own
    input, which come from calibration data. Yao et al. (ICCVW 2021) report that it keeps training
    with BatchNorm from crashing. Skips FFNs whose norm is read by several linear layers.
    """

    exact: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    data: Data
    sites: str | None = "role=*_mlp"

    def __call__(self, model: Model) -> PassResult:
        result = model.copy()
        chosen = select_sites(locate(model.graph).sites, self.sites)
        stops, skipped = ffn_stops(result.graph, chosen)
        unfit = {site.name for site, _ in skipped}
        done = [s for s in chosen if s.role.endswith("_mlp") and s.name not in unfit]
        if not stops:
            return PassResult(model, False, [], skipped)
        batches = calibration_batches(model, done, self.data)
        for _ in sweep(result.graph, batches, stops):
            pass
        return PassResult(result, True, done, skipped)


def ffn_stops(graph: Graph, sites: Sequence[Site]) -> tuple[list[Stop], list[tuple[Site, str]]]:
    """Where the FFNs behind the ``*_mlp`` sites get their BatchNorm; skipped ones with the reason.

    A BatchNorm is named after its linear layer: ``fc1`` gets ``fc1_bn``.
    """
    stops, skipped = [], []
    for site in sites:
        if not site.role.endswith("_mlp"):
            continue
        first = _linear_readers(graph, graph.value(site.output))
        if len(first) != 1:
            skipped.append((site, f"its FFN has {len(first)} first linear layers, not one"))
            continue
        stops.append(_stop(graph, first[0]))
    return stops, skipped


def _stop(graph: Graph, linear: Linear) -> Stop:
    owner, _, last = linear.name.rpartition(".")
    name = f"{owner if last == 'weight' else linear.product.scope or linear.name}_bn"

    def edit(value: Value, moments: ChannelMoments) -> tuple[Value, Value]:
        new, reads = insert_batch_norm(
            graph, value, linear.axis, identity(moments, _EPSILON), name, linear.product
        )
        graph.replace_uses(value, new, keep=reads)
        return value, new

    return Stop(linear.output, linear.axis, edit)


def _linear_readers(graph: Graph, value: Value) -> list[Linear]:
    found = []
    for node, index in value.uses:
        linear = linear_reading(graph, node, index)
        if linear is not None:
            found.append(linear)
        elif node.op in PASS_THROUGH:
            found += _linear_readers(graph, node.output)
    return found
