"""The fused norms against eager torch, Inductor and plain copies of the same bytes.

    python -m benchmarks.kernels [--device cpu|cuda] [--widths N ...] [--batches N ...]
        [--dtypes NAME ...] [--operators NAME ...] [--threads N] [--rounds N] [--quick]
        [--json FILE]

in the repository's root: tokens of ViT-S, B and L at several batch sizes. On the CPU everything is
measured twice, each time in a process of its own: with the default allocator, and with one that
keeps its memory (*kept*), since eager torch spends much of its time in pages that are new again.

Each number is the median of paired ratios, with the quartiles behind it: in every round each
contender has its turn. *in place* and *out of place* are the operator's time by that
of torch's calls (an addition and a norm, for ``add_``); *Inductor* and *copies* the operator in
place by torch.compile's time and by plain copies of as many bytes; *backward* the gradients by
those of torch's calls. *bandwidth* is the share of the measured copy bandwidth of large tensors
that the operator in place has. On CUDA, other projects' kernels have columns where they are
installed: out of place by theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.history.record import Figure, Figures, add_record_option, write_record
from benchmarks.paired import Spread, interleaved, ratio

TOKENS = {384: 197, 768: 197, 1024: 257}
OPERATORS = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "1099511627776",
    "MALLOC_TOP_PAD_": "67108864",
}
EPS = 1e-6
_LARGE = 1 << 28
Work = Callable[[], object]


def contenders(operator: str, x: Any, parameters: list[Any]) -> dict[str, Work]:
    """What is timed, by name; each runs on buffers of its own."""
    import torch
    from torch.nn import functional

    import normswap.lowering.kernels  # noqa: F401  registers the operators

    shape = x.shape[-1:]
    added = operator.startswith("add")
    weight, bias = parameters

    def norm(value: Any, weight: Any, bias: Any) -> Any:
        if "layer" in operator:
            return functional.layer_norm(value, shape, weight, bias, EPS)
        return functional.rms_norm(value, shape, weight, EPS)

    def torchs(branch: Any, residual: Any, weight: Any, bias: Any) -> Any:
        total = residual + branch
        return norm(total, weight, bias), total

    constants = (weight, bias) if "layer" in operator else (weight,)
    rest = (*constants, None, EPS) if added else (*constants, EPS)
    call = getattr(torch.ops.normswap, operator).default
    write = getattr(torch.ops.normswap, f"{operator}_").default
    inputs = [x, x.flip(0).contiguous()] if added else [x]
    buffers, targets = ([t.clone() for t in inputs] for _ in range(2))
    plain = torchs if added else norm
    torch._dynamo.reset()
    compiled = torch.compile(plain, dynamic=False)

    def copies() -> None:
        for target, source in zip(targets, inputs, strict=True):
            target.copy_(source)

    works: dict[str, Work] = {
        "in place": lambda: write(*buffers, *rest),
        "out of place": lambda: call(*inputs, *rest),
        "eager": lambda: plain(*inputs, weight, bias),
        "inductor": lambda: compiled(*inputs, weight, bias),
        "copies": copies,
        **others(operator, inputs, weight, bias),
    }
    return works


def gradients(operator: str, x: Any, parameters: list[Any]) -> dict[str, Work]:
    """The backward passes of ours and of torch's calls."""
    import torch
    from torch.nn import functional

    shape = x.shape[-1:]
    added, layer = operator.startswith("add"), "layer" in operator
    inputs = [x, x.flip(0).contiguous()] if added else [x]
    given = [*inputs, *(parameters if layer else parameters[:1])]
    ours, theirs = ([t.detach().clone().requires_grad_() for t in given] for _ in range(2))
    rest = (None, EPS) if added else (EPS,)
    found = getattr(torch.ops.normswap, operator)(*ours, *rest)
    value = theirs[0] + theirs[1] if added else theirs[0]
    constants = theirs[len(inputs) :]
    if layer:
        normed = functional.layer_norm(value, shape, *constants, EPS)
    else:
        normed = functional.rms_norm(value, shape, *constants, EPS)
    outputs = [normed, value] if added else [normed]
    grads = [torch.randn_like(x) for _ in outputs]

    def of(results: Any, tensors: Any) -> Work:
        return lambda: torch.autograd.grad(results, tensors, grads, retain_graph=True)

    return {
        "backward": of(found if added else [found], ours),
        "eager backward": of(outputs, theirs),
    }


