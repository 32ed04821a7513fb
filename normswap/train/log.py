"""A log of a training run: one JSON document on each line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError


class JsonLines:
    """Writes a line for each step to ``path``; with ``keep`` behind those that are there.

    A run that was killed may have logged steps that its checkpoint does not have: when one of them
    is logged again, its old line and those behind it go. Raises NormswapError for a file that
    cannot be written, or that holds something else.
    """

    def __init__(self, path: Path, keep: bool = False) -> None:
        self._path, self._keep = path, keep
        self._first = True
        try:
            with open(path, "a"):
                pass
        except OSError as error:
            raise self._failed(error) from error

    def __call__(self, entry: Mapping[str, Any]) -> None:
        try:
            if self._first:
                self._cut(entry["step"] if self._keep else 0)
                self._first = False
            with open(self._path, "a") as file:
                file.write(json.dumps(dict(entry)) + "\n")
        except OSError as error:
            raise self._failed(error) from error

    def _cut(self, step: int) -> None:
        """Drops the lines from ``step`` on, and one that a kill left unfinished."""
        end = 0
        if not step:
            os.truncate(self._path, 0)
            return
        with open(self._path, "rb") as file:
            for line in file:
                try:
                    if json.loads(line)["step"] >= step or not line.endswith(b"\n"):
                        break
                except (ValueError, KeyError, TypeError) as error:
                    if not line.endswith(b"\n"):
                        break
                    raise NormswapError(
                        f"{self._path}: is not the log of a training run; name another file"
                    ) from error
                end += len(line)
        os.truncate(self._path, end)

    def _failed(self, error: OSError) -> NormswapError:
        reason = (error.strerror or str(error)).lower()
        return NormswapError(f"{self._path}: cannot be written ({reason}); name another log")
