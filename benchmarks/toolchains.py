"""What NPU toolchains do with a norm in each of its dialects: refuse it, fall back, or how wrong.

    python -m benchmarks.toolchains [TOOLCHAIN ...] [--cases CASE ...] [--forms FORM ...]
        [--accuracy N] [--cache FOLDER] [--real FOLDER] [-o FILE]

Each toolchain gets an environment of its own in the cache (a temporary folder by default, of up to
1 GB), each form of each model a process of its own. Outputs are compared with the original's in
float64: the largest error over the outputs by the largest output. --accuracy: digits-vit on the
first N of the 540 test images as well. A Markdown table is printed for each case; -o keeps the rows
as JSON, together with those of earlier runs. A package that is not to be had is a row with the
reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_packages import Unavailable, default_cache
from benchmarks.toolchain_cases import CHOSEN, FORMS, Arrays, Case, cases, quantise, save
from normswap.model import Model

RUNNER = Path(__file__).with_name("toolchain_runner.py")
PYTHON = Path("bin", "python")
SECONDS = 1800
_CALIBRATION = 64  # samples that a quantiser sees


@dataclass(frozen=True)
class Toolchain:
    """A column of the tables.

    ``runner``: its function there. ``packages``: what its environment, ``folder``, holds;
    ``alone``: those that are installed without what they ask for. ``borrows``: whether it also sees
    the packages of this Python (torch for the CPU, which the index may not have). ``kind``: of the
    graphs that it takes. ``quantised``: to activations of 16 bits and weights of 8 before.
    ``target``: its name behind ``--target``.
    """

    name: str
    runner: str
    folder: str
    target: str
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    borrows: bool = False
    kind: str = "onnx"
    quantised: bool = False
    options: dict[str, Any] = field(default_factory=dict)


_QNN = ("onnxruntime-qnn==2.7.0",)
_V75 = {"soc_model": "57", "htp_arch": "75"}
_EXECUTORCH = ("executorch==1.5.1", "torchao", "pytorch-tokenizers", "ruamel.yaml", "tabulate")
_RKNN = (
    *("numpy==1.26.4", "onnx==1.18.0", "protobuf==4.25.4", "onnxruntime<1.23", "scipy<1.15"),
    *("opencv-python-headless<4.12", "fast-histogram", "psutil", "ruamel.yaml", "tqdm"),
    "setuptools",
)
TOOLCHAINS = (
    Toolchain("qnn-default", "qnn", "qnn", "qnn-htp", _QNN),
    Toolchain("qnn-v75", "qnn", "qnn", "qnn-htp", _QNN, options=_V75),
    Toolchain("qnn-v75-a16w8", "qnn", "qnn", "qnn-htp", _QNN, quantised=True, options=_V75),
    Toolchain("openvino", "openvino", "openvino", "openvino", ("openvino",)),
    Toolchain("mnn", "mnn", "mnn", "mnn", ("MNN==3.6.1",)),
    Toolchain("ncnn", "ncnn", "ncnn", "ncnn", ("numpy",), ("ncnn==1.0.20261020", "pnnx==20261020")),
    Toolchain("litert", "litert", "litert", "litert", ("onnx2tf==1.29.24", "ai-edge-litert")),
    Toolchain(
        "rknn",
        "rknn",
        "rknn",
        "rknn",
        _RKNN,
        alone=("rknn-toolkit2==2.5.0",),  # it asks for a torch of 2024, and takes any
        borrows=True,
        kind="onnx 18",  # it reads no opset above 19
    ),
    Toolchain(
        "executorch",
        "executorch",
        "executorch",
        "executorch-xnnpack",
        alone=(*_EXECUTORCH, "flatbuffers", "parameterized", "expecttest"),
        borrows=True,
        kind="fx",
    ),
    Toolchain(
        "coremltools",
        "coremltools",
        "coreml",
        "coreml",
        alone=("coremltools==9.0", "attrs", "cattrs", "pyaml"),
        borrows=True,
        kind="fx",
    ),
)


@dataclass(frozen=True)
class Row:
    """What a toolchain did with a form of a case. ``errors``: by what the inputs are."""

    case: str
    form: str
    toolchain: str
    version: str
    errors: dict[str, float]
    note: str
    refused: str
    accuracy: float | None = None


def environment(cache: Path, toolchain: Toolchain) -> Path:
    """The Python of a toolchain's environment, made where it is not there yet.

    Raises Unavailable with pip's reason.
    """
    folder = cache / toolchain.folder
    done = folder / "installed"
    if not done.is_file():
        venv.create(folder, with_pip=True)
        for packages, how in ((toolchain.alone, ["--no-deps"]), (toolchain.packages, [])):
            if packages:
                _install(folder / PYTHON, [*how, *packages])
        if toolchain.borrows:
            paths = sysconfig.get_paths(vars={"base": str(folder)}, scheme="venv")
            own = sysconfig.get_paths()["purelib"]
            Path(paths["purelib"], "zz_borrowed.pth").write_text(f"{own}\n", encoding="utf-8")
        done.touch()
    return folder / PYTHON


def _install(python: Path, arguments: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "--no-input", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise Unavailable((lines or ["pip failed"])[0][:200])


def asked(
    python: Path,
    toolchain: Toolchain,
    model: Model,
    inputs: Arrays,
    options: dict[str, Any],
    seen: Arrays,
) -> tuple[dict[str, str], list[np.ndarray]]:
    """What the runner answers, and the outputs of the converted model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = folder / ("given.onnx" if model.kind == "onnx" else "given.pt2")
        save(model, file)
        if toolchain.quantised:
            quantise(file, seen)
        order = {spec.name: inputs[spec.name] for spec in model.inputs}
        np.savez(folder / "in.npz", **order)
        (folder / "left").mkdir()
        request = {
            "model": str(file),
            "inputs": str(folder / "in.npz"),
            "outputs": str(folder / "out.npz"),
            "answer": str(folder / "answer.json"),
            "folder": str(folder / "left"),
            "names": {"inputs": list(order), "outputs": list(model.output_names)},
            "options": options,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [str(python), str(RUNNER), toolchain.runner, str(folder / "request.json")]
        try:
            ran = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {"version": "", "note": "", "error": f"took over {SECONDS} s"}, []
        if ran.returncode:
            how = f"signal {-ran.returncode}" if ran.returncode < 0 else "an error"
            last = (ran.stderr.strip().splitlines() or [""])[-1]
            return {"version": "", "note": "", "error": f"its process ended by {how} {last}"}, []
        answer: dict[str, str] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        outputs: list[np.ndarray] = []
        if (folder / "out.npz").is_file() and not answer["error"]:
            with np.load(folder / "out.npz") as given:
                outputs = [given[key] for key in given.files]
        return answer, outputs


def measured(
    python: Path, toolchain: Toolchain, case: Case, form: str, accuracy: int
) -> Row | None:
    """The row of a form, if there is such a one; on the HTP the whole graph there, or else what is
    left to the CPU."""
    model = case.form(form, toolchain.kind)
    if isinstance(model, str):
        print(f"{case.name}, {form}: no such form, {model}", file=sys.stderr)
        return None
    together = {
        name: np.concatenate([arrays[name] for arrays in case.inputs.values()])
        for name in next(iter(case.inputs.values()))
    }
    # What is outside of the range that was seen is cut off, by as much as the largest output: that
    # is left to the accuracy, and the errors are those of the arithmetic.
    calibration = {k: v[:_CALIBRATION, None] for k, v in case.calibration.items()}
    seen = {k: np.concatenate([v, together[k]]) for k, v in calibration.items()}
    options, note = dict(toolchain.options), ""
    if toolchain.runner == "qnn":
        options["whole"] = True
    answer, outputs = asked(python, toolchain, model, together, options, seen)
    if toolchain.runner == "qnn" and answer["error"]:
        note = _short(answer["error"])
        answer, outputs = asked(
            python, toolchain, model, together, {**options, "whole": False}, seen
        )
        note = f"not whole ({note})"
    note = "; ".join(filter(None, (note, answer["note"])))
    errors = {}
    if outputs:
        start = 0
        for what, arrays in case.inputs.items():
            number = len(next(iter(arrays.values())))
            part = [output[start : start + number] for output in outputs]
            errors[what] = _error(part, case.truths(form, arrays))
            start += number
    right = None
    if accuracy and outputs and case.task is not None and len(model.inputs) == 1:
        images = {k: v[:accuracy, None] for k, v in case.task.test_for(model).items()}
        right_answer, scores = asked(
            python, toolchain, model, images, options | {"whole": False}, calibration
        )
        if scores:
            answers = scores[0].reshape(len(scores[0]), -1).argmax(-1)
            right = float((answers == case.task.labels[:accuracy]).mean())
        note = note or right_answer["note"]
    return Row(
        case.name, form, toolchain.name, answer["version"], errors, note, answer["error"], right
    )


def _error(got: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """The largest over the outputs, by the largest value of the output."""
    worst = 0.0
    for value, truth in zip(got, truths, strict=True):
        if value.size != truth.size:
            return float("inf")  # of another size
        scale = max(float(np.abs(truth).max()), 1e-30)
        distance = np.abs(value.reshape(truth.shape).astype(np.float64) - truth).max()
        worst = max(worst, float(distance) / scale)
    return worst


def _short(error: str) -> str:
    known = {
        "QNN_COMMON_ERROR_MEM_ALLOC": "memory error",
        "This session contains graph nodes that are assigned to the default CPU EP": "CPU needed",
    }
    return next((short for text, short in known.items() if text in error), error[:120])


def table(rows: Sequence[Row], case: str) -> str:
    """A line for each form, a column for each toolchain."""
    here = [row for row in rows if row.case == case]
    columns = [t.name for t in TOOLCHAINS if any(r.toolchain == t.name for r in here)]
    lines = [
        f"### {case}",
        "",
        f"| form | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
    ]
    for form in [f for f in FORMS if any(r.form == f for r in here)]:
        found = {r.toolchain: r for r in here if r.form == form}
        cells = [_cell(found[c]) if c in found else "" for c in columns]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if row.refused:
        return f"**refused**: {_short(row.refused)}"
    numbers = ", ".join(_number(e) for e in row.errors.values())
    right = "" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"
    return "; ".join(filter(None, (numbers or "converted", right, row.note)))


def _number(error: float) -> str:
    if np.isinf(error):
        return "**another shape**"
    return "**not finite**" if np.isnan(error) else f"{error:.1e}"


def _kept(file: Path | None) -> list[Row]:
    if file is None or not file.is_file():
        return []
    return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [toolchain.name for toolchain in TOOLCHAINS]
    parser.add_argument("toolchains", nargs="*", metavar="TOOLCHAIN", help=", ".join(names))
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="layer, digits-vit, ...")
    parser.add_argument("--forms", nargs="+", metavar="FORM", choices=FORMS, help=", ".join(FORMS))
    parser.add_argument(
        "--accuracy", type=int, default=0, metavar="N", help="digits-vit on N test images"
    )
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where environments stay")
    parser.add_argument("--real", type=Path, metavar="FOLDER", default=default_cache())
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="rows as JSON")
    options = parser.parse_args()
    chosen = [t for t in TOOLCHAINS if not options.toolchains or t.name in options.toolchains]
    rows = _kept(options.output)
    with contextlib.ExitStack() as stack:
        cache = options.cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, make in cases(options.real).items():
            if options.cases and name not in options.cases:
                continue
            try:
                case = make()
            except Unavailable as error:
                print(f"{name}: skipped, {error}", file=sys.stderr)
                continue
            for toolchain in chosen:
                for row in _rows(cache, toolchain, case, options):
                    print(f"{row.case}, {row.form}, {row.toolchain}: {_cell(row)}", file=sys.stderr)
                    key = (row.case, row.form, row.toolchain)
                    rows = [r for r in rows if (r.case, r.form, r.toolchain) != key] + [row]
                    if options.output:
                        text = json.dumps([asdict(r) for r in rows], indent=1)
                        options.output.write_text(text, encoding="utf-8")
    for case_name in dict.fromkeys(row.case for row in rows):
        print(table(rows, case_name), end="\n\n")


def _rows(
    cache: Path, toolchain: Toolchain, case: Case, options: argparse.Namespace
) -> Iterator[Row]:
    try:
        python = environment(cache, toolchain)
    except Unavailable as error:
        yield Row(case.name, "original", toolchain.name, "", {}, "", f"not to be had: {error}")
        return
    known: dict[str, Row | None] = {}
    for form in options.forms or FORMS:
        word = case.chosen(toolchain.target, toolchain.kind) if form == CHOSEN else form
        if word not in known:
            known[word] = measured(python, toolchain, case, word, options.accuracy)
        row = known[word]
        if row is not None and form == CHOSEN:
            row = replace(row, form=CHOSEN, note="; ".join(filter(None, (word, row.note))))
        if row is not None:
            yield row


if __name__ == "__main__":
    main()