def others(operator: str, inputs: list[Any], weight: Any, bias: Any) -> dict[str, Work]:
    """Other projects' kernels, on CUDA, where they are installed."""
    works: dict[str, Work] = {}
    if not inputs[0].is_cuda:
        return works
    if operator in ("layer_norm", "rms_norm"):
        try:
            from liger_kernel.ops.layer_norm import LigerLayerNormFunction
            from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        except ImportError:
            pass
        else:
            if operator == "layer_norm":
                works["Liger"] = lambda: LigerLayerNormFunction.apply(*inputs, weight, bias, EPS)
            else:
                works["Liger"] = lambda: LigerRMSNormFunction.apply(*inputs, weight, EPS)
    try:
        import quack
    except ImportError:
        pass
    else:
        if operator == "rms_norm":
            works["quack"] = lambda: quack.rmsnorm(inputs[0], weight, eps=EPS)
    try:
        from flash_attn.ops.triton.layer_norm import layer_norm_fn
    except ImportError:
        pass
    else:
        shift = bias if "layer" in operator else None
        options = {"eps": EPS, "is_rms_norm": "rms" in operator}
        if operator.startswith("add"):
            options |= {"residual": inputs[1], "prenorm": True}
        works["flash-attn"] = lambda: layer_norm_fn(inputs[0], weight, shift, **options)
    return works


def timed(works: dict[str, Work], rounds: int, synchronize: Work) -> dict[str, list[float]]:
    """Seconds of one call of each, in every round."""
    return interleaved({n: _clocked(w, synchronize) for n, w in works.items()}, rounds, 1)


def _clocked(work: Work, synchronize: Work) -> Callable[[], float]:
    def clocked() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize()
        return (time.perf_counter() - start) / repeats

    repeats = 3
    clocked()  # compiles
    # Short calls are timed together, or the clock and its caller would show.
    repeats = max(1, min(200, int(1e-3 / clocked())))
    return clocked


def compared(above: list[float], below: list[float]) -> list[float]:
    """Median and quartiles of the paired ratios."""
    found = ratio(above, below)
    return [round(value, 3) for value in (found.median, found.low, found.high)]


