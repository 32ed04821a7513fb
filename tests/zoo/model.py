"""``ZooModel``: a module with all that tests need to run, export and judge it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from tests.zoo.truth import RoleTable, TrueNorm, observe


@dataclass
class ZooModel:
    """A module with example inputs and outputs' names.

    ``role_table``: the roles of its norms, by hand. ``image``: the name of its image input, ''
    if it has none. ``text``: globs on the module paths of its text tower.
    """

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    role_table: RoleTable
    image: str = ""
    text: tuple[str, ...] = ()

    @cached_property
    def norms(self) -> tuple[TrueNorm, ...]:
        """The norms that run, in order; only asked for once ``build`` has settled the weights."""
        return observe(self.module, self.inputs, self.role_table, self.text)

    @property
    def image_sites(self) -> int:
        return Counter(norm.tower for norm in self.norms)["image"]

    @property
    def text_sites(self) -> int:
        return Counter(norm.tower for norm in self.norms)["text"]

    @property
    def roles(self) -> dict[str, str]:
        """The role of every norm by the name of its site."""
        return {norm.site_name: norm.role for norm in self.norms}


Builder = Callable[[], ZooModel]


def images(channels: int, size: int) -> torch.Tensor:
    return torch.randn(2, channels, size, size)


def token_ids(count: int, length: int, vocabulary: int) -> torch.Tensor:
    """Texts of several lengths: words, the largest id as [EOS], then zeros."""
    ids = torch.randint(1, vocabulary - 2, (count, length))
    for row in range(count):
        ids[row, length - 2 - row :] = 0
        ids[row, length - 2 - row] = vocabulary - 1
    return ids
