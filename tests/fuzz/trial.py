"""What one mutant goes through: inspect, swap --to fused and fold, and the results run against the
original in ONNX Runtime."""

from __future__ import annotations

import faulthandler
import io
import logging
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from torch import nn

import normswap as ns
from normswap import Model, NormswapError
from normswap.io.data import load_data
from normswap.io.preprocessing import Preprocessing
from normswap.report.inspection import inspection
from normswap.report.terminal import inspection_view
from normswap.train.sharded_data import shard_samples

_LOOSE = 1e-3  # of the largest value: beyond it the exact contract is asked
_model: list[Model] = []


def silence() -> None:
    """Logs and warns of nothing from now on."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    onnxruntime.set_default_logger_severity(4)
    faulthandler.disable()


def warm() -> None:
    """Makes what every trial needs, before the process is forked."""
    if _model:
        return
    torch.set_num_threads(1)  # a fork has no others
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 3)).eval()
    known = Preprocessing("RGB", (0.5,) * 3, (0.5,) * 3, resize="squash", size=(4, 4))
    model = ns.load(net, example_inputs={"input": torch.randn(2, 3, 4, 4)})
    object.__setattr__(model, "preprocessing", known)
    _model.append(model)


def trial(kind: str, path: Path) -> str:
    """How it went: 'refused', 'rewritten', 'unchanged', or, where something is wrong, its cause."""
    try:
        return load(kind, path)
    except NormswapError as error:
        return _of_refusal(error, path)
    except Exception as error:  # what the fuzzer is for
        return _cause(error)


def load(kind: str, path: Path) -> str:
    """The same, where nothing goes wrong."""
    if kind == "data":
        if path.suffix == ".tar":
            shard_samples(str(path), _model[0], 2, None)
        else:
            load_data(path, _model[0])
        return "unchanged"
    model = ns.load(path)
    Console(file=io.StringIO(), width=200).print(inspection_view(inspection(model)))
    outcomes = [_rewritten(kind, model, path, how) for how in (_fused, ns.fold)]
    wrong = [outcome for outcome in outcomes if outcome.startswith("wrong")]
    return next(iter(wrong), "rewritten" if "rewritten" in outcomes else "unchanged")


def _fused(model: Model) -> Any:
    return ns.swap(model, to="fused")


def _rewritten(kind: str, model: Model, path: Path, how: Callable[[Model], Any]) -> str:
    result = how(model)
    if not result.modified:
        return "unchanged"
    if kind != "onnx":
        return "rewritten"
    out = path.with_name("out.onnx")
    ns.save(result.model, out)
    feeds = dict(model.examples)
    before = _run(path, feeds)
    if isinstance(before, str):
        return "rewritten"
    name = how.__name__.strip("_")
    after = _run(out, feeds)
    if isinstance(after, str):
        return f"wrong: {name} writes what ONNX Runtime refuses: {after[:100]}"
    if all(map(_agree, before, after)):
        return "rewritten"
    report = ns.validate(model, ns.load(out))
    return "rewritten" if report.passed else f"wrong: values of {name}"


def _run(path: Path, feeds: dict[str, Any]) -> list[Any] | str:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        return list(session.run(None, {k: v for k, v in feeds.items() if k in taken}))
    except Exception as error:  # onnxruntime's exceptions share no public base class
        return str(error).replace("\n", " ") or type(error).__name__


def _agree(one: Any, other: Any) -> bool:
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return type(one) is type(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind not in "f":
        return bool(np.array_equal(one, other))
    with np.errstate(all="ignore"):
        a, b = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(a)  # where the original overflows, nothing can be said
        scale = np.abs(a[finite]).max(initial=0)
        return bool((np.abs(a - b)[finite] <= _LOOSE * scale).all())


def _of_refusal(error: NormswapError, path: Path) -> str:
    line = str(error)
    if "more memory than there is" in line:
        return "memory"
    if "\n" in line:
        return f"refused in several lines: {line[:60]!r}"
    if path.name not in line and path.parent.name not in line:
        return f"refused without the file's name: {_frame(error)}"
    return "refused"


def _cause(error: BaseException) -> str:
    return f"traceback: {type(error).__name__} in {_frame(error)}"


def _frame(error: BaseException) -> str:
    """The innermost frame of this project."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/normswap/" in f.filename and "site-packages" not in f.filename]
    if not own:
        return "no frame of normswap"
    last = own[-1]
    return f"{last.filename.rpartition('/normswap/')[2]}:{last.name}"
