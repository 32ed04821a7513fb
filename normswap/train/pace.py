"""How fast a training run goes, and when it will be done."""

from __future__ import annotations

import time

from normswap.model import Progress


class Pace:
    """Tells ``progress`` of each step with the rate so far and the time that remains."""

    def __init__(self, progress: Progress | None, first: int, steps: int, batch: int) -> None:
        self._progress, self._first, self._steps, self._batch = progress, first, steps, batch
        self._began = time.monotonic()

    def samples_per_second(self, done: int) -> float:
        return self._batch * (done - self._first) / max(time.monotonic() - self._began, 1e-9)

    def tell(self, done: int, loss: float | None) -> None:
        """``done``: steps of the whole run, resumed ones too."""
        if self._progress is None:
            return
        what = "training"
        if loss is not None:
            what += f", loss {loss:.4g}"
        if done > self._first:
            rate = self.samples_per_second(done)
            left = (self._steps - done) * self._batch / rate
            what += f", {rate:.0f} samples/s, {_clock(left)} left"
        self._progress(done, self._steps, what)


def throttled(progress: Progress, seconds: float) -> Progress:
    """Passes on a call in so many seconds, and the ends of tasks: for output without a terminal."""
    last = -seconds

    def call(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= seconds:
            last = now
            progress(done, total, what)

    return call


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
