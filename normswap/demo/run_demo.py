"""``run_demo``: the whole way on both models, as torch graphs and as ONNX."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from normswap.demo.demo_results import DemoResults, VariantResults, readme
from normswap.demo.jobs import run_jobs
from normswap.demo.output import Output
from normswap.demo.tasks import Task, tasks
from normswap.errors import NormswapError
from normswap.extras import install_command
from normswap.model import Progress
from normswap.runtimes.machine import processors

_STEPS = 5  # announced for each model in each kind of graph
JOBS = [  # (model, kind of graph): the longest first, since two run at a time
    ("digits-clip", "onnx"),
    ("digits-clip", "fx"),
    ("digits-vit", "onnx"),
    ("digits-vit", "fx"),
]


def run_demo(
    folder: Path, progress: Progress | None = None, processes: int | None = None
) -> DemoResults:
    """Runs it all and writes models, reports, ``results.json`` and ``README.md`` to ``folder``.

    ``processes``: as many models at a time, by default one for each processor.
    Raises NormswapError if scikit-learn or transformers are missing, or for a folder that cannot
    be written.
    """
    started = time.perf_counter()
    known = {task.name: task for task in tasks()}
    if importlib.util.find_spec("transformers") is None:  # before anything is written
        raise NormswapError(f"the demo: needs transformers; {install_command('demo')}")
    output = Output(folder)
    total, done = len(JOBS) * _STEPS, 0

    def announce(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        done += 1

    work = partial(_done, folder)
    jobs = [(known[name], kind) for name, kind in JOBS]
    found = run_jobs(work, jobs, processes or min(processors(), len(jobs)), announce)
    found.sort(key=lambda result: (result[0].model != "digits-vit", result[0].kind))
    for _, files in found:
        output.files |= files
    variants = [variant for variant, _ in found]
    results = DemoResults(folder, time.perf_counter() - started, variants, output.files)
    page = readme(results)
    output.write_text(folder / "README.md", page, "this list, and the results as a table")
    output.write_json(folder / "results.json", results.to_json(), "the results")
    if progress is not None:
        progress(total, total, "done")
    return results


def _done(
    folder: Path, job: tuple[Task, str], announce: Callable[[str], None]
) -> tuple[VariantResults, dict[str, str]]:
    # Not above: what starts the processes needs no torch, which takes seconds to import.
    from normswap.demo.variant import run_variant

    return run_variant(folder, *job, announce)
