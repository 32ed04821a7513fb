"""Runs of several processes, and runs that are killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.effort import thorough
from tests.train import kills, processes


def _finished(task: str, folder: Path) -> list[tuple[int, str]]:
    """The status and the standard error of each of two processes."""
    started = processes.start(task, folder, 2)
    errors = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, told) for process, told in zip(started, errors, strict=True)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one process and of two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    processes.distilled(one)
    assert [status for status, _ in _finished("distilled", two)] == [0, 0]
    return one, two


@thorough
@pytest.mark.parametrize("name", ["batchnorm", "affine", "distilled"])
def test_two_processes_give_the_weights_of_one(trained: tuple[Path, Path], name: str) -> None:
    one, two = (torch.load(folder / f"{name}.pt") for folder in trained)
    assert one.keys() == two.keys()
    compared = [key for key in one if one[key].is_floating_point()]
    if name != "affine":
        assert any("running_var" in key for key in compared)
    for key in compared:
        error = float((one[key].double() - two[key].double()).abs().max())
        assert error <= 2e-5 * max(float(one[key].double().abs().max()), 0.1), key


def test_a_process_that_dies_is_told_of_in_one_line(tmp_path: Path) -> None:
    (status, errors), (other, _) = _finished("dying", tmp_path)
    assert (status, other) == (1, 3)
    told = [line for line in errors.splitlines() if line.startswith("normswap:")]
    assert len(told) == 1
    assert "another one died or did not answer" in told[0]
    assert "Traceback" not in errors


@thorough
def test_a_run_that_is_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    killed.mkdir()
    processes.killable(calm)
    expected, _ = torch.load(calm / "weights.pt")
    found, advanced = kills.weights_after(killed, 2, 1)
    assert advanced == 2
    assert kills.same(expected, found)
