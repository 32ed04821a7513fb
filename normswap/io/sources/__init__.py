"""Where torch models come from: each source gives a ``Source``, which ``capture`` captures.

huggingface.py, timm.py and open_clip.py build models by name, ``capture.module_source`` takes the
user's own module.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normswap.io.preprocessing import Preprocessing, Unsupported

IMAGES, TEXTS = 2, 3
"""Example batch sizes: two sizes, so that capturing does not take them for the same one."""


@dataclass(frozen=True)
class Source:
    """A module and how to call it.

    ``args``, ``kwargs``: example inputs, batched. ``dynamic_axes``: by input name, the name of
    each axis whose size may vary; axes of one name vary together. ``longest``: the largest size of
    some of these names. ``classes``: what a classifier's scores are of, in order, if that is known.
    ``output_names``: in the order
    of the outputs, or empty for the names that capturing gives them. ``preprocessing``: how images
    are prepared, or why that cannot be said, if anything is known of it.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_axes: dict[str, dict[int, str]]
    output_names: tuple[str, ...] = ()
    preprocessing: Preprocessing | Unsupported | None = None
    longest: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def example_images(channels: int, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Standard normal images, the same every time: ``dtype`` [2, channels, height, width]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, channels, height, width, generator=generator).to(dtype)


def example_texts(
    length: int, words: range, start: int | None, end: int | None, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of texts of several lengths and their attention mask, both int64 [3, length].

    Each text is ``start``, ids from ``words``, ``end``, then ``padding``; the first fills the
    length. ``start`` and ``end`` are left out if None.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(words.start, words.stop, (TEXTS, length), generator=generator)
    mask = torch.ones(TEXTS, length, dtype=torch.int64)
    if start is not None:
        tokens[:, 0] = start
    for row in range(TEXTS):
        last = max(length - 1 - row * math.ceil(length / TEXTS), min(1, length - 1))
        if end is not None:
            tokens[row, last] = end
        tokens[row, last + 1 :] = padding
        mask[row, last + 1 :] = 0
    return tokens, mask


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each submodule gets its own mode back."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode


def tensor_fields(model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The tensors in the mapping that the forward of ``model``'s class returns, in its order."""
    with evaluating(model):
        outputs = type(model).forward(model, **inputs, **options)
    items = outputs.items() if isinstance(outputs, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, torch.Tensor)}


def return_only(
    model: nn.Module, inputs: Sequence[str], outputs: Sequence[str], **options: Any
) -> None:
    """Gives this one model a forward that takes ``inputs`` and returns a tuple of ``outputs``.

    A wrapper module would put a prefix before every parameter's name.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        given = dict(zip(inputs, args, strict=False)) | kwargs
        returned = type(self).forward(self, **given, **options)
        return tuple(returned[name] for name in outputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *inputs)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    # A bound method, because copying the model then binds it to the copy.
    model.forward = types.MethodType(forward, model)
