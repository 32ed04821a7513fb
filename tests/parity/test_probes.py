"""Probes fit the inputs that they are drawn for and hold what their kind says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normswap.errors import NormswapError
from normswap.io.preprocessing import Preprocessing
from normswap.model import Model
from normswap.parity.probes import EXTREMES, Probe, make_probes

KINDS = [
    "normal", "batch_1", "large_mean", "tiny_variance", "constant", "outlier_channel", "batch_3",
    "large_values", "subnormal",
]  # fmt: skip
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


def test_many_axes_are_not_all_longer_at_once(onnx_model: Callable[..., Model]) -> None:
    """Nine axes at twice their size are 512 times as many elements."""
    sizes = tuple("abcdefghi")
    model = onnx_model([("Identity", ["x"], "y", {})], {"x": ((*sizes, 8), np.float32)}, ["y"])
    made = {probe.name: probe.feeds["x"].size for probe in make_probes(model)}
    assert "shorter" in made
    assert max(made.values()) <= 1 << 26


def test_kinds_and_sizes_of_an_image_model(image_model: Model) -> None:
    probes = make_probes(image_model)
    assert list(dict.fromkeys(p.name for p in probes)) == KINDS
    for kind in KINDS:
        rows = [len(p.feeds["x"]) for p in probes if p.name == kind]
        assert rows == {"batch_1": [1] * 8, "batch_3": [3] * 3}.get(kind, [8])
    for probe in probes:
        image_model.check_feeds(probe.feeds)
        assert np.isfinite(probe.feeds["x"]).all()


def test_quick_ones_are_of_every_kind_in_fewer_rows(image_model: Model) -> None:
    probes = make_probes(image_model, effort="quick")
    assert list(dict.fromkeys(p.name for p in probes)) == KINDS
    for kind in KINDS:
        rows = [len(p.feeds["x"]) for p in probes if p.name == kind]
        assert rows == {"batch_1": [1] * 2, "batch_3": [3]}.get(kind, [8])


def test_quick_ones_of_a_costly_model_are_two_rows(onnx_model: Callable[..., Model]) -> None:
    """2048 places by 1024 channels by 1024 are two billion multiplications."""
    model = onnx_model(
        [("MatMul", ["x", "w"], "h", {}), ("Relu", ["h"], "y", {})],
        {"x": (("batch", 2048, 1024), np.float32)},
        ["y"],
        {"w": np.ones((1024, 1024), np.float32)},
    )
    sizes = {p.name: len(p.feeds["x"]) for p in make_probes(model, effort="quick")}
    assert set(sizes) == {*KINDS, "huge_mean"}
    assert {n for k, n in sizes.items() if k not in ("batch_1", "batch_3")} == {2}
    assert (sizes["batch_1"], sizes["batch_3"]) == (1, 3)


def test_few_rows_end_elsewhere_in_other_kinds(
    text_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normswap.parity.probes._QUICK", 0)
    ends = [p.feeds["ids"].argmax(-1) for p in make_probes(text_model, effort="quick")]
    assert [len(end) for end in ends] == [2, 1, 1, 2, 3]
    assert len(set(np.concatenate(ends))) == 5


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
    assert not {"batch_1", "batch_3"} & {p.name for p in probes}
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
    kinds = list(dict.fromkeys(p.name for p in probes))
    assert kinds == ["normal", "batch_1", "constant", "batch_3"]
    ends: dict[str, set[int]] = {kind: set() for kind in kinds}
    for probe in probes:
        ids, mask = probe.feeds["ids"], probe.feeds["mask"]
        assert np.array_equal(probe.feeds["position"][-1], np.arange(LENGTH))
        text_model.check_feeds(probe.feeds)
        end = ids.argmax(-1)
        ends[probe.name] |= set(end.tolist())
        for row, last, kept in zip(ids, end, mask, strict=True):
            assert row[last] == VOCABULARY - 1
            assert not row[last + 1 :].any()
            assert (row[:last] > 0).all()
            assert (row[:last] < VOCABULARY - 1).all()
            assert np.array_equal(kept, np.arange(LENGTH) <= last)
            if probe.name == "constant":
                assert len(set(row[:last])) <= 1
    for found in ends.values():
        assert {0, LENGTH - 1} < found
        assert len(found) == 8


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_extremes_of_the_dtype(onnx_model: Callable[..., Model], dtype: Any) -> None:
    nodes = [("Identity", ["x"], "y", {})]
    probes = make_probes(onnx_model(nodes, {"x": (("batch", 3, 16, 16), dtype)}, ["y"]))
    large, subnormal = (first(probes, kind, "x") for kind in EXTREMES)
    most = np.abs(large).max((1, 2, 3))
    assert (np.diff(most) > 0).all()
    assert most[0] < 32
    assert np.finfo(np.float16).max / 5 < most[-1] < np.finfo(dtype).max / 3
    if dtype != np.float16:  # where nothing is left of the range of squares
        assert 1e3 * float(most[-1]) ** 2 < np.finfo(dtype).max
    assert 0 < np.abs(subnormal).max() < np.finfo(dtype).smallest_normal
    assert 0.4 < (subnormal == 0).mean() < 0.6


def test_means_of_1e4_are_for_inputs_that_norms_may_read(onnx_model: Callable[..., Model]) -> None:
    def of(shape: tuple[int | str, ...], dtype: Any) -> list[Probe]:
        model = onnx_model([("Identity", ["x"], "y", {})], {"x": (shape, dtype)}, ["y"])
        return [probe for probe in make_probes(model) if probe.name == "huge_mean"]

    (probe,) = of(("batch", 5, 64), np.float32)
    means = probe.feeds["x"].mean((1, 2))
    assert np.abs(np.abs(means) - 1e4).max() < 1
    assert 0.9 < probe.feeds["x"].std(-1).mean() < 1.1
    assert not of(("batch", 3, 8, 8), np.float32)
    assert not of(("batch", 5, 64), np.float16)  # where 1e4 and 1e4 + 1 are one number


def test_pictures_are_normalised_as_the_model_wants(image_model: Model) -> None:
    means, deviations = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    known = replace(image_model, preprocessing=Preprocessing("RGB", means, deviations))
    images = first(make_probes(known), "pictures", "x").astype(np.float64)
    scales, offsets = (np.reshape(v, (3, 1, 1)) for v in (deviations, means))
    pixels = (images * scales + offsets) * 255
    np.testing.assert_allclose(pixels, pixels.round(), atol=1e-3)
    assert pixels.min() == pytest.approx(0, abs=1e-3)
    assert pixels.max() == pytest.approx(255)
    steps = np.abs(np.diff(pixels, axis=-1)).mean((1, 2, 3))
    assert steps[1::2].max() < steps[::2].min()  # smooth ones between noise
    grey = replace(image_model, preprocessing=Preprocessing("L", (0.5,), (0.5,)))
    assert "pictures" not in {probe.name for probe in make_probes(grey)}


def test_lengths_where_they_are_dynamic(onnx_model: Callable[..., Model]) -> None:
    tokens = ("batch", "tokens")
    inputs = {
        "ids": (tokens, np.int64),
        "mask": (tokens, np.int64),
        "x": ((*tokens, 3), np.float32),
    }
    model = onnx_model([("Gather", ["table", "ids"], "y", {})], inputs, ["y"],
                       {"table": np.ones((9, 3), np.float32)})  # fmt: skip
    example = {s.name: np.ones([2, 12, 3][: len(s.shape)], s.dtype) for s in model.inputs}
    probes = make_probes(replace(model, examples=example))
    sizes = {p.name: p.feeds["mask"].shape for p in probes}
    assert sizes["normal"] == (8, 12)
    assert sizes["shorter"] == (8, 6)
    assert sizes["longer"] == (3, 18)
    assert all(p.feeds["x"].shape[:2] == p.feeds["ids"].shape for p in probes)
    images = onnx_model([("Identity", ["x"], "y", {})], {"x": (("n", 3, "h", "w"), np.float32)},
                        ["y"])  # fmt: skip
    images = replace(images, examples={"x": np.ones((2, 3, 16, 24), np.float32)})
    shapes = {p.name: p.feeds["x"].shape for p in make_probes(images)}
    assert shapes["shorter"] == (8, 3, 8, 12)
    assert shapes["longer"] == (3, 3, 32, 48)
