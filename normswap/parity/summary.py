"""Who took part in a validation: the models, their files and norms, and what made the report."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normswap.graph.graph import Graph, Value
from normswap.io.onnx import data_files_of
from normswap.lowering import kernels_of
from normswap.model import Model, Step
from normswap.norms.site import Site
from normswap.parity.report import Finding, ModelSummary, Norm, Provenance
from normswap.runtimes.machine import machine

_LIBRARIES = ("normswap", "torch", "onnx", "onnx-ir", "onnxruntime", "openvino", "numpy")
_CHUNK = 2**22  # bytes


def model_summary(model: Model, runtime: str, sites: Sequence[Site]) -> ModelSummary:
    """``sites``: the located norms of ``model``. Its files are read whole, for their hash."""
    files = _files(model.path)
    norms = [Norm(s.name, s.kind, s.role, s.tower, math.prod(s.normalized_shape)) for s in sites]
    return ModelSummary(
        model.label,
        model.kind,
        None if model.path is None else str(model.path),
        runtime,
        sum(file.stat().st_size for file in files) if files else None,
        _sha256(files) if files else None,
        norms,
        list(model.history),
    )


def provenance(command: str | None = None) -> Provenance:
    """``command``: the one that makes the report again."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Provenance(versions, machine(), torch.get_num_threads(), command)


def _files(path: Path | None) -> list[Path]:
    """The file of a model and those of its data that are there, in a fixed order."""
    if path is None or not path.is_file():
        return []
    others = data_files_of(path) if path.suffix == ".onnx" else set()
    return [path, *sorted(file for file in others if file.is_file())]


def _sha256(files: Sequence[Path]) -> str:
    """Of the contents of all ``files`` in turn, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def found_unchanged(reference: Model, candidate: Model) -> list[Finding]:
    """A finding where the candidate's graph and weights are the reference's: fatal if its history
    tells of changes."""
    if not same_graph(reference.graph, candidate.graph):
        return []
    claims = [step for step in candidate.history[len(reference.history) :] if step.done]
    if not claims:
        message = "both models are the same, operator by operator and weight by weight"
        return [Finding("unchanged", message, fatal=False)]
    changes = "; ".join(map(_described, claims))
    message = f"its history says {changes}, but it is the reference, operator by operator"
    return [Finding("unchanged", message)]


def same_graph(ours: Graph, theirs: Graph) -> bool:
    """Whether both have the same operators, wired alike, and the same weights, bit for bit;
    whatever they are called."""
    if ours.kind != theirs.kind or len(ours.nodes) != len(theirs.nodes):
        return False
    if len(kernels_of(ours)) != len(kernels_of(theirs)):
        return False
    if any(a != b for a, b in zip(_wiring(ours), _wiring(theirs), strict=False)):
        return False
    pairs = zip(_constants(ours), _constants(theirs), strict=True)
    return all(_equal(ours.constant(a), theirs.constant(b)) for a, b in pairs)


def _described(step: Step) -> str:
    return f"'{step.name}' changed {step.done} {'norm' if step.done == 1 else 'norms'}"


def _wiring(graph: Graph) -> Iterator[tuple[Any, ...]]:
    """What each operator is and which of the values before it it reads; then the outputs."""
    numbers: dict[Value, int] = {value: index for index, value in enumerate(graph.inputs)}

    def number(value: Value | None) -> int | None:
        return None if value is None else numbers.setdefault(value, len(numbers))

    for node in graph.nodes:
        reads = tuple(number(value) for value in node.inputs)
        yield node.op, repr(sorted(node.attributes.items())), reads, len(node.outputs)
        for value in node.outputs:
            number(value)
    yield tuple(number(value) for value in graph.outputs)


def _constants(graph: Graph) -> list[Value]:
    """Those that operators read, each once, in the order in which they are first read."""
    read = (v for node in graph.nodes for v in node.inputs if v is not None)
    return [v for v in dict.fromkeys(read) if v.is_constant and v.producer is None]


def _equal(ours: np.ndarray | None, theirs: np.ndarray | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return np.ascontiguousarray(ours).tobytes() == np.ascontiguousarray(theirs).tobytes()
