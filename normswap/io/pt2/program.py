"""The program of a .pt2, rebuilt from checked objects.

Tensors that are stored raw are mapped from the file; pickled parts are read as tensors only.
"""

from __future__ import annotations

import io
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Not public: torch.export.load offers no way to give it checked objects.
from torch._export.serde import schema
from torch._export.serde.serialize import (
    ExportedProgramDeserializer,
    _dict_to_dataclass,
    deserialize_scalar_type,
)

from normswap.errors import NormswapError, first_line, quiet
from normswap.io.mapped import release_pages
from normswap.io.pt2.archive import SAVE_AGAIN, Archive, BadArchive, open_bytes, refuse
from normswap.io.pt2.check import Unsafe, check_calls, check_path, check_program, shown
from normswap.io.pt2.deadline import TooLong, deadline
from normswap.io.pt2.sizes import WrongSize, check_sizes

_PLAIN = (torch.Tensor, str, int, float, bool, complex, type(None), torch.dtype)
_STRIDED = 7
_SECONDS, _BYTES_A_SECOND = 8.0, 40_000  # of work for a program, and for its text


def rebuilt(path: Path, archive: Archive, mapping: mmap.mmap) -> torch.export.ExportedProgram:
    """The program in the archive at ``path``, mapped at ``mapping``.

    Raises NormswapError for one that is refused or that torch cannot rebuild, BadArchive for
    missing or damaged parts.
    """
    parts = _Parts(path, archive, mapping, _model_name(path, archive))
    part = f"models/{parts.model}.json"
    version = ""
    try:
        document = parts.document(part)
        version = shown(document.get("torch_version"))
        serialized = _dict_to_dataclass(schema.ExportedProgram, document)
        check_program(serialized)
        weights, constants = parts.tensors("weights"), parts.tensors("constants")
        inputs = parts.sample_inputs()
        size = archive.span(part)[1]
        with quiet("torch.export", "torch._export"), deadline(_SECONDS + size / _BYTES_A_SECOND):
            program = ExportedProgramDeserializer().deserialize(
                serialized, weights, constants, inputs
            )
        check_calls(program.graph_module)
        check_sizes(program)
        return program
    except Unsafe as error:
        refuse(path, part, str(error))
    except TooLong as error:
        raise NormswapError(
            f"{path}: the sizes in its program take torch too long to work out; {SAVE_AGAIN}, with "
            "fewer dynamic sizes"
        ) from error
    except WrongSize as error:
        raise NormswapError(
            f"{path}: the parameters of an operator ({error}) do not have the size of its input; "
            f"{SAVE_AGAIN}"
        ) from error
    except (NormswapError, BadArchive):
        raise
    except Exception as error:  # torch raises whatever it meets in a program it cannot rebuild
        raise NormswapError(
            f"{path}: torch {torch.__version__} cannot rebuild the program that torch {version} "
            f"wrote ({first_line(error)}); {SAVE_AGAIN}"
        ) from error


def _model_name(path: Path, archive: Archive) -> str:
    parts = [name for name in archive.names if name.startswith("models/")]
    names = [part.removeprefix("models/").removesuffix(".json") for part in parts]
    if "model" in names:
        return "model"
    if len(names) != 1:
        raise NormswapError(
            f"{path}: holds {len(names)} programs and none is called model; save one per file"
        )
    return names[0]


@dataclass(frozen=True)
class _Parts:
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
        """The 'weights' or 'constants' by dotted path, over the private mapping of the file."""
        folder = f"data/{kind}"
        old = f"{folder}/{self.model}.pt"
        if old in self.archive:
            pickled = self._unpickle(old)
            if not isinstance(pickled, dict):
                refuse(self.path, old)
            if not all(isinstance(tensor, torch.Tensor) for tensor in pickled.values()):
                refuse(self.path, old)
            return pickled
        config = self.document(f"{folder}/{self.model}_{kind}_config.json")["config"]
        tensors = {}
        verified: set[str] = set()
        for name, meta in config.items():
            check_path(name)
            part = f"{folder}/{meta['path_name']}"
            if part not in verified:
                self._verify(part)
                verified.add(part)
            tensors[name] = self._tensor(part, meta)
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

    def _verify(self, part: str) -> None:
        self.archive.verify(part)
        start, length = self.archive.span(part)
        release_pages(self.mapping, start, start + length)

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
