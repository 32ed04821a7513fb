"""Several processes that train together, under ``torchrun``; one process needs none of this."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normswap.errors import NormswapError
from normswap.io.messages import first_line

T = TypeVar("T")
TIMEOUT = 300.0
"""Seconds after which a process that gets no answer gives up."""


def launched() -> bool:
    """Whether ``torchrun`` started this process, as one of a group."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world() -> int:
    return dist.get_world_size() if active() else 1


@contextlib.contextmanager
def process_group(timeout: float = TIMEOUT) -> Iterator[None]:
    """The group of the processes that ``torchrun`` started; nothing where it did not.

    nccl where every process has a CUDA device, else gloo. A process that died, or does not answer
    within ``timeout`` seconds, is a NormswapError in the others.
    """
    if not (launched() and dist.is_available()) or active():
        yield
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_cuda = torch.cuda.is_available() and torch.cuda.device_count() > local
    if on_cuda:
        torch.cuda.set_device(local)
    wait = datetime.timedelta(seconds=timeout)
    try:
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=wait)
        yield
    except (dist.DistError, RuntimeError) as error:
        if not _is_connection(error):
            raise
        raise NormswapError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: another one died or did "
            f"not answer within {timeout:g} s ({first_line(error)}); see its output, and continue "
            f"with --resume"
        ) from error
    finally:
        if active():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def _is_connection(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    words = ("Connection closed", "Connection reset", "gloo", "Timed out", "timed out", "NCCL")
    return any(word in str(error) for word in words)


def device() -> torch.device:
    """Where this process computes: its GPU, if it has one and the group's others have theirs."""
    on_cuda = dist.get_backend() == "nccl" if active() else torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")


def data_parallel(module: nn.Module) -> nn.Module:
    """The module, or one whose gradients are the mean over all processes.

    Its buffers are not broadcast: BatchNorms over the group keep the same statistics by themselves.
    """
    if not active():
        return module
    return DistributedDataParallel(module, broadcast_buffers=False)


def no_sync(module: nn.Module, unless: bool) -> contextlib.AbstractContextManager[Any]:
    """Keeps gradients in this process for now."""
    if unless or not isinstance(module, DistributedDataParallel):
        return contextlib.nullcontext()
    return module.no_sync()


def mean(value: torch.Tensor) -> torch.Tensor:
    """Over all processes; every one must call it."""
    if not active():
        return value
    total = value.to(device())
    dist.all_reduce(total)
    return total.cpu() / world()


def from_first(value: T) -> T:
    """The first process's value in all of them."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order."""
    if not active():
        return [value]
    boxes: list[Any] = [None] * world()
    dist.all_gather_object(boxes, value)
    return boxes


def first_found(values: tuple[T | None, ...]) -> tuple[T | None, ...]:
    """For each place the value of the first process that has one."""
    rows = gathered(values)
    return tuple(
        next((v for v in column if v is not None), None) for column in zip(*rows, strict=True)
    )


def all_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in their order; without gradients."""
    if not active():
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)
