"""Each graph is located once, whatever reads its norms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import normswap as ns
import normswap.model
from normswap.graph.graph import Graph
from normswap.graph.linear import put_constant
from normswap.norms import locate
from normswap.norms.site import Location
from tests.cli.conftest import Run, run  # noqa: F401  (a fixture)
from tests.zoo.exports import FX, model_as


@pytest.fixture
def located(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each graph was located, by the order in which they first were."""
    counts: Counter[int] = Counter()
    graphs: list[Graph] = []  # kept, so that no two have one identity

    def counted(graph: Graph) -> Location:
        if not any(graph is known for known in graphs):
            graphs.append(graph)
        counts[next(i for i, known in enumerate(graphs) if known is graph)] += 1
        return locate(graph)

    monkeypatch.setattr(normswap.model, "locate", counted)
    return counts


@pytest.mark.parametrize("form", [FX, "torchscript-14"])
def test_in_python(form: str, located: Counter[int]) -> None:
    model = model_as("timm_vit", form).copy()
    data = np.random.default_rng(0).standard_normal((10, 3, 32, 32)).astype(np.float32)
    sites = ns.locate(model)
    fused = ns.swap(model, to="fused", sites=sites).model
    swapped = ns.swap(model, to="affine", data=data, sites=sites[:2]).model
    folded = ns.fold(swapped).model
    assert ns.validate(model, fused).passed
    ns.validate(model, folded, contract="approximate")
    assert len(ns.locate(folded)) == len(sites) - 2
    assert set(located.values()) == {1}
    assert len(located) <= 4  # the original, fused, swapped and folded


def test_on_the_command_line(
    located: Counter[int],
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    source, data, output = (tmp_path / name for name in ("vit.onnx", "data.npy", "out.onnx"))
    ns.save(model_as("timm_vit", "torchscript-14"), source)
    np.save(data, np.random.default_rng(0).standard_normal((10, 3, 32, 32)).astype(np.float32))
    made = run("swap", source, "-o", output, "--to", "affine", "--data", data, "--fold")
    assert made.status == 0, made.err
    assert dict(located) == {0: 1, 1: 1}  # the source, and what is to be folded
    run("validate", source, output, "--contract", "approximate", "--data", data)
    assert dict(located) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_again_after_an_edit() -> None:
    model = model_as("timm_vit", "torchscript-17").copy()
    first = model.sites[0]
    assert model.sites[0] is first
    assert first.weight is not None
    node = model.graph.value(first.output).producer
    assert node is not None
    put_constant(model.graph, node, 1, 2 * first.weight)
    assert model.sites[0].weight is not None
    assert np.array_equal(model.sites[0].weight, 2 * first.weight)
