"""Class tokens differ from patches, and rows know their channel, position and sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

import normswap as ns
from normswap.fit.sweep import HELD_OUT, Example
from normswap.fit.tokens import TOKENS, Layout, Rows, groups, rows, special_positions
from tests.zoo.exports import FX, model_as, zoo_model


def _special(name: str, form: str, count: int = 4, tower: str = "image") -> np.ndarray | None:
    model, zoo = model_as(name, form), zoo_model(name)
    random = np.random.default_rng(0)
    shape = (count, *zoo.inputs[zoo.image].shape[1:])
    batch = {zoo.image: random.standard_normal(shape).astype(np.float32)}
    sites = [site for site in ns.locate(model) if site.tower == tower]
    return special_positions(model.graph, sites, [batch])


@pytest.mark.parametrize(
    ("name", "form", "special", "tokens"),
    [
        ("timm_vit", FX, 1, 17),
        ("hf_vit", "torchscript-14", 1, 17),
        ("timm_dinov2_reg", FX, 5, 21),
        ("timm_dinov2_reg", "torchscript-14", 5, 21),
        ("open_clip_clip", FX, 1, 17),
    ],
)
def test_class_and_register_tokens_come_first(
    name: str, form: str, special: int, tokens: int
) -> None:
    found = _special(name, form)
    assert found is not None
    np.testing.assert_array_equal(found, np.arange(tokens) < special)


@pytest.mark.parametrize("name", ["timm_swin", "timm_siglip"])
def test_none_where_all_tokens_are_patches(name: str) -> None:
    assert _special(name, FX) is None


def test_one_image_tells_nothing() -> None:
    assert _special("timm_vit", FX, count=1) is None


def test_equal_images_tell_nothing() -> None:
    model = model_as("timm_vit", FX)
    batch = {"x": np.ones((4, 3, 32, 32), np.float32)}
    assert special_positions(model.graph, ns.locate(model), [batch]) is None


def test_groups() -> None:
    special = np.array([True, True, False, False])
    assert TOKENS == ("all", "class", "position")
    np.testing.assert_array_equal(groups("all", special, 4), [0, 0, 0, 0])
    np.testing.assert_array_equal(groups("class", special, 4), [1, 1, 0, 0])
    np.testing.assert_array_equal(groups("position", special, 4), [0, 1, 2, 3])


def test_class_tokens_are_no_group_where_the_value_has_none() -> None:
    """A norm on fewer or more tokens (behind pooling, say) is fitted as one."""
    special = np.array([True, False, False])
    np.testing.assert_array_equal(groups("class", special, 1), [0])
    np.testing.assert_array_equal(groups("class", None, 3), [0, 0, 0])


_SAMPLES, _CHANNELS = 7, 4
_LAYOUTS: dict[str, tuple[tuple[int, ...], int, int]] = {
    # shape, where S stands for the samples and C for the channels; their axes
    "[B,T,C]": ((_SAMPLES, 3, _CHANNELS), 0, 2),
    "[B,C]": ((_SAMPLES, _CHANNELS), 0, 1),
    "[B,C,H,W]": ((_SAMPLES, _CHANNELS, 2, 3), 0, 1),
    "[B,H,W,C]": ((_SAMPLES, 2, 3, _CHANNELS), 0, 3),
    "[T,B,C]": ((3, _SAMPLES, _CHANNELS), 1, 2),
    "[C,B]": ((_CHANNELS, _SAMPLES), 1, 0),
}


class _Readings(list):  # type: ignore[type-arg]
    """Arrays per batch, as a stop of the sweep gets them."""

    def __init__(self, batches: Sequence[Sequence[np.ndarray]], counts: Sequence[int]) -> None:
        super().__init__(batches)
        ends = np.cumsum(counts)
        self.examples = [Example(None, 0) for _ in batches[0]]
        self.samples = [np.arange(e - c, e) for e, c in zip(ends, counts, strict=True)]


def _labelled(shape: tuple[int, ...], samples: int, channels: int, first: int = 0) -> np.ndarray:
    """Elements that tell where they stand: 10000 sample + 100 position + channel."""
    others = [axis for axis in range(len(shape)) if axis not in (samples, channels)]
    position = np.zeros(shape, int)
    grid = np.indices(shape)
    for axis in others:
        position = position * shape[axis] + grid[axis]
    return 10000 * (grid[samples] + first) + 100 * position + grid[channels]


def _one(part: Sequence[Rows]) -> Rows:
    (only,) = part
    return only


@pytest.mark.parametrize("name", _LAYOUTS)
def test_rows_of_every_layout(name: str) -> None:
    shape, samples, channels = _LAYOUTS[name]
    layout = Layout.of(shape, channels, _SAMPLES)
    assert layout == Layout(samples, channels)
    array = _labelled(shape, samples, channels)
    table = layout.rows(array)
    positions = math.prod(shape) // (_SAMPLES * _CHANNELS)
    assert table.shape == (_SAMPLES, positions, _CHANNELS)
    expected = _labelled((_SAMPLES, positions, _CHANNELS), 0, 2)
    np.testing.assert_array_equal(table, expected)

    part = _one(list(rows(_Readings([[array]], [_SAMPLES]), [channels])))
    np.testing.assert_array_equal(part.arrays[0], expected.reshape(-1, _CHANNELS))
    np.testing.assert_array_equal(part.position, part.arrays[0][:, 0] // 100 % 100)


@pytest.mark.parametrize("name", _LAYOUTS)
def test_constants_broadcast_to_where_their_positions_are(name: str) -> None:
    shape, samples, channels = _LAYOUTS[name]
    layout = Layout(samples, channels)
    positions = math.prod(shape) // (_SAMPLES * _CHANNELS)
    table = 100 * np.arange(positions)[:, None] + np.arange(_CHANNELS)
    constant = layout.constant(table, shape)
    expected = _labelled(shape, samples, channels) % 10000
    np.testing.assert_array_equal(np.broadcast_to(constant, shape), expected)
    longer = tuple(2 * s if axis == samples else s for axis, s in enumerate(shape))
    np.broadcast_to(constant, longer)  # whatever the number of samples


def test_windows_belong_to_the_sample_that_they_are_cut_from() -> None:
    windows = 5
    array = _labelled((_SAMPLES * windows, 3, _CHANNELS), 0, 2)
    part = _one(list(rows(_Readings([[array]], [_SAMPLES]), [2])))
    sample = part.arrays[0][:, 0] // 10000 // windows
    np.testing.assert_array_equal(part.held_out, sample % HELD_OUT == HELD_OUT - 1)
    np.testing.assert_array_equal(part.position, part.arrays[0][:, 0] // 100 % 100)


def test_several_arrays_are_read_side_by_side() -> None:
    first = _labelled((_SAMPLES, 2, 3, _CHANNELS), 0, 3)
    second = np.moveaxis(first, -1, 1)  # the same values, channels first
    part = _one(list(rows(_Readings([[first, second]], [_SAMPLES]), [3, 1])))
    np.testing.assert_array_equal(*part.arrays)
    _, chosen = part.parts(*part.arrays)
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert len(chosen[0]) == part.held_out.sum()


@pytest.mark.parametrize("name", _LAYOUTS)
def test_whole_samples_are_held_out_the_same_in_any_batches(name: str) -> None:
    shape, samples, channels = _LAYOUTS[name]
    counts, start, batches = [2, 7, 4], 0, []
    for count in counts:
        sized = tuple(count if axis == samples else size for axis, size in enumerate(shape))
        batches.append([_labelled(sized, samples, channels, start)])
        start += count
    held = set()
    for part in rows(_Readings(batches, counts), [channels]):
        sample = part.arrays[0][:, 0] // 10000
        np.testing.assert_array_equal(part.held_out, sample % HELD_OUT == HELD_OUT - 1)
        held.update(sample[part.held_out])
    assert held == {4, 9}


@pytest.mark.parametrize("sequence_first", [False, True])
def test_a_mask_picks_tokens_of_its_own_sample(sequence_first: bool) -> None:
    shape = (3, _SAMPLES, _CHANNELS) if sequence_first else (_SAMPLES, 3, _CHANNELS)
    array = _labelled(shape, int(sequence_first), 2)
    mask = np.random.default_rng(0).random((_SAMPLES, 3)) < 0.5
    part = _one(list(rows(_Readings([[array]], [_SAMPLES]), [2], [mask])))
    sample, position = np.nonzero(mask)
    np.testing.assert_array_equal(part.arrays[0][:, 0], 10000 * sample + 100 * position)
    np.testing.assert_array_equal(part.position, position)
    np.testing.assert_array_equal(part.held_out, sample % HELD_OUT == HELD_OUT - 1)


def test_a_mask_of_tokens_says_nothing_about_one_row_per_sample() -> None:
    """Behind the choice of [EOS] all that is left are rows that count."""
    array = _labelled((_SAMPLES, _CHANNELS), 0, 1)
    mask = np.zeros((_SAMPLES, 3), bool)
    part = _one(list(rows(_Readings([[array]], [_SAMPLES]), [1], [mask])))
    assert len(part.arrays[0]) == _SAMPLES


def test_as_many_positions_as_samples_do_not_mislead() -> None:
    shape = (5, 5, _CHANNELS)  # positions first, then samples
    assert Layout.of(shape, 2, 5, Example((5, 2, _CHANNELS), 2)) == Layout(1, 2)
    assert Layout.of(shape, 2, 5, Example((2, 5, _CHANNELS), 2)) == Layout(0, 2)
