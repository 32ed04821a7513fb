"""The training loop: AdamW, one warm-up and one cosine, checkpoints, and a stop at NaN."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normswap import distributed
from normswap.model import Progress
from normswap.train.checkpoint import Checkpoints, State, WeightAverage
from normswap.train.divergence import Diverged, Watch, first_bad_gradient
from normswap.train.log import Pace
from normswap.train.narrow import autocast, computed
from normswap.train.options import TrainOptions

__all__ = ["Batch", "Diverged", "TrainOptions", "TrainResult", "train"]

Batch = Mapping[str, torch.Tensor]
Loss = Callable[[nn.Module, Batch, int], torch.Tensor]
"""The mean loss of a batch at a step (from 0 on), with a gradient."""
Log = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """``module``: what was trained, in evaluation mode. ``losses``: one per step, resumed ones
    too. ``seconds``: of this run."""

    module: nn.Module
    losses: list[float]
    seconds: float
    resumed_at: int = 0


def train(
    module: nn.Module,
    loss: Loss,
    batches: Callable[[int], Batch],
    options: TrainOptions,
    *,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains ``module`` in place, all of its parameters that require a gradient.

    ``batches(step)``: what step number ``step`` sees, this process's part of it; a pure function,
    so that a resumed run goes on to the same result. It is split into ``options.accumulate`` parts
    along the first axis. Random numbers are drawn anew from the seed at each step. ``log`` gets a
    mapping of plain values for each step.

    Raises Diverged where the loss or a gradient is not finite (what was checked before stays in
    ``checkpoints``), and NormswapError for a checkpoint that cannot be read, written or continued.
    """
    device = next(module.parameters()).device
    optimizer = adamw(module, options)
    average = WeightAverage(module, options.ema) if options.ema is not None else None
    state = State(module, optimizer, average)
    first = checkpoints.resume(state, options) if checkpoints is not None else 0
    parallel = distributed.data_parallel(module)
    module.train()
    began = time.monotonic()
    pace = Pace(progress, first, options.steps, options.batch)
    with _own_randomness(device):
        for step in range(first, options.steps):
            pace.tell(step, state.losses[-1] if state.losses else None)
            rate = options.rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = {name: tensor.to(device) for name, tensor in batches(step).items()}
            _seed(options.seed, step)
            value = _backward(parallel, loss, batch, step, options)
            norm = _clip(module, options.clip)
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise _diverged(module, loss, batch, step, options, value)
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                average.update(step)
            state.losses.append(value)
            if log is not None:
                log(
                    {
                        "step": step,
                        "loss": value,
                        "learning_rate": rate,
                        "gradient_norm": norm,
                        "samples_per_second": pace.samples_per_second(step + 1),
                    }
                )
            if checkpoints is not None and checkpoints.due(step + 1, options.steps):
                checkpoints.save(state, options)
    pace.tell(options.steps, state.losses[-1] if state.losses else None)
    if average is not None:
        average.apply()
    module.eval()
    return TrainResult(module, list(state.losses), time.monotonic() - began, first)


def adamw(module: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW over what requires a gradient; vectors and numbers (norms, biases) do not decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)


def _backward(
    module: nn.Module, loss: Loss, batch: Batch, step: int, options: TrainOptions
) -> float:
    """Adds the gradients of the step's mean loss, which is returned, of all processes."""
    parts = _parts(batch, options.accumulate)
    total = torch.zeros((), dtype=torch.float64)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        with distributed.no_sync(module, unless=last), _computed(part, options.precision):
            with _autocast(part, options.precision):
                value = loss(module, part, step) / len(parts)
            value.backward()
        total += value.detach().double().cpu()
    return float(distributed.mean(total))


def _parts(batch: Batch, count: int) -> list[Batch]:
    if count == 1:
        return [batch]
    split = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
    return [{name: parts[index] for name, parts in split.items()} for index in range(count)]


def _autocast(batch: Batch, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    return autocast(next(iter(batch.values())).device)


def _computed(batch: Batch, precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    return computed(next(iter(batch.values())).device)


def _clip(module: nn.Module, limit: float | None) -> float:
    """The norm of all gradients before they are scaled down to ``limit``."""
    return float(nn.utils.clip_grad_norm_(module.parameters(), limit or math.inf))


def _diverged(
    module: nn.Module, loss: Loss, batch: Batch, step: int, options: TrainOptions, value: float
) -> Diverged:
    """Says where it began, by another forward that is watched."""
    gradient = first_bad_gradient(module)
    precision = options.precision
    computed_so, cast_so = _computed(batch, precision), _autocast(batch, precision)
    with Watch(module) as watch, torch.no_grad(), computed_so, cast_so:
        for part in _parts(batch, options.accumulate):
            loss(module, part, step)
    site, operator = distributed.first_found((watch.site, watch.operator))
    if site is not None:
        where = f"the norm '{site}'"
    elif operator is not None:
        where = f"'{operator}', behind the last norm"
    elif math.isfinite(value):
        where = f"the gradient of '{gradient}'"
    else:
        where = "the loss, of outputs that are finite"
    return Diverged(step, options.rate_at(step), value, site, where)


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Leaves torch's random numbers as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def _seed(seed: int, step: int) -> None:
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + distributed.rank())
