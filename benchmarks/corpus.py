"""Does a change of the code change what the commands do? Digests of all they write, to compare.

    python -m benchmarks.corpus inputs FOLDER            # models and data, once
    python -m benchmarks.corpus run FOLDER BEFORE        # with the code before the change
    python -m benchmarks.corpus run FOLDER AFTER         # with the code after it
    python -m benchmarks.corpus compare BEFORE AFTER     # exit status 1 if anything differs

in the repository's root. ``run`` writes a JSON file per run: the exit status, what was printed, and
digests of the files written, part by part, so that ``compare`` can name what differs. It skips the
runs whose file is there. Of normswap it uses the command line alone; ``inputs`` also builds the
models of ``tests/zoo``. To run the code of another checkout from this file, put that checkout and
its ``cli`` into PYTHONPATH and start this file as a script.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LIMIT = 600  # seconds for one run, which takes a few on a machine with nothing else to do
SAMPLES = 16
TORCHSCRIPT = "torchscript-14"
TURNS = ("dynamo-18", "torchscript-17", "torchscript-14-half", "dynamo-20", "fx-decomposed")
# What fits run on: a CLIP, register tokens, a plain ViT, post-norm, convolutions with BatchNorms.
# Torch takes most of the time: of the last three, its graphs have a third of the runs each.
FITTED = ("hf_clip", "timm_dinov2_reg", "hf_vit", "torch_post_norm", "torch_conv_stem")
IN_FULL = 2

# -- what is run ----------------------------------------------------------------------------------
# A name, a colon and a command with IN, DATA and OUT for the model, data for it and a new file,
# whose names end in EXT; an indented line is the next command of the same run.

EVERYWHERE = """
inspect: inspect IN
inspect-json: inspect IN --json
inspect-mermaid: inspect IN --mermaid
fused: swap IN -o OUT --to fused --json
fused-affine: swap IN -o OUT --to fused --fold-affine --json
rmsnorm: swap IN -o OUT --to rmsnorm --json
rmsnorm-affine: swap IN -o OUT --to rmsnorm --fold-affine --json
fold: fold IN -o OUT --json
"""
WITH_DATA = """
batchnorm: swap IN -o OUT --to batchnorm --data DATA --json
batchnorm-copy: swap IN -o OUT --to batchnorm --fit copy --data DATA --json
batchnorm-moments: swap IN -o OUT --to batchnorm --fit moments --data DATA --fold --json
batchnorm-least-squares: swap IN -o OUT --to batchnorm --fit least-squares --data DATA --json
batchnorm-class: swap IN -o OUT --to batchnorm --tokens class --data DATA --fold --json
batchnorm-position: swap IN -o OUT --to batchnorm --tokens position --samples 9 --data DATA --json
batchnorm-ensure: swap IN -o OUT --to batchnorm --ensure 'sqnr>=15' --data DATA --json
batchnorm-ffn: swap IN -o OUT --to batchnorm --ffn-batchnorm --fold --data DATA --json
batchnorm-ffn-after: swap IN -o OUT --to batchnorm --ffn-batchnorm --ffn-position after --data DATA
batchnorm-sites: swap IN -o OUT --to batchnorm --sites 'tower=image role=pre_mlp' --data DATA --json
affine: swap IN -o OUT --to affine --data DATA --json
affine-class: swap IN -o OUT --to affine --tokens class --fold --data DATA --json
affine-position: swap IN -o OUT --to affine --tokens position --data DATA --json
affine-refit: swap IN -o OUT --to affine --refit-writers --fold --data DATA --json
affine-ensure: swap IN -o OUT --to affine --ensure 'cosine>=0.98' --fold --data DATA --json
onnxruntime-cpu: swap IN -o OUT --to fused --target onnxruntime-cpu --json
onnxruntime-cuda: swap IN -o OUT --to fused --target onnxruntime-cuda --json
openvino: swap IN -o OUT --to fused --target openvino --json
generic: swap IN -o OUT --to fused --target generic --json
fused-sites: swap IN -o OUT --to fused --sites role=pre_mlp
swap-then-fold: swap IN -o OUT --to batchnorm --ffn-batchnorm --data DATA
  inspect OUT --json
  fold OUT -o folded.EXT --json
  fold OUT -o folded-some.EXT --sites '*.0.*' --json
  validate OUT folded.EXT --json
exact: swap IN -o OUT --to rmsnorm --fold-affine
  validate IN OUT --json
  validate IN OUT --data DATA --report report.html --no-bench
  inspect OUT --json
  swap OUT -o again.EXT --to fused --json
approximate: swap IN -o OUT --to affine --data DATA --sites role=pre_mlp
  validate IN OUT --contract approximate --data DATA --json
  validate IN OUT --contract approximate --data DATA --report report.html --no-bench
