"""Python processes with the environment that torchrun gives them, and what they run.

python -m tests.train.processes TASK FOLDER
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

import normswap as ns
from normswap import distributed
from normswap.train.checkpoint import Checkpoints
from normswap.train.distill import distill
from normswap.train.loop import Batch, train
from normswap.train.options import TrainOptions
from tests.train import tiny

ROOT = Path(__file__).parents[2]
STEPS = 40


def start(task: str, folder: Path, world: int = 1) -> list[subprocess.Popen[str]]:
    """One process for each rank; ``world`` 1 is a run without a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if world > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        command = [sys.executable, "-m", "tests.train.processes", task, str(folder)]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
    return started


def distilled(folder: Path) -> None:
    """A distillation, and fits of ``swap``, saved in ``folder``."""
    teacher = tiny.teacher()
    data = tiny.inputs(96)
    with distributed.process_group(timeout=60):
        swapped = {
            "batchnorm": ns.swap(
                teacher, ns.BatchNorm(fit="least-squares", ffn_batchnorm=True), data=data
            ).model,
            "affine": ns.swap(teacher, ns.Affine(refit_writers=True), data=data[:61]).model,
        }
        result = distill(
            swapped["batchnorm"], teacher, data, steps=6, batch=16, warm_up=1, accumulate=2
        )
        if distributed.rank() == 0:
            for name, model in {**swapped, "distilled": result.model}.items():
                torch.save(model.to_torch().state_dict(), folder / f"{name}.pt")


def dying(_: Path) -> None:
    """Two processes that know of each other, of which the second one dies without a word."""
    with distributed.process_group(timeout=60):
        distributed.gathered(0)
        if distributed.rank() == 1:
            os._exit(3)
        distributed.gathered(0)


def killable(folder: Path) -> None:
    """A slow run with a checkpoint every third step; its weights are saved at the end."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16))

    def batches(step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        return {"x": torch.randn(8, 8, generator=generator)}

    def loss(module: torch.nn.Module, batch: Batch, step: int) -> torch.Tensor:
        time.sleep(0.03)
        noise = torch.rand(16)  # of torch's own generator: a run that goes on must draw the same
        return (torch.relu(module(batch["x"])) - noise).square().mean()

    options = TrainOptions(STEPS, 8, 1e-2, 4, ema=0.9)
    store = Checkpoints(folder / "checkpoints", 3, resume_if_there=True)
    result = train(module, loss, batches, options, checkpoints=store)
    torch.save((result.module.state_dict(), result.losses), folder / "weights.pt")


def main() -> None:
    torch.set_num_threads(1)
    tasks = {"distilled": distilled, "dying": dying, "killable": killable}
    try:
        tasks[sys.argv[1]](Path(sys.argv[2]))
    except ns.NormswapError as error:
        sys.exit(f"normswap: {error}")


if __name__ == "__main__":
    main()
