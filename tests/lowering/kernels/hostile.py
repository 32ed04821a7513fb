"""Inputs on which norms lose accuracy or break."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _normal(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _outliers(rows: int, columns: int) -> Tensor:
    x = _normal(rows, columns)
    x[:, :: max(1, columns // 3)] *= 300
    return x


INPUTS: dict[str, Callable[[int, int], Tensor]] = {
    "unit": _normal,
    "mean of 1e4": lambda rows, columns: _normal(rows, columns) + 1e4,
    "tiny variance": lambda rows, columns: _normal(rows, columns) * 1e-4 + 1,
    "smaller than epsilon": lambda rows, columns: _normal(rows, columns) * 1e-6,
    "outlier channels": _outliers,
    "constant rows": lambda rows, columns: torch.full((rows, columns), 17.3).double(),
    "the largest of float16": lambda rows, columns: _normal(rows, columns).sign() * 60000,
    "the smallest of float16": lambda rows, columns: _normal(rows, columns) * 6e-8,
}