bisect: swap IN -o OUT --to affine --data DATA --sites role=pre_mlp --fold
  validate IN OUT --bisect --reproducer shows.npz --json
wrong-options: swap IN -o OUT --to affine
  swap IN -o OUT --to rmsnorm --data DATA
  swap IN -o OUT --to layernorm
  swap IN -o OUT --to fused --sites 'nothing*' --json
  swap IN -o OUT --to batchnorm --data IN
  swap IN -o OUT --to affine --data DATA --ensure 'cosine>=2'
  swap IN -o OUT.txt --to fused
  swap missing.EXT -o OUT --to fused
  inspect IN --input-shape nothing=1x3x8x8
  validate IN DATA
"""
FROM_TORCH = """
export: export IN -o model.onnx
  inspect model.onnx --json
fused-to-onnx: swap IN -o model.onnx --to fused --json
distill: swap IN -o OUT --to batchnorm --ffn-batchnorm --data DATA
  distill OUT --teacher IN --data DATA -o taught.pt2 --steps 3 --batch 8 --json
"""


def runs_of(source: Path) -> dict[str, list[list[str]]]:
    """The commands of each run on an input file, by the run's name."""
    family, form, extension = source.name.split(".")
    row = re.compile(r"^([\w-]+): (.*(?:\n  .*)*)", re.MULTILINE)
    chosen = row.findall(EVERYWHERE)
    if family in FITTED and form in ("fx", TORCHSCRIPT):
        turn, rows = FITTED.index(family), row.findall(WITH_DATA)
        if form == "fx":
            rows += row.findall(FROM_TORCH)
            rows = rows if turn < IN_FULL else rows[turn % 3 :: 3]
        chosen += rows
    names = {"IN": f"inputs/{source.name}", "DATA": f"inputs/{family}.npz"}
    names |= {"OUT": f"out.{extension}", "EXT": extension}

    def filled(command: str) -> list[str]:
        return shlex.split(re.sub(r"\b(IN|DATA|OUT|EXT)\b", lambda word: names[word[0]], command))

    return {name: [filled(line) for line in commands.splitlines()] for name, commands in chosen}


# -- what is kept of a run ------------------------------------------------------------------------

_VOLATILE = ("versions", "machine", "seconds")  # keys in JSON


