"""Every pass on FX and on ONNX from the same test: the same sites, roles and results.

Each of these models is captured by torch.export and exported by one of torch's exporters, two of
them by both (with NORMSWAP_ZOO=all every one by both, at several opsets); below opset 17 the
TorchScript exporter spells LayerNorm out.
"""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest

import normswap as ns
from normswap.graph.graph import Graph
from normswap.norms import locate
from normswap.passes import InsertFfnBatchNorm
from tests.zoo.exports import FX, formats_of, model_as, zoo_model
from tests.zoo.models import BUILDERS

CASES = [(name, form) for name in BUILDERS for form in formats_of(name)]
SWAPS: dict[str, ns.Pass] = {
    "fused": ns.Fused(),
    "copy": ns.BatchNorm(fit="copy"),
    "moments": ns.BatchNorm(),
    "ffn": ns.BatchNorm(ffn_batchnorm=True),
}
# Relative to the largest output; the kinds run the same float32 model on different kernels.
SAME = 2e-4
CALIBRATION = 24


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES], scope="module")
def case(request: pytest.FixtureRequest) -> tuple[str, str, ns.Model]:
    name, form = request.param
    return name, form, model_as(name, form)


def _feeds(name: str) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in zoo_model(name).inputs.items()}


def _calibration(name: str) -> dict[str, np.ndarray]:
    zoo = zoo_model(name)
    shape = (CALIBRATION, *zoo.inputs[zoo.image].shape[1:])
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {zoo.image: 0.5 + 2 * images}


def _sites(model: ns.Model) -> list[tuple[str, str, str, str, float]]:
    return sorted((s.name, s.kind, s.role, s.tower, round(s.epsilon, 12)) for s in ns.locate(model))


def _same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(got[name], array, atol=SAME * scale, rtol=0, err_msg=name)


def _swapped(model: ns.Model, name: str, swap: str) -> ns.PassResult:
    data = None if swap == "fused" else _calibration(name)
    return ns.swap(model, SWAPS[swap], data=data)


@functools.lru_cache
def _reference(name: str, swap: str) -> ns.PassResult:
    return _swapped(model_as(name, FX), name, swap)


def test_finds_the_sites_that_the_model_has(case: tuple[str, str, ns.Model]) -> None:
    name, _, model = case
    zoo = zoo_model(name)
    sites = ns.locate(model)
    assert Counter(s.tower for s in sites) == Counter(
        {"image": zoo.image_sites, "text": zoo.text_sites}
    )
    roles = {s.name: s.role for s in sites}
    assert {name: roles.get(name) for name in zoo.roles} == zoo.roles
    assert _sites(model) == _sites(model_as(name, FX))


def test_computes_what_the_module_does(case: tuple[str, str, ns.Model]) -> None:
    name, _, model = case
    zoo = zoo_model(name)
    results = zoo.module(**zoo.inputs)
    results = results if isinstance(results, tuple) else (results,)
    expected = {n: t.numpy() for n, t in zip(model.output_names, results, strict=True)}
    _same(model.run(_feeds(name)), expected)


@pytest.mark.parametrize("swap", SWAPS)
def test_swap_and_fold_agree_with_fx(case: tuple[str, str, ns.Model], swap: str) -> None:
    name, form, model = case
    original = model.run(_feeds(name))
    result = _swapped(model, name, swap)
    reference = _reference(name, swap)
    assert _sites(result.model) == _sites(reference.model)
    if form != FX:
        _same(result.model.run(_feeds(name)), _renamed(reference.model, result.model, name))
    folded = ns.fold(result.model)
    if swap == "fused":
        assert not folded.done
        assert all(s.spelling == "op" for s in ns.locate(result.model))
        _same(result.model.run(_feeds(name)), original)
    else:
        assert not folded.skipped
        _no_residue(folded.model.graph, model.graph)
        _same(folded.model.run(_feeds(name)), result.model.run(_feeds(name)))
    assert {k: v.tobytes() for k, v in model.run(_feeds(name)).items()} == {
        k: v.tobytes() for k, v in original.items()
    }, "the pass changed its input"


def test_ffn_batchnorm_alone_changes_nothing(case: tuple[str, str, ns.Model]) -> None:
    name, _, model = case
    data = ns.load_data(_calibration(name), model)
    result = InsertFfnBatchNorm(data=data, sites="role=pre_mlp tower=image")(model)
    assert len(result.done) == 2
    inserted = [s for s in ns.locate(result.model) if s.kind == "batch_norm"]
    assert len(inserted) == 2
    assert all(s.name.endswith("_bn") for s in inserted)
    _same(result.model.run(_feeds(name)), model.run(_feeds(name)))


def _renamed(reference: ns.Model, model: ns.Model, name: str) -> dict[str, np.ndarray]:
    arrays = reference.run(_feeds(name)).values()
    return dict(zip(model.output_names, arrays, strict=True))


def _no_residue(graph: Graph, original: Graph) -> None:
    """No norm in the image tower, and no operator left of one: as many as without norms."""
    assert all(s.tower == "text" for s in locate(graph).sites)
    assert all(node.op != "BatchNormalization" for node in graph.nodes)
    before, after = (Counter(n.op for n in g.nodes) for g in (original, graph))
    for op in ("Mul", "Add", "Sub", "Div", "Transpose"):
        assert after[op] <= before[op], op
