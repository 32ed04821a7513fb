"""Memory for large matrices."""

from __future__ import annotations

import numpy as np
import torch


def empty(*shape: int) -> torch.Tensor:
    """A float64 tensor. Its memory is numpy's, which asks the system for huge pages: touching it
    for the first time takes half as long."""
    return torch.from_numpy(np.empty(shape))
