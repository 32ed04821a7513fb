"""The outline of models: every norm in its place, and the rest by structure, not by names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normswap import BatchNorm, Model, fold, load, swap
from normswap.report.outline import outline
from normswap.report.outline.items import (
    Fork,
    Item,
    Repeat,
    Step,
    Tower,
    common_path,
    pattern,
    steps,
)
from tests.effort import ALL
from tests.zoo.exports import captured_families, model_as
from tests.zoo.models import BUILDERS, PRE_NORM_BLOCKS

FORMS = ("fx", "torchscript-14", *(["dynamo-18"] if ALL else []))


def kinds(items: Sequence[Item]) -> list[Any]:
    """What is in an outline: a step by its kind (a norm by its role), a fork by its branches."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, Step):
            found.append(item.site.role if item.site else item.kind)
        elif isinstance(item, Fork):
            found.append((item.join, *map(kinds, item.branches)))
        else:
            found.append([len(item.blocks), *kinds(item.blocks[0])])
    return found


def residual(*branch: str) -> tuple[Any, ...]:
    return ("add", [], list(branch))


def swapped(model: Model, image: str) -> Model:
    """With BatchNorms for the LayerNorms of the image tower, and in its FFNs."""
    shape = (24, *model.examples[image].shape[1:])
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    data = {
        name: np.resize(array, (24, *array.shape[1:])) for name, array in model.examples.items()
    }
    return swap(model, BatchNorm(ffn_batchnorm=True), data={**data, image: images}).model


PRE_NORM = [
    PRE_NORM_BLOCKS,
    residual("pre_attention", "attention"),
    residual("pre_mlp", "mlp"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["timm_vit", "spelled_vit", "hf_vit"])
def test_a_vit_in_every_spelling(name: str, form: str) -> None:
    model = model_as(name, form)
    (tower,) = outline(model).towers
    assert tower.name == "image"
    stem = ["input", "patch_embedding", "tokens", "positions"]
    assert kinds(tower.items) == [*stem, PRE_NORM, "final", "pool", "head"]
    assert tower.outputs == model.output_names
    assert not tower.sides


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["open_clip_clip", "hf_clip"])
def test_the_towers_of_a_clip(name: str, form: str) -> None:
    image, text, *both = outline(model_as(name, form)).towers
    assert (image.name, text.name) == ("image", "text")
    stem = ["input", "patch_embedding", "tokens", "positions", "embedding"]
    end = ["projection", "normalise"]
    assert kinds(image.items)[:6] == [*stem, PRE_NORM]
    assert sorted(kinds(image.items)[6:8]) == ["final", "pool"]  # in either order
    assert kinds(image.items)[8:] == end
    stem = ["input", "token_embedding", "positions"]
    assert kinds(text.items) == [*stem, PRE_NORM, "final", "pool", *end]
    if name == "hf_clip":
        (joint,) = both
        ((join, first, second),) = kinds(joint.items)
        assert (joint.name, join, first, second) == ("both", "product", ["link"], ["link"])
    else:
        assert not both


@pytest.mark.parametrize("name", BUILDERS)
def test_sizes_and_names_of_a_block(name: str) -> None:
    for tower in outline(model_as(name, "fx")).towers:
        for repeat in (item for item in tower.items if isinstance(item, Repeat)):
            for block in repeat.blocks:
                found = {step.kind: step for step in steps(block)}
                assert found["attention"].detail.endswith(" heads")
                assert found["mlp"].detail.count(" to ") == 2
                assert common_path(step.name for step in steps(block)).split(".")[-1].isdigit()


@pytest.mark.parametrize("form", ["fx", "torchscript-14"])
def test_swapped_and_folded(form: str) -> None:
    model = swapped(model_as("timm_vit", form), "x")
    (tower,) = outline(model).towers
    (repeat,) = [item for item in tower.items if isinstance(item, Repeat)]
    norms = [step for step in steps(repeat.blocks[0]) if step.site]
    assert [step.site.kind for step in norms if step.site] == ["batch_norm"] * 3
    (mlp,) = [step for step in steps(repeat.blocks[0]) if step.kind == "mlp"]
    assert [part.kind for part in steps(mlp.parts)] == ["linear", "norm", "activation", "linear"]

    folded = outline(fold(model).model)
    assert not folded.sites()
    (tower,) = folded.towers
    block = [PRE_NORM_BLOCKS, residual("attention"), residual("mlp")]
    stem = ["input", "patch_embedding", "tokens", "positions"]
    assert kinds(tower.items) == [*stem, block, "pool", "head"]


