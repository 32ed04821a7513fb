"""How long work tells of itself: the callback that passes, data, validation and the demo take."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""``progress(done, total, what)``, called before each step and once at the end."""
