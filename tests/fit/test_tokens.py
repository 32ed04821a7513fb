"""Class and register tokens are told from patches by what stands there for all samples."""

from __future__ import annotations

import numpy as np
import pytest

import normswap as ns
from normswap.fit.tokens import TOKENS, groups, special_positions
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
