"""What a generated spelling or near-miss has to show: located with its constants and rewritten
exactly, or left alone with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, settings

import normswap
from normswap import Model, Site
from normswap.graph.onnx.graph import OnnxGraph, read_graph
from normswap.norms import Location, locate
from tests.effort import examples_of
from tests.norms.spelling_proof import Evaluated, formula
from tests.norms.spelling_truth import Array, Case, Truth

NORMS = ("layer_norm", "rms_norm", "batch_norm")


def examples(count: int, thorough: int | None = None) -> Callable[[Any], Any]:
    """How many are drawn, and how many with NORMSWAP_ZOO=all."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    drawn = examples_of(count, thorough or count)
    return settings(max_examples=drawn, suppress_health_check=checks)


def graph_of(case: Case) -> OnnxGraph:
    return read_graph(ir.serde.deserialize_model(copy.deepcopy(case.proto)))


def norms_of(location: Location) -> list[Site]:
    return [site for site in location.sites if site.kind in NORMS]


def aliases(truth: Truth, rank: int) -> tuple[str, ...]:
    """The kinds that a norm may go by: some LayerNorms are an InstanceNorm or a GroupNorm too."""
    kinds = [truth.kind]
    affine = [array for array in (truth.gamma, truth.beta) if array is not None]
    if truth.kind == "layer_norm" and rank == 4 and truth.axes == (2, 3):
        kinds += ["instance_norm"] * all(np.ptp(array) == 0 for array in affine)
    if truth.kind == "layer_norm" and truth.axes == tuple(range(1, rank)):
        kinds += ["group_norm"] * all(
            np.ptp(array, tuple(range(1, array.ndim))).max() == 0 for array in affine
        )
    return tuple(kinds)


def _or(array: Array | None, default: float, like: tuple[int, ...]) -> Array:
    return np.full(like, default) if array is None else array


def _affine(of: Site | Truth) -> tuple[Array, Array]:
    """gamma and beta; for a batch_norm the scale and shift, which is all that the graph tells."""
    shape = of.normalized_shape
    weight, bias = (of.gamma, of.beta) if isinstance(of, Truth) else (of.weight, of.bias)
    gamma, beta = _or(weight, 1.0, shape), _or(bias, 0.0, shape)
    if of.kind != "batch_norm":
        return gamma, beta
    gamma = gamma / np.sqrt(_or(of.variance, 1.0, shape) + of.epsilon)
    return gamma, beta - gamma * _or(of.mean, 0.0, shape)


def check_site(site: Site, truth: Truth, rtol: float = 1e-6) -> None:
    """The site is the norm, on its input or a view of it with the axes in another order."""
    assert site.kind == truth.kind
    assert np.prod(site.normalized_shape) == np.prod(truth.normalized_shape)
    if truth.kind != "batch_norm":
        assert site.epsilon == pytest.approx(truth.epsilon, rel=rtol, abs=1e-300)
    for found, expected in zip(_affine(site), _affine(truth), strict=True):
        atol = rtol * max(1e-3, np.abs(expected).max())
        if site.input == truth.input:
            assert (site.axes, site.normalized_shape) == (truth.axes, truth.normalized_shape)
        else:
            found, expected = np.sort(found, None), np.sort(expected, None)
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol, atol)


def _same_elements(a: Array, b: Array) -> bool:
    """Whether two values are views of one another."""
    if a.size != b.size:
        return False
    return np.allclose(np.sort(a, None), np.sort(b, None), rtol=1e-9, atol=1e-9)


def check_location(case: Case, rtol: float = 1e-6) -> None:
    sites = locate(graph_of(case)).sites
    assert len(sites) == len(case.truths)
    evaluated = Evaluated(case.proto)
    values = evaluated(evaluated.feeds(1.0, offset=0.5))
    for truth in case.truths:
        (site,) = [s for s in sites if _same_elements(values[s.output], values[truth.output])]
        assert site.kind in aliases(truth, values[truth.input].ndim)
        if site.kind != truth.kind:
            assert site.epsilon == pytest.approx(truth.epsilon, rel=rtol)
            continue
        check_site(site, truth, rtol)
        recovered = Truth(
            site.kind, site.axes, site.normalized_shape, site.epsilon, site.weight, site.bias,
            site.input, site.output, site.mean, site.variance,
        )  # fmt: skip
        expected = formula(recovered, values[site.input])
        np.testing.assert_allclose(values[site.output], expected, 1e-5, 1e-6)


def check_fusion(model: Model) -> None:
    """All that is spelled out is fused, but for a LayerNorm that goes by another name."""
    sites = normswap.locate(model)
    assert sites
    result = normswap.swap(model, to="fused")
    spelled = [s for s in sites if s.kind in NORMS and s.spelling == "decomposed"]
    assert len(result.done) == len(spelled), result.skipped
    report = normswap.validate(model, result.model)
    assert report.passed, report


def check_rejection(location: Location, has_root: bool) -> None:
    assert not norms_of(location)
    assert all(rejection.reason for rejection in location.rejected)
    if has_root:
        assert location.rejected or location.sites  # of an instance_norm or group_norm
