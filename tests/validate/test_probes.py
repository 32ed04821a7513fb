"""Probes fit the inputs that they are drawn for and hold what their kind says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normswap.errors import NormswapError
from normswap.model import Model
from normswap.validate.probes import Neighbours, Probe, make_probes

KINDS = ["normal", "batch_1", "large_mean", "tiny_variance", "constant", "outlier_channel"]
VOCABULARY, LENGTH = 50, 12


def first(probes: list[Probe], kind: str, name: str) -> np.ndarray:
    return next(p.feeds[name] for p in probes if p.name == kind)


@pytest.fixture(scope="module")
def image_model(onnx_model: Callable[..., Model]) -> Model:
    return onnx_model(
        [("Identity", ["x"], "y", {})], {"x": (("batch", 3, 8, 8), np.float32)}, ["y"]
    )


class TextTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        self.positions = nn.Embedding(LENGTH, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> Any:
        x = self.table(ids.view(-1, ids.shape[-1])) + self.positions(position)
        x = x * mask.unsqueeze(-1)
        return x[torch.arange(x.shape[0]), ids.to(torch.int32).argmax(-1)]


@pytest.fixture(scope="module", params=["fx", "onnx"])
def text_model(request: pytest.FixtureRequest, build: Any) -> Model:
    ids = torch.ones(2, LENGTH, dtype=torch.int64)
    inputs = {"ids": ids, "mask": ids.clone(), "position": torch.zeros_like(ids)}
    return build(request.param, TextTower(), inputs)


def test_kinds_and_sizes_of_an_image_model(image_model: Model) -> None:
    probes = make_probes(image_model)
    assert list(dict.fromkeys(p.name for p in probes)) == KINDS
    for kind in KINDS:
        rows = [len(p.feeds["x"]) for p in probes if p.name == kind]
        assert rows == ([1] * 8 if kind == "batch_1" else [8])
    for probe in probes:
        image_model.check_feeds(probe.feeds)
        assert np.isfinite(probe.feeds["x"]).all()


def test_what_the_kinds_hold(image_model: Model) -> None:
    probes = make_probes(image_model)
    assert first(probes, "normal", "x").std() == pytest.approx(1, abs=0.1)
    means = first(probes, "large_mean", "x").mean((1, 2, 3))
    assert np.abs(np.abs(means) - 100).max() < 1
    assert {-1, 1} == set(np.sign(means))
    assert first(probes, "tiny_variance", "x").std() == pytest.approx(1e-3, rel=0.1)
    constant = first(probes, "constant", "x")
    assert (constant == constant[:, :, :1, :1]).all()
    assert not constant[0].any()
    assert len(np.unique(constant)) == 7 * 3 + 1
    deviations = first(probes, "outlier_channel", "x").std((2, 3))
    assert (np.sort(deviations, 1)[:, 2] > 50).all()
    assert (np.sort(deviations, 1)[:, 1] < 2).all()


def test_the_same_seed_gives_the_same_probes(image_model: Model) -> None:
    once, again, other = (make_probes(image_model, seed) for seed in (3, 3, 4))
    same = [np.array_equal(a.feeds["x"], b.feeds["x"]) for a, b in zip(once, again, strict=True)]
    assert all(same)
    assert not np.array_equal(once[0].feeds["x"], other[0].feeds["x"])
    assert len({p.feeds["x"].tobytes() for p in once}) == len(once)


def test_a_fixed_batch_is_kept(onnx_model: Callable[..., Model]) -> None:
    model = onnx_model([("Identity", ["x"], "y", {})], {"x": ((3, 5), np.float32)}, ["y"])
    probes = make_probes(model)
    assert {p.feeds["x"].shape for p in probes} == {(3, 5)}
    assert "batch_1" not in {p.name for p in probes}
    assert sum(p.name == "normal" for p in probes) == 3


def test_axes_of_one_name_get_one_size_and_others_the_examples(
    onnx_model: Callable[..., Model],
) -> None:
    model = onnx_model(
        [("Mul", ["x", "z"], "y", {})],
        {"x": (("batch", "tokens", 4), np.float32), "z": (("batch", "tokens", 1), np.float32)},
        ["y"],
    )
    normal = next(p for p in make_probes(model) if p.name == "normal")
    assert normal.feeds["x"].shape == (8, 2, 4)
    assert normal.feeds["z"].shape == (8, 2, 1)


def test_token_ids_masks_and_positions(text_model: Model) -> None:
    probes = make_probes(text_model)
    assert list(dict.fromkeys(p.name for p in probes)) == ["normal", "batch_1", "constant"]
    ends = set()
    for probe in probes:
        ids, mask = probe.feeds["ids"], probe.feeds["mask"]
        assert np.array_equal(probe.feeds["position"][-1], np.arange(LENGTH))
        text_model.check_feeds(probe.feeds)
        end = ids.argmax(-1)
        ends |= set(end)
        for row, last, kept in zip(ids, end, mask, strict=True):
            assert row[last] == VOCABULARY - 1
            assert not row[last + 1 :].any()
            assert (row[:last] > 0).all()
            assert (row[:last] < VOCABULARY - 1).all()
            assert np.array_equal(kept, np.arange(LENGTH) <= last)
            if probe.name == "constant":
                assert len(set(row[:last])) <= 1
    assert len(ends) > 5
    assert max(ends) == LENGTH - 1


def test_a_vocabulary_of_one_or_two(onnx_model: Callable[..., Model]) -> None:
    for rows in (1, 2):
        model = onnx_model(
            [("Gather", ["table", "ids"], "y", {})], {"ids": (("batch", 6), np.int64)}, ["y"],
            {"table": np.ones((rows, 3), np.float32)},
        )  # fmt: skip
        ids = make_probes(model)[0].feeds["ids"]
        assert ids.min() >= 0
        assert ids.max() == rows - 1


def test_other_dtypes(onnx_model: Callable[..., Model]) -> None:
    nodes = [("Cast", ["x"], "y", {"to": 1})]
    ints = onnx_model(nodes, {"x": (("batch", 2), np.int32)}, ["y"])
    assert np.array_equal(make_probes(ints)[0].feeds["x"], np.ones((8, 2), np.int32))
    pixels = onnx_model(nodes, {"x": (("batch", 3, 4, 4), np.uint8)}, ["y"])
    assert make_probes(pixels)[0].feeds["x"].max() > 200
    flags = onnx_model(nodes, {"x": (("batch",), np.bool_)}, ["y"])
    assert make_probes(flags)[0].feeds["x"].dtype == np.bool_
    scalar = onnx_model(nodes, {"x": ((), np.float32)}, ["y"])
    assert make_probes(scalar)[0].feeds["x"].shape == ()
    words = onnx_model([("Identity", ["x"], "y", {})], {"x": (("batch",), np.complex64)}, ["y"])
    with pytest.raises(NormswapError, match="complex64 input 'x'"):
        make_probes(words)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_neighbours_are_as_far_as_rounding(build: Any, kind: str) -> None:
    linear = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    model = build(kind, linear, {"x": x})
    neighbours = Neighbours(model)
    feeds = {model.inputs[0].name: x.numpy()}
    (own,) = model.run(feeds).values()
    draws = [neighbours.run(feeds, draw)[0] for draw in range(8)]
    errors = np.array([np.abs(draw - own).max() for draw in draws])
    assert draws[0].dtype == np.float32
    assert (errors > 0).sum() > 4
    assert errors.max() < 2e-6
    assert np.array_equal(draws[1], neighbours.run(feeds, 1)[0])


def test_neighbours_keep_infinities_integers_and_zeros(onnx_model: Callable[..., Model]) -> None:
    inputs = {"x": (("batch", 4), np.float32), "i": (("batch",), np.int64)}
    constants = {"c": np.array([0, -np.inf, np.finfo(np.float32).min, 1], np.float32)}
    nodes: list[Any] = [("Identity", ["i"], "j", {}), ("Min", ["x", "c"], "y", {})]
    model = onnx_model(nodes, inputs, ["j", "y"], constants)
    feeds = {"x": np.full((1, 4), np.inf, np.float32), "i": np.array([5])}
    for draw in range(4):
        j, y = Neighbours(model).run(feeds, draw)
        assert j[0] == 5
        assert y[0, 0] == 0
        assert y[0, 1] == -np.inf
        assert np.isfinite(y[0, 2])
        assert 0 < abs(y[0, 3] - 1) < 3e-7
