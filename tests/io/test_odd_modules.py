"""Modules that torch.export captures in an odd form, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap import Model, NormswapError


class _Dead(nn.Module):
    """``deeper``: what nothing reads is more than one operator."""

    def __init__(self, deeper: bool) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.dead = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) if deeper else nn.LayerNorm(6)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        self.dead(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize("deeper", [False, True])
def test_what_nothing_reads_is_in_nobodys_way(deeper: bool, tmp_path: Path) -> None:
    model = ns.load(_Dead(deeper).eval(), example_inputs=(torch.randn(2, 6),))
    assert [site.name for site in ns.locate(model)] == ["norm"]
    data = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    kernels = ns.Lowering(kernels=True)
    swapped = [ns.swap(model, to=word, lowering=kernels) for word in ("rmsnorm", "fused")]
    swapped += [ns.swap(model, to=word, data=data) for word in ("batchnorm", "affine")]
    for result in [*swapped, ns.fold_affine(model)]:
        assert [site.name for site in result.done] == ["norm"]
        ns.fold(result.model)
    path = tmp_path / "out.pt2"
    ns.save(swapped[2].model, path)
    assert len(ns.locate(ns.load(path))) == 1


class _Outputs(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm, self.head, self.how = nn.LayerNorm(8), nn.Linear(8, 4), how

    def forward(self, x: torch.Tensor) -> object:
        y = self.head(self.norm(x))
        return {
            "mapping": {"logits": y, "attentions": None},
            "tuple": (None, y, None),
            "nested": {"none": (None, {"a": None}), "some": [y, x * 2]},
        }[self.how]


@pytest.mark.parametrize(("how", "count"), [("mapping", 1), ("tuple", 1), ("nested", 2)])
def test_none_among_the_outputs(how: str, count: int, tmp_path: Path) -> None:
    module, x = _Outputs(how).eval(), torch.randn(2, 5, 8)
    model = ns.load(module, example_inputs=(x,))
    assert len(model.output_names) == count
    result = ns.swap(model, to="rmsnorm").model
    for suffix in (".pt2", ".onnx"):
        ns.save(result, tmp_path / f"out{suffix}")
        again = ns.load(tmp_path / f"out{suffix}")
        assert again.output_names == model.output_names
        assert ns.validate(model, again).passed


def test_scripted_modules_are_refused() -> None:
    net, x = nn.Sequential(nn.LayerNorm(8)).eval(), torch.randn(2, 8)
    for scripted in (torch.jit.trace(net, x), torch.jit.script(net)):
        with pytest.raises(NormswapError, match="scripted or traced module"):
            ns.load(scripted, example_inputs=(x,))


class _Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.norm, self.name = nn.LayerNorm(8), name
        self._parameters[name] = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) * self._parameters[self.name]


def _load(name: str) -> Model:
    return ns.load(_Named(name).eval(), example_inputs=(torch.randn(2, 8),))


@pytest.mark.parametrize("name", ["forward", "graph", "code"])
def test_parameters_called_like_what_a_module_has(name: str) -> None:
    with pytest.raises(NormswapError, match=f"attribute '{name}' already exists"):
        _load(name)


@pytest.mark.parametrize("name", ["a/b", "a b", "a-b"])
def test_parameters_whose_name_is_no_identifier(name: str, tmp_path: Path) -> None:
    model = _load(name)
    for suffix in (".pt2", ".onnx"):
        ns.save(ns.swap(model, to="fused").model, tmp_path / f"out{suffix}")
        assert len(ns.locate(ns.load(tmp_path / f"out{suffix}"))) == 1
