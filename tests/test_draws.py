"""Draws are the same on every run; fresh ones are where their seed is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.effort import thorough

_ROOT = Path(__file__).parents[1]
_DRAWN = """
import hashlib, random
{before}
import numpy, torch
from tests import conftest
from hypothesis import given, strategies as st

drawn = []

@given(st.integers(0, 2**16), st.floats(0, 1))
def draw(number, fraction):
    drawn.append((number, fraction, random.random(), numpy.random.rand(), torch.rand(1).item()))

conftest.pytest_runtest_setup()
own = random.random(), numpy.random.rand(), torch.rand(1).item()
draw()
print(hashlib.sha256(repr((drawn, own)).encode()).hexdigest())
"""


def _drawn(before: str = "", **variables: str) -> str:
    """A digest of what is drawn in another process, that does ``before`` first."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("NORMSWAP_")}
    known |= {"PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "cli")]), **variables}
    command = [sys.executable, "-c", _DRAWN.format(before=before)]
    done = subprocess.run(command, env=known, capture_output=True, text=True, cwd=_ROOT, check=True)
    return done.stdout


@thorough
def test_the_same_draws_whatever_was_imported_and_drawn_before() -> None:
    before = "import normswap.passes.fold, numpy, torch; numpy.random.rand(); torch.rand(1)"
    drawn = []
    for variables in ({}, {"NORMSWAP_DRAWS": "fresh", "NORMSWAP_SEED": "7"}):
        drawn.append(_drawn(PYTHONHASHSEED="1", **variables))
        assert _drawn(before, PYTHONHASHSEED="2", CI="true", **variables) == drawn[-1]
    assert drawn[0] != drawn[1]