def short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def steady(value: Any) -> Any:
    """A text or a document without what depends on place, time and the libraries' versions."""
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [steady(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\b\d+\.\d+\.\d+(\+\w+)?\b", "VERSION", value.replace(os.getcwd(), "."))


def printed(text: str) -> Any:
    """JSON as such, other text by lines."""
    try:
        return steady(json.loads(text))
    except ValueError:
        return steady(text.splitlines())


def complaints(text: str) -> list[str]:
    """Our own lines on standard error, for others' come once a process. Loggers are called like
    modules, which may move."""
    ours = [line for line in text.splitlines() if re.match(r"normswap|Usage|Try|Error", line)]
    return [re.sub(r"^normswap(\.\w+)+:", "normswap:", steady(line)) for line in ours]


def digest(path: Path) -> Any:
    """What a file holds, part by part; hashes of the bytes."""
    content = path.read_bytes()
    if path.suffix == ".html":
        return printed(content.decode())
    if path.suffix == ".onnx":
        return {"sha256": short(content)} | _onnx_parts(content)
    return _members(content) if zipfile.is_zipfile(path) else short(content)


def _onnx_parts(content: bytes) -> dict[str, Any]:
    import onnx

    model = onnx.load_from_string(content)

    def bytes_of(message: Any) -> str:
        return short(message.SerializeToString(deterministic=True))

    graph = model.graph
    parts: dict[str, Any] = {
        "nodes": [f"{n.domain}:{n.op_type} {bytes_of(n)}" for n in graph.node],
        "initializer order": short("\n".join(t.name for t in graph.initializer).encode()),
        "initializers": {
            t.name: f"{t.data_type} {list(t.dims)} {bytes_of(t)}" for t in graph.initializer
        },
        "metadata": {p.key: p.value for p in [*model.metadata_props, *graph.metadata_props]},
        "opsets": {o.domain: o.version for o in model.opset_import},
        "functions": {f.name: bytes_of(f) for f in model.functions},
        "producer": steady(f"{model.producer_name} {model.producer_version} {graph.name}"),
        "ir version": model.ir_version,
    }
    for field in ("input", "output", "value_info"):
        parts[field] = {v.name: bytes_of(v) for v in getattr(graph, field)}
    return parts


def _members(content: bytes) -> dict[str, Any]:
    """Of an archive, or of one within it, as .pt files are."""
    parts: dict[str, Any] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        parts["order"] = short("\n".join(names).encode())
        for name in names:
            member = archive.read(name)
            if name.endswith(".json"):
                # torch writes the addresses of graphs in memory: "graph_id", in quoted JSON
                member = re.sub(rb'(graph_id\\?": )\d+', rb"\g<1>0", member)
                parts[name] = {"sha256": short(member), "parts": _outline(json.loads(member), 4)}
            elif zipfile.is_zipfile(io.BytesIO(member)):
                parts[name] = _members(member)
            elif not name.endswith("/serialization_id"):  # a hash of the others, addresses and all
                parts[name] = short(member)
    return parts


def _outline(value: Any, depth: int) -> Any:
    if isinstance(value, dict) and depth:
        return {key: _outline(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list) and depth:
        return [f"{_label(inner)} {_outline(inner, 0)}" for inner in value]
    return short(json.dumps(value).encode())


def _label(value: Any) -> str:
    return str(value.get("target") or value.get("name") or "") if isinstance(value, dict) else ""


# -- running --------------------------------------------------------------------------------------


def record(inputs: Path, output: Path, source: str, names: Sequence[str]) -> int:
    """Makes these runs on one input, in this process, and returns how many."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    runs = runs_of(inputs / source)
    for name in names:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path("inputs").symlink_to(inputs)
            signal.alarm(LIMIT)
            try:
                text = json.dumps(_kept(runs[name]), indent=0)
            except Exception as error:  # of any library
                text = json.dumps({"error": steady(f"{type(error).__name__}: {error}")})
            finally:
                signal.alarm(0)
        target = output / f"{source} {name}.json"
        partial = target.with_suffix(".partial")
        partial.write_text(text)
        partial.rename(target)
    return len(names)


def _kept(commands: Sequence[list[str]]) -> Any:
    kept: dict[str, Any] = {"steps": [_step(arguments) for arguments in commands]}
    written = sorted(path for path in Path().iterdir() if path.is_file())
    kept["files"] = {path.name: digest(path) for path in written}
    text = json.dumps(kept)
    for path in written:
        if path.suffix == ".pt2":  # reports give its hash: see ``_members`` for why that varies
            text = text.replace(hashlib.sha256(path.read_bytes()).hexdigest(), f"hash of {path}")
    return json.loads(text)


def _step(arguments: list[str]) -> dict[str, Any]:
    from click.testing import CliRunner

    from normswap_cli.main import main

    sys.argv = ["normswap", *arguments]  # reports repeat the command
    result = CliRunner().invoke(main, arguments)
    step = {"command": shlex.join(arguments), "exit": result.exit_code}
    step |= {"stdout": printed(result.stdout), "stderr": complaints(result.stderr)}
    if result.exception and not isinstance(result.exception, SystemExit):
        step["exception"] = steady(f"{type(result.exception).__name__}: {result.exception}")
    return step


# -- comparing ------------------------------------------------------------------------------------


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where two documents differ, and how."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            inner = f"{path} > {key}" if path else key
            if key not in a or key not in b:
                yield inner, "only " + ("before" if key in a else "after")
            else:
                yield from differences(a[key], b[key], inner)
    elif isinstance(a, list) and isinstance(b, list):
        texts = [[json.dumps(item) for item in items] for items in (a, b)]
        matcher = difflib.SequenceMatcher(None, texts[0], texts[1], autojunk=False)
        for what, a1, a2, b1, b2 in matcher.get_opcodes():
            if what == "replace" and a2 - a1 == b2 - b1:
                for before, after in zip(a[a1:a2], b[b1:b2], strict=True):
                    yield from differences(before, after, f"{path} > []")
            elif what != "equal":
                yield from ((f"{path} > []", f"- {text}") for text in texts[0][a1:a2])
                yield from ((f"{path} > []", f"+ {text}") for text in texts[1][b1:b2])
    elif a != b:
        yield path, f"{json.dumps(a)} -> {json.dumps(b)}"


def kind_of(path: str, what: str) -> tuple[str, str]:
    """Both without names of things, numbers and hashes; of a page any change is one kind."""
    named = r"(initializers|input|output|value_info|functions|tensor_values) > .*"
    path = re.sub(r"\w*\d\w*", "#", re.sub(named, r"\1 > #", path))
    if ".html > " in path:
        return path, "a line"
    number, names = r"-?\b\d+(\.\d+)?(e[+-]\d+)?\b", r"'[^']*'|[\w/]+(?:[./][\w/]+)+"
    kept = re.search(r"torch\.ops\.[\w.]+", what)  # what is called is no name of a thing
    what = re.sub(r"\w*\d\w*", "#", re.sub(number, "#", re.sub(names, "#", what)))
    return path, f"{kept[0]} {what}" if kept else what


# -- the commands ---------------------------------------------------------------------------------


def _progress() -> Progress:
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=Console(stderr=True))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Prove that a change of the code changed nothing in what the commands do."""
    os.environ["OMP_NUM_THREADS"] = "1"  # sums in one order; for the processes that are started


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def inputs(folder: Path) -> None:
    """Write the zoo's models, as torch captures and in ONNX, and calibration data to FOLDER."""
    import numpy as np
    import onnx

    import normswap
    from tests.zoo.exports import ONNX_FORMS, NotExportable, exported, model_as, zoo_model
    from tests.zoo.models import FAMILIES

    folder.mkdir(parents=True, exist_ok=True)
    left: list[str] = []
    with _progress() as progress:
        task = progress.add_task("", total=len(FAMILIES))
        for number, family in enumerate(FAMILIES):
            progress.update(task, description=family, advance=1)
            for form in ("fx", TORCHSCRIPT, TURNS[number % len(TURNS)]):
                path = folder / f"{family}.{form}.{'onnx' if form in ONNX_FORMS else 'pt2'}"
                try:
                    if path.exists():
                        continue
                    if form in ONNX_FORMS:
                        onnx.save(exported(family, form), path)
                    else:
                        normswap.save(model_as(family, form), path)
                except (NotExportable, normswap.NormswapError) as reason:
                    left.append(f"{family}.{form}: {reason}")
            if family in FITTED:
                examples = {name: x.numpy() for name, x in zoo_model(family).inputs.items()}
                np.savez(folder / f"{family}.npz", **_samples(examples))
    click.echo(
        f"{len([*folder.glob('*.onnx')])} ONNX files, {len([*folder.glob('*.pt2')])} of torch"
    )
    click.echo("\n".join(["not exported:", *left] if left else []))


def _samples(examples: Mapping[str, Any]) -> dict[str, Any]:
    """Random data like the examples; of texts other words, with the same ends and masks."""
    import numpy as np

    random = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for name, example in examples.items():
        values = np.resize(example, (SAMPLES, *example.shape[1:]))
        if example.dtype.kind == "f":
            values = np.asarray(random.standard_normal(values.shape), example.dtype)
        elif example.max() > 1:
            words = (values > 0) & (values < example.max())
            values = np.where(words, random.integers(1, example.max() - 1, values.shape), values)
        made[name] = values
    return made


@main.command()
@click.argument("inputs", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--jobs", default=2, show_default=True, help="Processes of one thread each.")
@click.option("--only", default="", help="Only runs with this in their name.")
def run(inputs: Path, output: Path, jobs: int, only: str) -> None:
    """Run the commands on INPUTS, and write to OUTPUT what became of each."""
    import normswap

    click.echo(f"normswap is {Path(normswap.__file__).parent}", err=True)
    inputs, output, start = inputs.resolve(), output.resolve(), time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    todo: dict[str, list[str]] = {}
    for source in sorted([*inputs.glob("*.pt2"), *inputs.glob("*.onnx")]):
        names = [name for name in runs_of(source) if only in f"{source.name} {name}"]
        todo[source.name] = [n for n in names if not (output / f"{source.name} {n}.json").exists()]
    spawned = multiprocessing.get_context("spawn")
    with _progress() as progress, ProcessPoolExecutor(jobs, spawned) as pool:
        task = progress.add_task("", total=sum(map(len, todo.values())))
        longest_first = sorted(todo.items(), key=lambda item: -len(item[1]))
        pending = {pool.submit(record, inputs, output, s, n): s for s, n in longest_first if n}
        for done in as_completed(pending):
            progress.update(task, description=pending[done], advance=done.result())
    cpu = os.times().children_user + os.times().children_system
    click.echo(f"{time.monotonic() - start:.0f} s, {cpu / 60:.1f} CPU-minutes", err=True)


@main.command()
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("after", type=click.Path(exists=True, path_type=Path))
@click.option("--only", default="", help="Only runs with this in their name.")
def compare(before: Path, after: Path, only: str) -> None:
    """List what differs, one line for each kind of difference. Exit status 1 if anything does."""
    names = sorted({p.stem for f in (before, after) for p in f.glob("*.json") if only in p.stem})
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    different = set()
    for name in names:
        files = [folder / f"{name}.json" for folder in (before, after)]
        documents = [json.loads(f.read_text()) if f.exists() else {} for f in files]
        for path, what in differences(*documents):
            kinds[kind_of(path, what)].append(f"{name}: {path}: {what[:400]}")
            different.add(name)
    for (path, what), found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        click.echo(f"{len(found)} x {path}: {what[:200]}\n    as in {found[0]}")
    click.echo(f"{len(names)} runs, {len(different)} differ")
    sys.exit(bool(different) or not names)


if __name__ == "__main__":
    main()
