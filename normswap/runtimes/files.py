"""A model as the file that a runtime loads, for as long as it takes to load it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from normswap.errors import NormswapError
from normswap.io.save import save
from normswap.model import Model


@contextlib.contextmanager
def scratch_files(model: Model) -> Iterator[Callable[[str], Path]]:
    """Yields a function from a suffix (.onnx, .pt2) to a file of the model, written when first
    asked for. The files go at the end; what has mapped them keeps them.

    The function raises NormswapError where the model cannot be written so.
    """
    # Windows keeps files that are mapped, until the next one cleans up.
    with tempfile.TemporaryDirectory(prefix="normswap-", ignore_cleanup_errors=True) as folder:

        def file(suffix: str) -> Path:
            path = Path(folder) / f"model{suffix}"
            if not path.exists():
                try:
                    save(model, path)
                except NormswapError as error:
                    if not str(error).startswith(str(path)):
                        raise
                    room = f"{tempfile.gettempdir()} cannot hold a copy of it"
                    raise NormswapError(
                        f"{model.name}: {room} to run; set TMPDIR to another folder"
                    ) from error
            return path

        yield file
