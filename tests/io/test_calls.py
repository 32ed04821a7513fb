"""Modules with keyword arguments, constants among them, and outputs of any structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import normswap as ns
from normswap import NormswapError
from normswap.io.sources.packages import ensure_torchvision_importable


class _Net(nn.Module):
    """``forward``: what a test gives it, called with the module."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.forward = forward.__get__(self)  # type: ignore[method-assign]
        self.eval()


def _plain(self: Any, x: Any, mask: Any = None, *, scale: float = 1.0, **more: Any) -> Any:
    x = x if mask is None else x * mask[..., None]
    x = x + more.get("shift", 0)
    return self.head(self.norm(x)) * scale


def _only(self: Any, x: Any, how: str, /, y: Any) -> Any:
    assert how == "sum"
    return self.head(self.norm(x + y))


def _any_number(self: Any, how: str, x: Any, *others: Any, scale: float = 1.0) -> Any:
    assert how == "sum"
    return self.head(self.norm(x + sum(others))) * scale


_X, _Y, _MASK = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.ones(3, 5)
_MASK[1, 2:] = 0


@pytest.mark.parametrize(
    ("forward", "args", "kwargs", "inputs"),
    [
        (_plain, (_X, _MASK), {}, ["x", "mask"]),
        (_plain, (_X,), {"mask": _MASK}, ["x", "mask"]),
        (_plain, (_X, None), {"scale": 3.0}, ["x"]),
        (_plain, (), {"mask": _MASK, "x": _X, "scale": 3.0}, ["mask", "x"]),
        (_plain, (_X,), {"shift": _Y, "note": "unused", "scale": 0.5}, ["x", "shift"]),
        (_only, (_X, "sum", _Y), {}, ["x", "y"]),
        (_only, (_X, "sum"), {"y": _Y}, ["x", "y"]),
        (_any_number, ("sum", _X, _Y, _X), {"scale": 2.0}, ["x", "others_0", "others_1"]),
    ],
)
def test_arguments(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[str]
) -> None:
    module = _Net(forward)
    before = module.forward
    with torch.no_grad():
        wanted = module(*args, **kwargs).numpy()
    model = ns.load(module, example_inputs=args, example_kwargs=kwargs)
    assert module.forward == before
    assert sorted(spec.name for spec in model.inputs) == sorted(inputs)
    assert all(spec.shape[0] == "batch" for spec in model.inputs)
    (found,) = model.run(model.examples).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    module(*args, **kwargs)


def test_axes_have_the_names_that_were_given() -> None:
    axes = {"x": {0: "n", 1: "length"}, "mask": {0: "n", 1: "length"}}
    model = ns.load(_Net(_plain), example_inputs=(_X, _MASK), dynamic_axes=axes)
    assert [spec.shape for spec in model.inputs] == [("n", "length", 8), ("n", "length")]
    apart = {"x": {0: "n"}, "y": {1: "n"}}
    twice = _Net(lambda self, x, y: (self.norm(x), self.norm(y)))
    model = ns.load(twice, example_inputs=(_X, _Y[:2, :3]), dynamic_axes=apart)
    assert model.inputs[0].shape[0] == model.inputs[1].shape[1]


def test_keyword_arguments_alone() -> None:
    given = {"x": _X, "mask": _MASK}
    assert len(ns.load(_Net(_plain), example_inputs=given).inputs) == 2
    assert len(ns.load(_Net(_plain), example_kwargs=given).inputs) == 2
    with pytest.raises(NormswapError, match="'mask' is in example_inputs and example_kwargs"):
        ns.load(_Net(_plain), example_inputs=given, example_kwargs={"mask": _MASK})
    with pytest.raises(NormswapError, match="forward does not take these inputs"):
        ns.load(_Net(_only), example_inputs=(_X,), example_kwargs={"x": _X})
    with pytest.raises(NormswapError, match="holds no tensor"):
        ns.load(_Net(_plain), example_kwargs={"x": 1.0})


@dataclasses.dataclass
class _Pair:
    first: Any
    second: Any = None


@dataclasses.dataclass
class _Outputs:
    loss: Any
    logits: Any
    states: Any = None
    note: str = "no tensor"


class _Named(NamedTuple):
    logits: Any
    states: Any


_OUTPUTS: dict[str, tuple[Callable[[Any, Any], Any], list[str]]] = {
    "dataclass": (lambda x, y: _Outputs(None, y), ["logits"]),
    "nested": (
        lambda x, y: _Outputs(None, y, (x * 2, _Pair(x + 1))),
        ["logits", "states_0", "states_1_first"],
    ),
    "named tuple": (lambda x, y: _Named(y, {"all": x * 2}), ["logits", "states_all"]),
    "mapping": (lambda x, y: {"logits": y, "none": None, "n": 3}, ["logits"]),
    "an input's name": (lambda x, y: {"x": y, "logits": x * 2}, ["x_out", "logits"]),
    "names that meet": (lambda x, y: {"a": {"b": y}, "a_b": x * 2}, ["a_b", "a_b_out"]),
    "one tensor twice, and an input": (
        lambda x, y: _Outputs(_Named(y, y), x, (None, _Pair({"x": x * 2}))),
        ["loss_logits", "loss_states", "logits", "states_1_first_x"],
    ),
}


def _returning(how: str) -> ns.Model:
    def forward(self: Any, x: Any) -> Any:
        return _OUTPUTS[how][0](x, self.head(self.norm(x)))

    return ns.load(_Net(forward), example_inputs=(_X,))


@pytest.mark.parametrize("how", list(_OUTPUTS))
def test_outputs_have_the_names_of_fields(how: str) -> None:
    model = _returning(how)
    assert list(model.output_names) == _OUTPUTS[how][1]
    assert list(model.run(model.examples)) == _OUTPUTS[how][1]


@pytest.mark.parametrize("how", ["one tensor twice, and an input"])
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_outputs_are_written(how: str, suffix: str, tmp_path: Path) -> None:
    model = _returning(how)
    result = ns.swap(model, to="rmsnorm").model
    ns.save(result, tmp_path / f"out{suffix}")
    again = ns.load(tmp_path / f"out{suffix}")
    if suffix == ".onnx":
        assert again.output_names == model.output_names
    wanted = model.run(model.examples).values()
    for found, value in zip(again.run(model.examples).values(), wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)


def test_outputs_of_transformers() -> None:
    ensure_torchvision_importable()
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    bert, ids = transformers.BertModel(config).eval(), torch.zeros(2, 5, dtype=torch.int64)
    model = ns.load(
        bert,
        example_inputs=(ids,),
        example_kwargs={"attention_mask": torch.ones_like(ids), "output_hidden_states": True},
    )
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask"]
    assert list(model.output_names) == [
        "last_hidden_state", "pooler_output", "hidden_states_0", "hidden_states_1",
    ]  # fmt: skip
    assert "last_hidden_state" in model.to_torch()(ids, attention_mask=torch.ones_like(ids))


def test_outputs_without_names_and_of_other_classes() -> None:
    class Other:
        pass

    def two(self: Any, x: Any) -> Any:
        return self.head(self.norm(x)), _Pair(x * 2)

    model = ns.load(_Net(two), example_inputs=(_X,))
    assert len(model.output_names) == 2
    with pytest.raises(NormswapError, match="cannot capture it"):
        ns.load(_Net(lambda self, x: Other()), example_inputs=(_X,))
