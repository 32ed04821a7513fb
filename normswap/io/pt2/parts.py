"""The tensors of a .pt2: raw parts mapped from the file, pickled parts read as tensors only."""

from __future__ import annotations

import io
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch._export.serde.serialize import deserialize_scalar_type

from normswap.errors import NormswapError
from normswap.io.archive import Archive, BadArchive, open_bytes
from normswap.io.pt2.names import check_path

TRUST = "Pass --trust if you know where the file comes from"
_PLAIN = (torch.Tensor, str, int, float, bool, complex, type(None), torch.dtype)
_STRIDED = 7


def refuse(path: Path, part: str, what: str = "") -> NoReturn:
    """Raises NormswapError: ``part`` could run code, by what it holds."""
    named = f" ({what})" if what else ""
    raise NormswapError(
        f"{path}: its part {part} holds something other than tensors{named}; "
        f"it was not loaded. {TRUST}"
    )


@dataclass(frozen=True)
class Parts:
    """The parts of the program ``model`` in the archive at ``path``, mapped at ``mapping``.

    Every method raises BadArchive for a missing or damaged part, NormswapError for a refused one,
    Unsafe for a name that torch would turn into code.
    """

    path: Path
    archive: Archive
    mapping: mmap.mmap
    model: str

    def document(self, part: str) -> Any:
        """The JSON in ``part``."""
        try:
            return json.loads(self.archive.read(part))
        except (ValueError, RecursionError) as error:
            raise BadArchive(f"is damaged: its part {part} is no JSON") from error

    def tensors(self, kind: str) -> dict[str, torch.Tensor]:
        """The 'weights' or 'constants' by dotted path; they write to a private copy."""
        folder = f"data/{kind}"
        old = f"{folder}/{self.model}.pt"
        if old in self.archive:
            return self._pickled_tensors(old)
        config = self.document(f"{folder}/{self.model}_{kind}_config.json")["config"]
        tensors = {}
        for name, meta in config.items():
            check_path(name)
            tensors[name] = self._tensor(f"{folder}/{meta['path_name']}", meta)
        return tensors

    def sample_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The example inputs that the program was captured with: (args, kwargs)."""
        part = f"data/sample_inputs/{self.model}.pt"
        if part not in self.archive or self.archive.span(part)[1] == 0:
            return None
        inputs = self._unpickle(part)
        if not isinstance(inputs, tuple) or len(inputs) != 2 or not isinstance(inputs[1], dict):
            refuse(self.path, part)
        return inputs

    def _tensor(self, part: str, meta: Any) -> torch.Tensor:
        if not meta["use_pickle"]:
            tensor = self._mapped(part, meta["tensor_meta"])
        else:
            # Also custom TorchScript and opaque objects, which no weights-only pickle holds.
            tensor = self._unpickle(part)
            if not isinstance(tensor, torch.Tensor):
                refuse(self.path, part)
        if not meta["is_param"]:
            return tensor
        return torch.nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)

    def _mapped(self, part: str, meta: Any) -> torch.Tensor:
        dtype = deserialize_scalar_type(meta["dtype"])
        sizes = [size["as_int"] for size in meta["sizes"]]
        strides = [stride["as_int"] for stride in meta["strides"]]
        first = meta["storage_offset"]["as_int"]
        offset, length = self.archive.span(part)
        whole = all(type(n) is int and n >= 0 for n in (*sizes, *strides, first))
        if not whole or len(sizes) != len(strides) or meta["layout"] != _STRIDED:
            raise BadArchive(f"is damaged: the layout of its part {part} makes no sense")
        if 0 in sizes:
            return torch.empty(sizes, dtype=dtype)
        last = first + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if (last + 1) * dtype.itemsize > length or length % dtype.itemsize:
            raise BadArchive(f"is damaged: its part {part} is too short for its tensor")
        count = length // dtype.itemsize
        flat = torch.frombuffer(self.mapping, dtype=dtype, count=count, offset=offset)
        if offset % dtype.itemsize:
            flat = flat.clone()  # torch aligns its parts, and kernels expect that
        tensor = torch.as_strided(flat, sizes, strides, first)
        if meta["device"]["type"] != "cpu":
            tensor = tensor.to(torch.device(meta["device"]["type"], meta["device"]["index"] or 0))
        return tensor.requires_grad_(bool(meta["requires_grad"]))

    def _pickled_tensors(self, part: str) -> dict[str, torch.Tensor]:
        tensors = self._unpickle(part)
        if not isinstance(tensors, dict):
            refuse(self.path, part)
        for tensor in tensors.values():
            if not isinstance(tensor, torch.Tensor):
                refuse(self.path, part)
        return tensors

    def _unpickle(self, part: str) -> Any:
        content = self.archive.read(part)
        try:
            open_bytes(content)  # no part of it may inflate
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # UnpicklingError for a class; a damaged pickle may raise anything
            refuse(self.path, part)
        self._check_plain(part, loaded)
        return loaded

    def _check_plain(self, part: str, item: Any) -> None:
        if isinstance(item, dict):
            children = [*item, *item.values()]
            for key in item:
                check_path(str(key))  # keys of inputs end up in generated guards
        elif isinstance(item, tuple | list):
            children = list(item)
        elif isinstance(item, _PLAIN):
            return
        else:
            refuse(self.path, part)
        for child in children:
            self._check_plain(part, child)
