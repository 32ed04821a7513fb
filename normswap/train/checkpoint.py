"""Checkpoints of a training run: one safetensors file that goes on to the same result."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import fx, nn

from normswap import distributed
from normswap.errors import NormswapError, first_line
from normswap.io.atomic import atomic_path
from normswap.io.bounds import check_regular
from normswap.train.options import TrainOptions

NAME = "checkpoint.safetensors"
_FORMAT = "normswap checkpoint 1"


class WeightAverage:
    """a <- decay * a + (1 - decay) * w after each step, from the weights it starts with.

    The decay of the first steps is (1 + n) / (10 + n), if that is less (as in timm and TensorFlow).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self.tensors = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        parameters = dict(self._module.named_parameters())
        torch._foreach_lerp_(
            list(self.tensors.values()), [parameters[n] for n in self.tensors], 1 - decay
        )

    @torch.no_grad()
    def copy_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def apply(self) -> None:
        """Gives the average to the module."""
        for name, parameter in self._module.named_parameters():
            parameter.copy_(self.tensors[name])


@dataclass
class State:
    """What a training run changes: weights and statistics of ``module``, the optimizer's moments,
    the average, and the loss of each step so far."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    losses: list[float] = field(default_factory=list)

    def tensors(self) -> dict[str, torch.Tensor]:
        found = {f"module.{name}": tensor for name, tensor in _state(self.module).items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{key}": tensor for key, tensor in moments.items()}
        if self.average is not None:
            found |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        found["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        return found

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in _state(self.module).items():
            tensor.copy_(tensors[f"module.{name}"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.average is not None:
            prefix = "average."
            self.average.copy_from(
                {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            )
        self.losses = tensors["losses"].tolist()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint in ``folder``, written every ``every`` steps and at the end.

    ``resume_if_there``: continue the one that is there, if any. ``about``: what else must be the
    same for a run to be continued (the data, the teacher), by name. The file is replaced as a
    whole, so that the last good one survives a kill and a full disk.
    """

    folder: Path
    every: int
    resume_if_there: bool = False
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def due(self, done: int, steps: int) -> bool:
        return done % self.every == 0 or done == steps

    def check_folder(self) -> None:
        """Makes the folder. Raises NormswapError if it cannot be made, or holds a checkpoint though
        none is to be continued."""
        if self.every < 1:
            raise NormswapError(f"{self.folder}: a checkpoint every {self.every} steps; take 1 up")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise NormswapError(
                f"{self.folder}: is no folder for checkpoints ({reason}); name another"
            ) from error
        if self.path.exists() and not self.resume_if_there:
            raise NormswapError(
                f"{self.path}: is there already; continue it with --resume, or name another folder"
            )

    def resume(self, state: State, options: TrainOptions) -> int:
        """The number of steps that are done, after restoring ``state`` from the checkpoint.

        Raises NormswapError for a checkpoint that is damaged, of another model or of other options,
        and what ``check_folder`` refuses.
        """
        self.check_folder()
        if not self.path.exists():
            return 0
        metadata, tensors = _read(self.path)
        self._check(metadata, state.module, options)
        state.restore(tensors)
        return int(metadata["step"])

    def save(self, state: State, options: TrainOptions) -> None:
        """Writes the state behind step ``len(state.losses)``; the first process of several does.

        Raises NormswapError, in all processes, if it cannot be written.
        """
        error: NormswapError | None = None
        if distributed.rank() == 0:
            try:
                self._write(state, options)
            except NormswapError as caught:
                error = caught
        reason = distributed.from_first(str(error) if error else None)
        if reason is not None:
            raise error or NormswapError(reason)

    def _write(self, state: State, options: TrainOptions) -> None:
        tensors = {name: _own(tensor) for name, tensor in state.tensors().items()}
        metadata = {
            "format": _FORMAT,
            "step": str(len(state.losses)),
            "model": fingerprint(state.module),
            "options": json.dumps(asdict(options), sort_keys=True),
            "about": json.dumps(dict(self.about), sort_keys=True),
        }
        with atomic_path(self.path) as temporary:
            try:
                safetensors.torch.save_file(tensors, temporary, metadata)
            except safetensors.SafetensorError as error:  # an OSError, by its text
                if number := re.search(r"os error (\d+)", str(error)):
                    code = int(number[1])
                    raise OSError(code, os.strerror(code)) from error
                raise

    def _check(self, metadata: Mapping[str, str], module: nn.Module, options: TrainOptions) -> None:
        if metadata["model"] != fingerprint(module):
            raise NormswapError(
                f"{self.path}: is a checkpoint of another model; name the folder of this one's, or "
                f"an empty one"
            )
        ours = {**asdict(options), **self.about}
        theirs = {**json.loads(metadata["options"]), **json.loads(metadata["about"])}
        for name in {**theirs, **ours}:
            if ours.get(name) != theirs.get(name):
                raise NormswapError(
                    f"{self.path}: was made with {name.replace('_', ' ')} {theirs.get(name)}, this "
                    f"run has {ours.get(name)}; give it the same, or name another folder"
                )


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's structure: its tensors' names, shapes and dtypes, its graph if it has
    one; not of its weights."""
    lines = [f"{n} {tuple(t.shape)} {t.dtype}" for n, t in sorted(_state(module).items())]
    if isinstance(module, fx.GraphModule):
        lines += [f"{node.op} {node.target}" for node in module.graph.nodes]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, each tensor once however often it is used."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _own(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone()


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    check_regular(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise NormswapError(
            f"{path}: cannot be read as a checkpoint ({first_line(error)}); remove it to start anew"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise NormswapError(f"{path}: is no checkpoint of normswap; name another folder")
    return metadata, tensors
