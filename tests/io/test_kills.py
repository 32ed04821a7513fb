"""A few of the kills and rounds of ``python -m tests.io.kills``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.effort import examples_of
from tests.io import kills

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of this process")


@pytest.mark.parametrize(
    ("kind", "count"), [("in place", examples_of(5, 20)), (".pt2", 2), ("a page", 3)]
)
def test_a_kill_loses_and_leaves_nothing(kind: str, count: int, tmp_path: Path) -> None:
    killed, _ = kills.kill(kind, tmp_path, count, seed=0, every=13)
    assert killed == count


@pytest.mark.parametrize(("kind", "rounds"), [("in place", 2), (".pt2", 1), ("a page", 1)])
def test_writers_of_the_same_file_wait_for_each_other(
    kind: str, rounds: int, tmp_path: Path
) -> None:
    kills.race(kind, tmp_path, rounds)
