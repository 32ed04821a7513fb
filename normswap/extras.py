"""How to install the packages that normswap does without until something needs them.

normswap is on no package index, so ``pip install "normswap[zoo]"`` finds nothing: what works
depends on how normswap itself was installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_SOURCE = Path(__file__).resolve().parents[1]


def install_command(extra: str) -> str:
    """The command that installs what an extra of pyproject.toml, such as ``zoo``, asks for.

    Where normswap's source is at hand it names that folder, else the packages themselves.

    Examples:
        >>> install_command("zoo")
        'pip install "timm>=1.0.20" "open_clip_torch>=3.0" "transformers>=5.0"'
    """
    if _is_source(_SOURCE):  # an editable installation, or none at all
        return pip_install(f"-e {_quoted(f'{_SOURCE}[{extra}]')}")
    try:
        distribution = importlib.metadata.distribution("normswap")
    except importlib.metadata.PackageNotFoundError:  # the folder was copied, say
        return f"install the packages of the extra '{extra}' in normswap's pyproject.toml"
    folder = _origin(distribution)
    if folder is not None and _is_source(folder):
        return pip_install(_quoted(f"{folder}[{extra}]"))
    return pip_install(*map(_quoted, _requirements(distribution, extra)))


def pip_install(*words: str) -> str:
    """``pip install`` with ``words``, by the pip of the Python that runs this."""
    pip = shutil.which("pip")
    if pip is not None and Path(pip).parent == Path(sys.executable).parent:
        return " ".join(("pip install", *words))
    return " ".join((shlex.quote(sys.executable), "-m pip install", *words))


def _is_source(folder: Path) -> bool:
    return (folder / "cli" / "normswap_cli").is_dir() and (folder / "pyproject.toml").is_file()


def _origin(distribution: importlib.metadata.Distribution) -> Path | None:
    """The folder that it was installed from; None where it was a wheel, an archive or a URL."""
    recorded = json.loads(distribution.read_text("direct_url.json") or "{}")
    url = urlsplit(recorded.get("url", ""))
    return Path(url2pathname(url.path)) if "dir_info" in recorded and url.scheme == "file" else None


def _requirements(distribution: importlib.metadata.Distribution, extra: str) -> list[str]:
    asked = (text.partition(";") for text in distribution.requires or ())
    wanted = re.compile(rf"""extra *== *["']{re.escape(extra)}["']""")
    return [requirement.strip() for requirement, _, marker in asked if wanted.search(marker)]


def _quoted(word: str) -> str:
    """For the shells of every system: ``<``, ``>`` and ``[`` mean something to them."""
    return f'"{word}"'
