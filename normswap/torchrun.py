"""Whether ``torchrun`` started this process. One process by itself needs no torch to know."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def launched() -> bool:
    """Whether ``torchrun`` started this process, as one of a group."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


@contextlib.contextmanager
def joined() -> Iterator[bool]:
    """The group that this process was started in, if it was. Yields whether it is the first of it,
    the one that writes files and reports."""
    if not launched():
        yield True
        return
    from normswap.distributed import process_group, rank

    with process_group():
        yield rank() == 0
