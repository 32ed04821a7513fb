"""State dicts: read from files without running code from them, and put into modules."""

from __future__ import annotations

import argparse
import pickletools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import nn

from normswap.errors import NormswapError, first_line, plain
from normswap.io.bounds import check_regular
from normswap.io.pt2 import Archive, BadArchive, open_archive

# As timm unwraps them: averaged weights come first.
_WRAPPINGS: Final = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
# Of torch.compile, of DistributedDataParallel, and of Lightning's modules.
_PREFIXES: Final = ("_orig_mod.", "module.", "model.")
_SAVE_ALONE = "save the weights alone: torch.save(model.state_dict(), FILE)"
_COUNTER = "num_batches_tracked"  # torch counts it on where an old state dict lacks it

Weights = Mapping[str, torch.Tensor]


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The weights by name in a ``.safetensors`` file, or in one that ``torch.save`` wrote.

    Nothing in it is run, and no tensor is larger than the file. What training loops put around the
    weights is taken off: further entries, an averaged copy's name, the prefixes of wrappers.
    Raises NormswapError naming a file that is missing, damaged, or holds other things.
    """
    if not path.is_file():
        problem = "is no file" if path.exists() else "there is no such file"
        raise NormswapError(f"{path}: {problem}; name a file of weights")
    check_regular(path)
    held = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _unpickled(path)
    weights = _unwrapped(path, held)
    size = path.stat().st_size
    for name, tensor in weights.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.is_quantized or tensor.numel() * tensor.element_size() > size:
            raise NormswapError(
                f"{path}: its entry '{plain(name)}' is no plain tensor that is in the file; "
                f"{_SAVE_ALONE}"
            )
    return _without_prefixes(weights)


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise NormswapError(f"{path}: is damaged ({first_line(error)}); copy it again") from error


def _unpickled(path: Path) -> Any:
    """What ``torch.save`` put into the file, as far as it is tensors, numbers and texts."""
    if _is_torchscript(path):
        raise NormswapError(
            f"{path}: is a TorchScript program, which normswap does not load; export it to ONNX, "
            f"or {_SAVE_ALONE}"
        )
    try:
        archive, _ = open_archive(path)
        _check_archive(path, archive)
    except BadArchive as error:
        raise NormswapError(
            f"{path}: {error}; if torch before 1.6 wrote it, load it there and save it with a newer"
        ) from error
    # timm's training script keeps its options beside the weights; the class does nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged pickle leads to any
            raise NormswapError(f"{path}: {_refusal(path, error)}; {_SAVE_ALONE}") from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # zipfile raises whatever a damaged directory leads to
        return False


def _check_archive(path: Path, archive: Archive) -> None:
    for name in archive.names:
        archive.verify(name)
    try:
        arguments = [
            str(argument) for _, argument, _ in pickletools.genops(archive.read("data.pkl"))
        ]
    except (ValueError, OverflowError, MemoryError) as error:
        raise BadArchive(f"is damaged ({first_line(error)})") from error
    # The one thing that weights_only makes, and fills, at any size that a pickle asks for.
    if any(argument.endswith(" bytearray") for argument in arguments):
        raise NormswapError(
            f"{path}: holds a bytearray, and only tensors are loaded; {_SAVE_ALONE}"
        )


def _refusal(path: Path, error: Exception) -> str:
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # as above
        classes = []
    if not classes:
        return f"is damaged ({plain(first_line(error))})"
    return f"holds a {plain(min(classes))}, and nothing but tensors is loaded"


def _unwrapped(path: Path, held: Any) -> dict[str, torch.Tensor]:
    if isinstance(held, Mapping):
        inner = (held.get(name) for name in _WRAPPINGS)
        held = next((item for item in inner if isinstance(item, Mapping)), held)
    if not isinstance(held, Mapping) or not held:
        raise NormswapError(f"{path}: holds no weights by name; {_SAVE_ALONE}")
    if others := [key for key, value in held.items() if not isinstance(value, torch.Tensor)]:
        raise NormswapError(
            f"{path}: its entry '{plain(others[0])}' is no tensor, and none of its entries is "
            f"called {', '.join(_WRAPPINGS)}; {_SAVE_ALONE}"
        )
    return {str(key): value for key, value in held.items()}


def _without_prefixes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def fill(
    module: nn.Module,
    weights: Weights,
    path: Path,
    architecture: str,
    advise: Callable[[Sequence[str]], str],
) -> None:
    """Puts the ``weights`` of the file at ``path`` into ``module``, in its own dtypes.

    ``architecture``: what messages call the module. ``advise``: the name under which the weights
    would fit, given the module's names of those that do not, or ''.
    Raises NormswapError for weights that are missing, have no place or another shape.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in weights and not k.endswith(_COUNTER)]
    homeless = [key for key in weights if key not in own]
    wrong = [key for key in own if key in weights and not _fits(weights[key], own[key])]
    if bad := wrong or missing or homeless:
        first = plain(bad[0])
        if wrong:
            given, wanted = _described(weights[bad[0]]), _described(own[bad[0]])
            problem = f"{len(bad)} of its weights do not fit {architecture}, first '{first}': "
            problem += f"{given}, not {wanted}"
        elif missing:
            problem = f"{len(bad)} of the {len(own)} weights of {architecture} are missing in it, "
            problem += f"first '{first}'"
        else:
            problem = f"{len(bad)} of its weights have no place in {architecture}, first '{first}'"
        fitting = advise([*wrong, *missing, *homeless])
        advice = f"try {fitting}" if fitting else "name the architecture that it was saved from"
        raise NormswapError(f"{path}: {problem}; {advice}")
    module.load_state_dict(weights, strict=False)


def _fits(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    return given.shape == wanted.shape and (
        given.is_floating_point() == wanted.is_floating_point()
        and given.is_complex() == wanted.is_complex()
    )


def _described(tensor: torch.Tensor) -> str:
    sizes = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{str(tensor.dtype).removeprefix('torch.')} {sizes}"
