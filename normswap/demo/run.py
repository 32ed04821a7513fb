"""The whole way on both models, as torch graphs and as ONNX."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from normswap.demo.output import Output
from normswap.demo.readme import readme
from normswap.demo.results import DemoResults, VariantResults
from normswap.demo.study import Study
from normswap.demo.tasks import Task, tasks
from normswap.demo.timing import fixed_threads
from normswap.demo.variants import onnx_variants, torch_variants
from normswap.io.sources.packages import import_extra
from normswap.model import Progress


def run_demo(folder: Path, progress: Progress | None = None) -> DemoResults:
    """Runs it all and writes models, reports, ``results.json`` and ``README.md`` to ``folder``.

    Raises NormswapError if scikit-learn or transformers are missing, or for a folder that cannot
    be written.
    """
    started = time.perf_counter()
    chosen = tasks()
    import_extra("transformers", "the demo")  # before anything is written
    output = Output(folder)
    total, done = len(chosen) * 2 * (1 + Study.STEPS), 0

    def announce(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    with fixed_threads():
        variants = [v for task in chosen for v in _both_kinds(task, output, announce)]
    results = DemoResults(folder, time.perf_counter() - started, variants, output.files)
    output.write_text("README.md", readme(results), "this list, and the results as a table")
    output.write_json("results.json", results.to_json(), "the results")
    if progress is not None:
        progress(total, total, "done")
    return results


def _both_kinds(
    task: Task, output: Output, announce: Callable[[str], None]
) -> Iterator[VariantResults]:
    announce(f"{task.name}: capturing in torch")
    source, original, spelled_out = torch_variants(task.folder)
    study = Study(task, original, spelled_out, output, announce)
    study.keep(spelled_out, "spelled-out", "the same with every LayerNorm spelled out")
    yield study.run()

    announce(f"{task.name}: exporting to ONNX")
    files = {name: output.path(task.name, "onnx", name) for name in ("original", "spelled-out")}
    original, spelled_out = onnx_variants(source, original, *files.values())
    output.wrote(files["original"], "exported by torch's current exporter, opset 20")
    output.wrote(files["spelled-out"], "exported by torch's older one, opset 14")
    yield Study(task, original, spelled_out, output, announce).run()