def bandwidth(device: str, synchronize: Work) -> float:
    """Bytes a second that a copy of a large tensor reads and writes."""
    import torch

    source = torch.ones(_LARGE // 4, device=device)
    target = torch.ones_like(source)
    found = timed({"copy": lambda: target.copy_(source)}, 7, synchronize)["copy"]
    return 2 * _LARGE / min(found)


def measured(task: dict[str, Any]) -> None:
    """Prints one JSON document a line: a row of every operator, width, batch and dtype."""
    import torch

    device = task["device"]
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    peak = bandwidth(device, synchronize)
    about = {"threads": torch.get_num_threads(), "copy_gb_s": round(peak / 1e9, 1)}
    print(json.dumps({"about": about}), flush=True)
    for operator, width, batch, dtype in cases(task):
        torch.manual_seed(0)
        x = torch.randn(batch, TOKENS[width], width, device=device, dtype=getattr(torch, dtype))
        parameters = list(torch.rand(2, width, device=device, dtype=x.dtype))
        with torch.no_grad():
            works = contenders(operator, x, parameters)
            times = timed(works, task["rounds"], synchronize)
        backward = timed(gradients(operator, x, parameters), task["rounds"], synchronize)
        mine, streams = times["in place"], 4 if operator.startswith("add") else 2
        row = {
            "operator": operator,
            "shape": list(x.shape),
            "dtype": dtype,
            "allocator": task["allocator"],
            "us": {n: round(1e6 * statistics.median(t), 1) for n, t in (times | backward).items()},
            "in place": compared(mine, times["eager"]),
            "out of place": compared(times["out of place"], times["eager"]),
            "Inductor": compared(mine, times["inductor"]),
            "copies": compared(mine, times["copies"]),
            "backward": compared(backward["backward"], backward["eager backward"]),
            "bandwidth": round(streams * x.nbytes / statistics.median(mine) / peak, 3),
        }
        for name in ("Liger", "quack", "flash-attn"):
            if name in times:
                row[name] = compared(times["out of place"], times[name])
        print(json.dumps(row), flush=True)


def cases(task: dict[str, Any]) -> list[tuple[str, int, int, str]]:
    return [
        (operator, width, batch, dtype)
        for operator in task["operators"]
        for dtype in task["dtypes"]
        for width in task["widths"]
        for batch in task["batches"]
    ]


def alone(task: dict[str, Any], progress: Callable[[int, int, str], None]) -> list[dict[str, Any]]:
    """The rows of a process of its own, which has the task's allocator from its start."""
    environment = os.environ | (KEPT if task["allocator"] == "kept" else {})
    command = [sys.executable, "-m", "benchmarks.kernels", "--worker", json.dumps(task)]
    rows, count = [], len(cases(task))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(json.loads(line))
            progress(len(rows) - 1, count, f"{task['allocator']} allocator")
    if process.returncode:
        raise SystemExit(f"the measuring process ended with status {process.returncode}")
    return rows


def figures(rows: list[dict[str, Any]]) -> Figures:
    """What a record keeps of ``rows``: the time by that of torch's calls."""
    return {
        f"{row['operator']} {'x'.join(map(str, row['shape']))} {row['dtype']}, "
        f"{row['allocator']}: {name}": Figure.of(Spread(*row[name]), "")
        for row in rows
        for name in ("in place", "out of place", "backward")
        if name in row
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--operators", nargs="*", default=list(OPERATORS), choices=OPERATORS)
    parser.add_argument("--widths", nargs="*", type=int, default=list(TOKENS), choices=TOKENS)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 64])
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--quick", action="store_true", help="few shapes and rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    add_record_option(parser)
    options = parser.parse_args()
    if options.worker:
        measured(options.worker)
        return
    from normswap.report.progress import Progress

    task = {
        k: v for k, v in vars(options).items() if k not in ("json", "worker", "quick", "record")
    }
    if options.quick:
        quick = {"operators": ["add_layer_norm"], "widths": [384, 768], "batches": [1, 8]}
        task |= quick | {"rounds": 11}
    allocators = ("default", "kept") if options.device == "cpu" else ("default",)
    rows, about = [], {}
    with Progress(lines=True) as progress:
        for allocator in allocators:
            first, *found = alone(task | {"allocator": allocator}, progress)
            about |= first["about"]
            rows += found
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    show(about, rows)
    write_record(options.record, "kernels", figures(rows))


def show(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    ratios = ["in place", "out of place", "Inductor", "copies", "backward"]
    ratios += [n for n in ("Liger", "quack", "flash-attn") if any(n in row for row in rows)]
    title = f"{about['threads']} threads, copies at {about['copy_gb_s']} GB/s"
    table = Table(title=title, box=box.MARKDOWN)
    for name in ("operator", "shape", "dtype", "allocator", "in place µs", *ratios, "bandwidth"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [row["operator"], "x".join(map(str, row["shape"])), row["dtype"], row["allocator"]]
        cells.append(f"{row['us']['in place']:.0f}")
        for name in ratios:
            middle, low, high = row.get(name, (0, 0, 0))
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})" if name in row else "")
        table.add_row(*cells, f"{row['bandwidth']:.2f}")
    Console(width=240).print(table)


if __name__ == "__main__":
    main()
