"""Kills a training run at random moments (SIGKILL) and resumes it, until it ends.

    python -m tests.train.kills [KILLS]

in the repository's root; 20 kills by default. Says whether the weights are those of a run that
nobody disturbed.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.train import processes


def weights_after(folder: Path, kills: int, seed: int) -> tuple[dict[str, torch.Tensor], int]:
    """The weights of a run that was killed ``kills`` times, and how often it got anywhere."""
    draw = random.Random(seed)
    checkpoint = folder / "checkpoints" / "checkpoint.safetensors"
    advanced = 0
    for _ in range(kills):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        (process,) = processes.start("killable", folder)
        deadline = time.monotonic() + 300
        # Starting takes long and differs: the moment is drawn from when it trains.
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                time.sleep(draw.uniform(0, 0.15))
                break
            time.sleep(0.002)
        process.kill()
        process.communicate()
        advanced += checkpoint.exists() and checkpoint.stat().st_mtime_ns != before
    (process,) = processes.start("killable", folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    state, losses = torch.load(folder / "weights.pt")
    assert len(losses) == processes.STEPS
    return state, advanced


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as calm, tempfile.TemporaryDirectory() as killed:
        expected, _ = weights_after(Path(calm), 0, 0)
        found, advanced = weights_after(Path(killed), kills, 0)
        told = "the same weights" if same(expected, found) else "OTHER WEIGHTS"
        print(f"killed {kills} times, {advanced} of them after a new checkpoint: {told}")


if __name__ == "__main__":
    main()