def test_the_folded_image_tower_of_a_clip() -> None:
    folded = outline(fold(swapped(model_as("open_clip_clip", "fx"), "image")).model)
    image, text = folded.towers
    assert [PRE_NORM_BLOCKS, residual("attention"), residual("mlp")] in kinds(image.items)
    assert PRE_NORM in kinds(text.items)
    assert {site.tower for site in folded.sites()} == {"text"}


@pytest.mark.parametrize("name", captured_families())
def test_every_norm_is_in_one_place(name: str) -> None:
    model = model_as(name, "fx")
    sites = model.sites
    found = outline(model)
    assert [site.name for site in found.sites()] == [site.name for site in sites]
    assert {tower.name for tower in found.towers} <= {"image", "text", "both"}
    assert any(isinstance(item, Repeat | Fork) for tower in found.towers for item in tower.items)


@pytest.mark.parametrize("form", FORMS)
def test_post_norm_blocks(form: str) -> None:
    model = model_as("hf_bert", form)
    (tower,) = outline(model).towers
    stem = ["input", "token_embedding", "operator", "positions", "embedding"]
    block = [2, residual("attention"), "post_attention", residual("mlp"), "post_mlp"]
    assert kinds(tower.items) == [*stem, block, "pool", "head", "activation"]
    (side,) = tower.sides  # the last hidden state is an output, and the pooler reads it
    assert (side.items, side.outputs) == ((), model.output_names[:1])


def test_norms_of_queries_and_keys_are_parts_of_the_attention() -> None:
    (tower,) = outline(model_as("timm_qk_norm", "fx")).towers
    found = [step for step in steps(tower.items) if step.kind == "attention" and step.parts]
    roles = [[s.site.role for s in steps(step.parts) if s.site] for step in found]
    assert roles == [["query_key", "query_key"]] * 2


class Block(nn.Module):
    """A pre-norm MLP block under names that say nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.LayerNorm(width)
        self.norm = nn.Linear(width, 2 * width)
        self.positions = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.positions(torch.relu(self.norm(self.attention(x))))


def tower_of(module: nn.Module, *shape: int) -> Tower:
    found = outline(load(module.eval(), example_inputs=(torch.randn(*shape),)))
    (tower,) = found.towers
    return tower


def test_stages_of_blocks_each_collapse() -> None:
    stages = nn.Sequential(
        *(Block(8) for _ in range(3)), nn.Linear(8, 4), *(Block(4) for _ in range(2)), Block(4)
    )
    tower = tower_of(stages, 2, 5, 8)
    assert tower.name == ""
    block = residual("pre_mlp", "mlp")
    assert kinds(tower.items) == ["input", [3, block], "linear", [3, block]]


class Parallel(nn.Module):
    """x + f(norm(x)) + g(norm(x)), and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.f, self.g, self.gate = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        x = x + self.f(normed) + self.g(normed)
        return x * torch.sigmoid(self.gate(x))


def test_parallel_branches_and_gates() -> None:
    _, (join, skip, (_, branches)), gate = kinds(tower_of(Parallel(), 2, 5, 8).items)
    assert (join, skip, branches) == ("add", [], ("add", ["linear"], ["linear"]))
    assert gate == ("multiply", [], ["linear", "activation"])


class Tangled(nn.Module):
    """Early values are read again at the end, so that nothing but the ends is passed by all."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        return torch.cat(seen, dim=-1)


def test_blocks_are_seen_behind_connections_that_jump_over_them() -> None:
    tower = tower_of(Tangled(), 2, 5, 8)
    assert len([s for s in steps(tower.items) if s.kind == "mlp"]) == 4
    assert len([s for s in steps(tower.items) if s.site]) == 4


def test_hidden_states_as_outputs_leave_the_blocks_as_they_are() -> None:
    class Outputs(Tangled):
        def forward(self, x: torch.Tensor) -> Any:
            seen = []
            for block in self.blocks:
                x = block(x)
                seen.append(x)
            return tuple(seen)

    tower = tower_of(Outputs(), 2, 5, 8)
    assert kinds(tower.items) == ["input", [4, residual("pre_mlp", "mlp")]]
    assert len(tower.sides) == 3
    assert not any(side.items for side in tower.sides)


@pytest.mark.parametrize(
    ("paths", "common", "glob"),
    [
        (["a.0.n", "a.1.n"], "a", "a.*.n"),
        (["a.b", "a.b"], "a.b", "a.b"),
        (["a.b", "c"], "", "a.b ..."),
        (["", ""], "", ""),
        ([], "", ""),
        (["ab.c", "a.c"], "", "*.c"),
    ],
)
def test_names(paths: list[str], common: str, glob: str) -> None:
    assert common_path(paths) == common
    assert pattern(paths) == glob
