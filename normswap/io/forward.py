"""Calling models that return a mapping, and making them return a tuple of some of it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from normswap.io.source import evaluating


def tensor_fields(model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The tensors among what ``model``'s class returns for ``inputs``, in its order."""
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
