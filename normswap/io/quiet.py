"""Keeping other libraries from printing what normswap tells in one line."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str, stderr: bool = False) -> Iterator[None]:
    """Drops what the named loggers say below 'critical', and with ``stderr`` what is printed
    there, while the block runs."""
    held = [(logging.getLogger(name), logging.getLogger(name).level) for name in loggers]
    with contextlib.ExitStack() as stack:
        for logger, level in held:
            logger.setLevel(logging.CRITICAL)
            stack.callback(logger.setLevel, level)
        if stderr:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield
