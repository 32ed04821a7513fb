"""How fast runs come, and how long the rest will take."""

from __future__ import annotations

import time


class Remaining:
    """``todo``: what is still to be done when it is made."""

    def __init__(self, todo: int) -> None:
        self._todo, self._done, self._began = todo, 0, time.monotonic()

    def after_one(self) -> str:
        """To be called when one is done: as '7.2 a minute, 3 min left'."""
        self._done += 1
        each = (time.monotonic() - self._began) / self._done
        left = each * (self._todo - self._done)
        told = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        return f"{60 / max(each, 1e-9):.1f} a minute, {told} left"
