"""What errors suggest."""

from __future__ import annotations

import pytest

from normswap.errors import closest

NAMES = ["vit_tiny_patch16_224", "vitamin_base_224", "vit_base_patch16_224", "resnet50", "blocks.0"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tinny", ["vit_tiny_patch16_224"]),
        ("vit_tiny_patch16_225", ["vit_tiny_patch16_224", "vit_base_patch16_224"]),
        ("VIT_BASE_PATCH16_224", ["vit_base_patch16_224", "vit_tiny_patch16_224"]),
        ("resent50", ["resnet50"]),
        ("blokcs.0", ["blocks.0"]),
        ("block.0", ["blocks.0"]),
        ("zzzz", []),
        ("", []),
    ],
)
def test_closest_names(name: str, expected: list[str]) -> None:
    assert closest(name, NAMES) == expected
