"""How much the tests do: by default what tells faults, with NORMSWAP_ZOO=all all there is."""

from __future__ import annotations

import os

ALL = os.environ.get("NORMSWAP_ZOO") == "all"


def examples_of(some: int, all_of_them: int) -> int:
    """How many random examples a test draws: ``some`` by default."""
    return all_of_them if ALL else some
