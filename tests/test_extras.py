"""How to install what is missing, for every way in which normswap may have been installed."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from normswap import extras
from normswap.extras import install_command, pip_install

_ROOT = Path(__file__).parents[1]
_METADATA = """\
Metadata-Version: 2.4
Name: normswap
Version: 1.0
Requires-Dist: torch>=2.13
Provides-Extra: zoo
Requires-Dist: timm>=1.0; extra == "zoo"
Requires-Dist: open_clip_torch; extra == 'zoo'
Requires-Dist: mkdocs<2,>=1.6; extra == "zoology"
Requires-Dist: triton>=3.0; sys_platform == "linux" and extra == "triton"
"""
_PACKAGES = 'pip install "timm>=1.0" "open_clip_torch"'


@pytest.fixture(autouse=True)
def _pip_of_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / "bin" / name))


def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch, record: Any) -> None:
    """As a wheel lies in site-packages, with what pip records of where it came from."""
    info = folder / "site-packages" / "normswap-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(_METADATA)
    if record is not None:
        (info / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.setattr(extras, "_SOURCE", info.parent)
    monkeypatch.setattr(metadata, "distribution", lambda _: metadata.Distribution.at(info))


def _clone(folder: Path) -> Path:
    (folder / "cli" / "normswap_cli").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    return folder


def test_from_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clone = _clone(tmp_path / "a clone")
    monkeypatch.setattr(extras, "_SOURCE", clone)
    assert install_command("zoo") == f'pip install -e "{clone}[zoo]"'
    assert (_ROOT / "pyproject.toml").is_file() == extras._is_source(_ROOT)


def test_from_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clone = _clone(tmp_path / "a clone")
    _installed(tmp_path, monkeypatch, {"url": clone.as_uri(), "dir_info": {}})
    assert install_command("zoo") == f'pip install "{clone}[zoo]"'
    (clone / "pyproject.toml").unlink()
    assert install_command("zoo") == _PACKAGES


@pytest.mark.parametrize(
    "record",
    [
        None,
        {"url": "file:///some/normswap-1.0-py3-none-any.whl", "archive_info": {}},
        {"url": "https://example.org/normswap.git", "vcs_info": {"vcs": "git"}},
        {"url": "https://example.org/normswap.zip", "archive_info": {}},
    ],
)
def test_from_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: Any) -> None:
    _installed(tmp_path, monkeypatch, record)
    assert install_command("zoo") == _PACKAGES
    assert install_command("triton") == 'pip install "triton>=3.0"'


def test_from_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "_SOURCE", tmp_path)
    monkeypatch.setattr(metadata, "distribution", missing)
    assert "the extra 'zoo'" in install_command("zoo")


def test_the_pip_of_another_python_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for pip in ("/elsewhere/pip", None):
        monkeypatch.setattr("shutil.which", lambda _, pip=pip: pip)
        monkeypatch.setattr("sys.executable", "/an environment/bin/python")
        words = shlex.split(pip_install("timm"))
        assert words == ["/an environment/bin/python", "-m", "pip", "install", "timm"]


def test_only_extras_that_exist_are_named_and_in_one_way() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for file in [*(_ROOT / "normswap").rglob("*.py"), *(_ROOT / "cli").rglob("*.py")]:
        text = file.read_text("utf-8")
        assert "pip install" not in text or file.name == "extras.py", file
        named = re.findall(r"install_command\([\"'](\w+)", text)
        assert set(named) <= set(project["optional-dependencies"]), file
