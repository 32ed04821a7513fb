"""Logs and warnings, ours and those of the libraries below, on standard error."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

_OTHERS = ("torch", "transformers", "onnxscript", "onnx_ir", "timm", "open_clip", "huggingface_hub")


class _ToStderr(logging.StreamHandler[TextIO]):
    """To what ``sys.stderr`` is by then: a progress bar puts itself in front of it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        from normswap.errors import visible  # normswap imports numpy: only if need be

        return visible(super().format(record), keep="\n\t")


@contextlib.contextmanager
def logs_on_stderr(verbosity: int) -> Iterator[None]:
    """Our warnings are shown; with ``verbosity`` 1 also our progress and others' warnings, with 2
    everything. Handlers are taken away at the end.
    """
    ours = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    others = (logging.CRITICAL, logging.WARNING, logging.INFO)[min(verbosity, 2)]
    # These set up their own loggers when they are imported, from the environment.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", logging.getLevelName(others).lower())
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(name)s: %(levelname)s: %(message)s"))
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("normswap", "py.warnings", *_OTHERS)}
    root.addHandler(handler)
    logging.getLogger("normswap").setLevel(ours)
    for name in ("py.warnings", *_OTHERS):
        logging.getLogger(name).setLevel(others)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("default" if verbosity else "ignore")
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.removeHandler(handler)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
