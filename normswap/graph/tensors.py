"""NumPy arrays from torch tensors and back, bfloat16 included (through ml_dtypes)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from normswap.graph.graph import BFLOAT16


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values as an array of the same dtype, sharing memory where it can."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The array's values as a CPU tensor of the same dtype, sharing memory where it can."""
    array = np.asarray(array, order="C")
    if not array.flags.writeable:
        array = array.copy()  # torch has no read-only tensors
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def has_own_memory(array: np.ndarray) -> bool:
    """Whether the memory that the array keeps alive is no larger than the array."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, torch.Tensor):
        return base.untyped_storage().nbytes() <= array.nbytes
    return isinstance(base, np.ndarray) and base.nbytes <= array.nbytes


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The numpy dtype (ml_dtypes' for bfloat16) of a torch dtype."""
    return to_numpy(torch.empty(0, dtype=dtype)).dtype
