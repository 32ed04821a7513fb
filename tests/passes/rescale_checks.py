"""What ``rescale`` has to show, whatever the model: the same bits, and the headroom."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

import normswap as ns
from normswap.io.data import Data
from normswap.passes.base import PassResult
from normswap.passes.fused import Fused
from normswap.precision.formats import FORMATS
from tests.effort import ALL
from tests.passes.fold_checks import fingerprint
from tests.passes.norm_checks import operators
from tests.zoo.captures import exporting

Feeds = Mapping[str, np.ndarray]
KINDS = ("fx", "torchscript")


def in_turn(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each name with a kind of graph: the cheaper one, but for every fourth; with both in all
    tests."""
    if ALL:
        return [(name, kind) for name in names for kind in KINDS]
    return [(name, KINDS[bool(number % 4)]) for number, name in enumerate(names)]


def single(module: nn.Module, x: torch.Tensor, kind: str, opset: int = 17) -> ns.Model:
    """``module`` in float32, by torch.export or as torch's exporter writes it."""
    module = module.float().eval()
    if kind == "fx":
        return ns.load(module, example_inputs=(x,), dynamic_axes={"x": {0: "batch"}})
    buffer = io.BytesIO()
    with exporting():
        torch.onnx.export(
            module, (x,), buffer, dynamo=False, opset_version=opset, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )  # fmt: skip
    return ns.load(ir.serde.deserialize_model(onnx.load_from_string(buffer.getvalue())))


def hostile(feeds: Feeds) -> Iterator[dict[str, np.ndarray]]:
    """Feeds like those given, and others that models seldom see."""
    yield dict(feeds)
    rng = np.random.default_rng(3)
    for change in (
        lambda a: np.zeros_like(a),
        lambda a: np.ones_like(a),
        lambda a: a * 1e3,
        lambda a: a * 1e-3,
        lambda a: a + 1e4,
        lambda a: np.where(rng.random(a.shape) < 0.02, 300 * a, a),
    ):
        yield {
            name: change(a).astype(a.dtype) if np.issubdtype(a.dtype, np.floating) else a
            for name, a in feeds.items()
        }


def same_bits(first: ns.Model, second: ns.Model, feeds: Feeds) -> None:
    for given in hostile(feeds):
        expected, got = first.run(given), second.run(given)
        for name, array in expected.items():
            assert array.dtype == got[name].dtype
            differ = np.count_nonzero(array != got[name])
            assert np.array_equal(array, got[name], equal_nan=True), f"{name}: {differ} numbers"


def check_rescaled(
    model: ns.Model, feeds: Feeds, how: ns.Rescale | None = None, sites: object = None
) -> PassResult:
    """Rescales; the outputs are the same to the bit as those of the model whose norms are written
    as the same operators, no operator is added but those that the notes tell of, and each site is
    told of."""
    before = fingerprint(model.graph)
    how = how or ns.Rescale()
    result = ns.swap(model, how, data=as_data(feeds), sites=sites)
    assert fingerprint(model.graph) == before, "the input has changed"
    told = {site.name for site in [*result.done, *(site for site, _ in result.skipped)]}
    assert told >= {site.name for site in model.sites} or sites is not None
    assert all(reason for _, reason in result.skipped)
    assert (result.model is model) != result.modified
    like = _with_operators(model, result)
    same_bits(like, result.model, feeds)
    before_ops, after_ops = operators(like.graph), operators(result.model.graph)
    restored = sum("one Mul takes" in note for note in result.notes)
    assert after_ops - before_ops == Counter({"Mul": restored} if restored else {})
    return result


def as_data(feeds: Feeds) -> Data:
    """Feeds as samples; of a CLIP's images and texts as many as there are of both."""
    count = min(len(array) for array in feeds.values())
    return Data({name: array[:count] for name, array in feeds.items()}, None)


def _with_operators(model: ns.Model, result: PassResult) -> ns.Model:
    """The model with the norms written as operators that the notes tell of."""
    told = [re.match("'(.*)' is written as", note) for note in result.notes]
    named = {found[1] for found in told if found}
    changed = [site for site in model.sites if site.name in named]
    return Fused(sites=changed)(model).model if changed else model


def places_left(model: ns.Model, feeds: Feeds, format: str = "float16") -> float:
    """The fewest binary places that any value of a model leaves, masks apart."""
    found = ns.headroom(model, data=dict(feeds))
    return min(place.places(format) for place in found.places)


def names(sites: Sequence[ns.Site]) -> list[str]:
    return [site.name for site in sites]


LIMIT = FORMATS["float16"].largest
