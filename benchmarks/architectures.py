"""Locate and rewrite the norms of architectures that no test was made for.

    python -m benchmarks.architectures [NAME ...] [--limit SECONDS] [--json FILE]

in the repository's root. NAME: a glob on the names in ``tests/zoo/architectures.py``; all of them
by default. They are small and have random weights. Each runs in a process of its own with a limit
on its processor time: it is captured, its norms are located and compared with the norm modules that
run in it (*missed*: those that have a part in the results and were not located; *more*: located,
but no module), and the exact rewrites are held to the exact contract against it. Exit status 1
unless all norms are located, none too many, and all rewrites are within the contract and the limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import normswap as ns
from normswap.norms.site import Site
from tests.zoo.architectures import ARCHITECTURES, Architecture, build, floats

LIMIT = 60
_NORM = re.compile(r"(layer|rms|group|batch|instance)_?norm", re.IGNORECASE)
_NOISE = 3.0
REWRITES: dict[str, Callable[[ns.Model], Any]] = {
    "fused": lambda model: ns.swap(model, to="fused", lowering=ns.Lowering(target="generic")),
    "affine": ns.fold_affine,
    "fold": ns.fold,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", help="globs on the names of architectures")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of processor time each")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    globs = options.names or ["*"]
    names = [name for name in ARCHITECTURES if any(fnmatchcase(name, glob) for glob in globs)]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # before the processes are forked
    console, rows = Console(stderr=True), []
    for number, name in enumerate(names, 1):
        rows.append({"name": name, **_in_a_process(name, options.limit)})
        shown = {k: v for k, v in rows[-1].items() if k != "roles"}
        console.print(f"{number}/{len(names)}", *(f"{k}={v}" for k, v in shown.items()))
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    _show(rows)
    sys.exit(not rows or any(problem(row) for row in rows))


def problem(row: dict[str, Any]) -> bool:
    """Whether anything about an architecture is not as it should be."""
    return bool(row.get("failed") or row["missed"] or row["more"] or row["outside"])


def _in_a_process(name: str, limit: int) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(name, limit, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    try:
        row: dict[str, Any] = ours.recv()
    except EOFError:
        row = {"failed": f"ended without a result, after {limit} s or by a signal"}
    process.join()
    return {**row, "wall_s": round(time.monotonic() - start, 1)}


def _report(name: str, limit: int, connection: Connection) -> None:
    built = build(name)
    used = int(time.process_time())  # which the fork has from its parent
    resource.setrlimit(resource.RLIMIT_CPU, (used + limit, used + limit + 1))
    try:
        row = measured(built)
    except Exception as error:  # whatever it is, the others go on
        text = str(error).strip()
        row = {"failed": f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"}
    connection.send(row)
    connection.close()
    os._exit(0)


def measured(built: Architecture) -> dict[str, Any]:
    """What is located in an architecture, and how its rewrites compare."""
    start = time.process_time()
    ran = Counter(_calls(built))
    captured = time.process_time()
    model = ns.load(built.module, example_inputs=built.inputs)
    located = time.process_time()
    sites = ns.locate(model)
    found = Counter(_path(site) for site in sites)
    end = time.process_time()
    row: dict[str, Any] = {
        "norms": len(sites),
        "missed": [path for path in sorted((ran - found).elements()) if _is_live(built, path)],
        "more": sorted((found - ran).elements()),
        "outside": [],
        "roles": {site.name: site.role for site in sites},
    }
    row["seconds"] = {"capture": located - captured, "locate": end - located}
    for label, rewrite in REWRITES.items():
        begin = time.process_time()
        result = rewrite(model)
        row[label] = len(result.done)
        if result.modified and not ns.validate(model, result.model).passed:
            row["outside"].append(label)
        row["seconds"][label] = time.process_time() - begin
    row["seconds"] = {k: round(v, 1) for k, v in row["seconds"].items()}
    row["total_s"] = round(time.process_time() - start, 1)
    return row


def _path(site: Site) -> str:
    """The path of the module whose call a site is: later calls have a number behind it."""
    return site.name.partition("#")[0]


def _norm_modules(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that are a norm, by torch's classes or by what a library calls its own."""
    named = {p: m for p, m in module.named_modules() if _NORM.search(type(m).__name__)}
    inner = {p for p in named if any(other.startswith(f"{p}.") for other in named)}
    return {path: child for path, child in named.items() if path not in inner}


def _calls(built: Architecture) -> list[str]:
    """The path of each call of a norm module, in order."""
    calls: list[str] = []
    handles = [
        norm.register_forward_hook(lambda *_, path=path: calls.append(path))
        for path, norm in _norm_modules(built.module).items()
    ]
    _outputs(built)
    for handle in handles:
        handle.remove()
    return calls


def _is_live(built: Architecture, path: str) -> bool:
    """Whether what the norm yields has a part in the results."""
    plain = _outputs(built)
    norm = _norm_modules(built.module)[path]
    handle = norm.register_forward_hook(lambda _, __, y: y + _NOISE * torch.randn_like(y))
    noisy = _outputs(built)
    handle.remove()
    return not all(torch.equal(a, b) for a, b in zip(plain, noisy, strict=True))


def _outputs(built: Architecture) -> list[torch.Tensor]:
    torch.backends.mha.set_fastpath_enabled(False)  # which runs no submodules
    with torch.no_grad():
        return list(floats(built.module(**built.inputs)))


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="norms of architectures that no test was made for, random weights")
    columns = ("name", "norms", "missed", "more", *REWRITES, "outside", "total_s")
    for column in columns:
        table.add_column(column)
    for row in rows:
        if row.get("failed"):
            table.add_row(row["name"], row["failed"])
            continue
        cells = {k: len(row[k]) if k in ("missed", "more") else row[k] for k in columns}
        cells["outside"] = ", ".join(row["outside"])
        table.add_row(*(str(cells[column]) for column in columns))
    Console(width=140).print(table)
    bad = [row["name"] for row in rows if problem(row)]
    good = [row for row in rows if not problem(row)]
    print(f"{len(good)} of {len(rows)} architectures, {sum(r['norms'] for r in good)} norms")
    if bad:
        print(f"not as they should be: {', '.join(bad)}")


if __name__ == "__main__":
    main()
