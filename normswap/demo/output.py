"""What the demo writes, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normswap.errors import NormswapError
from normswap.io.atomic import atomic_path, check_writable


class Output:
    """``folder``; ``files``: what was written to it, by path in it, with a description.

    Raises NormswapError for a folder that cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}
        self._make(folder)
        check_writable(folder / "results.json")

    def path(self, task: str, kind: str, name: str) -> Path:
        """Of a file of one model in one kind of graph; its folder is made."""
        folder = self.folder / task / kind
        self._make(folder)
        return folder / name

    def wrote(self, path: Path, what: str) -> None:
        self.files[path.relative_to(self.folder).as_posix()] = what

    def write_text(self, path: Path, text: str, what: str) -> None:
        with atomic_path(path) as file:
            file.write_text(text, encoding="utf-8")
        self.wrote(path, what)

    def write_json(self, path: Path, document: Mapping[str, Any], what: str) -> None:
        self.write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n", what)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise NormswapError(
                f"{folder}: this folder cannot be made ({reason}); name another output"
            ) from error
