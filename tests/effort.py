"""How much the tests do, and from which seed they draw.

By default they do what tells faults, from draws that are the same on every run. NORMSWAP_ZOO=all:
all there is. NORMSWAP_DRAWS=fresh: other draws on every run, from the seed NORMSWAP_SEED where it
is given (see ``conftest.py``).
"""

from __future__ import annotations

import os
import secrets

import pytest

ALL = os.environ.get("NORMSWAP_ZOO") == "all"
FRESH = os.environ.get("NORMSWAP_DRAWS") == "fresh"
# Workers of pytest-xdist inherit what the first process drew.
SEED = int(os.environ.setdefault("NORMSWAP_SEED", str(secrets.randbits(32)))) if FRESH else 0


thorough = pytest.mark.skipif(not ALL, reason="many seconds, and others do part of it: test-all")
"""Marks a test that ``make test`` leaves out."""


def examples_of(some: int, all_of_them: int) -> int:
    """How many random examples a test draws: ``some`` by default."""
    return all_of_them if ALL else some
