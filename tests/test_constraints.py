"""The pins of constraints.txt go together, without asking an index.

pip finds that out too (``make resolve``), but where an index offers no metadata beside its wheels
it downloads all of them for it: 1.6 GB with CUDA's. So the requirements are read here: our own,
those of what is installed, and those of torch's ordinary wheel, kept below, for an index may serve
a build for CPUs alone to one Python and the ordinary one to another.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from normswap.io.pt2.file import TESTED_TORCH

_ROOT = Path(__file__).parents[1]
_PYTHONS = ("3.11", "3.12", "3.13")
# Requires-Dist of torch-2.13.0-cp313-cp313-manylinux_2_28_x86_64.whl, without its extras.
_ORDINARY_TORCH = "2.13.0"
_REQUIRED_BY_ORDINARY_TORCH = """
filelock
typing-extensions>=4.10.0
setuptools>=77.0.3
sympy>=1.13.3
networkx>=2.5.1
jinja2
fsspec>=0.8.5
cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx]==13.0.3; platform_system == "Linux"
cuda-bindings<14,>=13.0.3; platform_system == "Linux" and python_version < "3.15"
nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"
nvidia-cusparselt-cu13==0.8.1; platform_system == "Linux"
nvidia-nccl-cu13==2.29.7; platform_system == "Linux"
nvidia-nvshmem-cu13==3.4.5; platform_system == "Linux"
triton==3.7.1; platform_system == "Linux" and python_version < "3.15"
"""  # noqa: E501 - as the wheel has it


def _pins() -> dict[str, Version]:
    lines = (_ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for requirement in pinned:
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        versions[canonicalize_name(requirement.name)] = Version(specifier.version)
    return versions


def _refused(requirements: Iterable[str], pins: Mapping[str, Version], python: str) -> list[str]:
    """The requirements that a pin does not meet, on Linux with a version of Python."""
    linux = {**default_environment(), "sys_platform": "linux", "platform_system": "Linux"}
    linux |= {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    refused = []
    for text in requirements:
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None or (requirement.marker and not requirement.marker.evaluate(linux)):
            continue
        if not requirement.specifier.contains(pin, prereleases=True):
            refused.append(text)
    return refused


@pytest.mark.parametrize("python", _PYTHONS)
def test_the_pins_meet_our_requirements(python: str) -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    ours = chain(project["dependencies"], *project["optional-dependencies"].values())
    assert _refused(ours, _pins(), python) == []
    assert SpecifierSet(project["requires-python"]).contains(f"{python}.0")


def test_the_torch_that_an_error_names_is_pinned() -> None:
    assert f"torch=={_pins()['torch']}" == TESTED_TORCH


@pytest.mark.parametrize("python", _PYTHONS)
def test_the_pins_meet_the_requirements_of_one_another(python: str) -> None:
    found = [d for d in importlib.metadata.distributions() if canonicalize_name(d.name) in _pins()]
    assert found
    for distribution in found:
        refused = _refused(distribution.requires or (), _pins(), python)
        assert refused == [], f"{distribution.name} {distribution.version}"
        pythons = SpecifierSet(distribution.metadata.get("Requires-Python") or "")
        assert pythons.contains(f"{python}.1"), distribution.name


@pytest.mark.parametrize("python", _PYTHONS)
def test_the_pins_meet_the_requirements_of_torchs_ordinary_wheel(python: str) -> None:
    pins, required = _pins(), _REQUIRED_BY_ORDINARY_TORCH.split("\n")[1:-1]
    assert pins["torch"] == Version(_ORDINARY_TORCH), "another torch: take its wheel's METADATA"
    assert _refused(required, pins, python) == []
    (triton,) = (text for text in required if text.startswith("triton"))
    assert _refused(required, pins | {"triton": Version("3.9.0")}, python) == [triton]
