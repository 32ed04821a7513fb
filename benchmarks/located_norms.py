"""How many norms normswap and other tools find in ONNX files, and what they wrongly take for one.

    pip install onnxslim onnxsim       # both optional
    python -m benchmarks.located_norms [--names NAME ...] [--forms FORM ...] [--cases N]
        [--tools TOOL ...] [--files FOLDER] [--json FILE] [--markdown]

in the repository's root. Two parts; ``--cases 0`` or ``--names none`` leaves one out:

* The zoo's ONNX files (``tests/zoo``), for which hooks on the running modules tell the true norms.
  A tool has found a norm if its file has one operator (``normswap locate``: a site) with the
  norm's values. *spelled out*: of those that are several operators in the file as it is.
* N generated spellings and look-alikes (``tests/locate``) of each group, for which float64 tells.

*wrong*: files whose outputs on the probe inputs are off by more than 1e-3 of the largest (2e-2 in
half precision; for generated files four times the original's own error, if that is more).
*broken*: files that ONNX Runtime does not run. *failed*: the tool raised or died. A broken or
failed file has no found norms. Every call is made in a process that may die. ``--files`` keeps the
exported files there for the next run: exporting takes longest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import (
    AS_IT_IS,
    TOOLS,
    Array,
    Case,
    Guard,
    Truth,
    distance,
    first_line,
    judged,
    run,
    versions,
)
from normswap.report.progress import Progress

SECONDS = 180  # for one call of a tool
GROUPS = 5  # of generated files
# What torch's exporters write for nn.LayerNorm, which other tools know best.
PLAIN: dict[str, tuple[Any, ...]] = {
    "mean": ("mean",),
    "deviation": ("shared",),
    "square": ("pow",),
    "average": ("mean",),
    "epsilon_first": (False,),
    "epsilon_how": ("initializer",),
    "epsilon_shape": ((),),
    "root": ("sqrt_div",),
    "order": ("plain",),
    "swap_mul": (False,),
    "swap_add": (False,),
    "affine": ("both",),
    "affine_shape": ("vector",),
    "affine_how": ("initializer",),
    "gamma": ("random",),
    "reader": ("none",),
}
SCALES = (1.0, 1e-2, 1e-4)  # of generated inputs; the last is all epsilon
_NOT_RUN = "ONNX Runtime does not run the original: {}"

# -- the zoo -------------------------------------------------------------------------------------


def zoo_cases(
    names: Sequence[str], forms: Sequence[str], files: Path | None
) -> Iterator[Case | tuple[str, str, str]]:
    """Each case, or (name, form, why there is none)."""
    from tests.zoo.captures import NotExportable, model_in

    for name, form in itertools.product(names, forms):
        try:
            proto = _file(name, form, files)
            yield _zoo_case(name, form, proto, model_in(name, form.endswith("half")))
        except NotExportable as reason:
            yield name, form, str(reason)


def _file(name: str, form: str, files: Path | None) -> onnx.ModelProto:
    """The exported file, from ``files`` where it is there. Raises NotExportable."""
    from tests.zoo.captures import NotExportable
    from tests.zoo.exports import exported

    if files is None:
        return exported(name, form)
    kept, why_not = files / f"{name}.{form}.onnx", files / f"{name}.{form}.txt"
    if why_not.exists():
        raise NotExportable(why_not.read_text())
    if not kept.exists():
        try:
            onnx.save(exported(name, form), kept)
        except NotExportable as reason:
            why_not.write_text(str(reason))
            raise
    return onnx.load(kept)


def _zoo_case(name: str, form: str, proto: onnx.ModelProto, zoo: Any) -> Case:
    from tests.zoo.captures import exporting, zoo_model

    norms = zoo_model(name).norms  # those in half precision are the same
    values: list[Array] = []
    handles = [
        zoo.module.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, y: values.append(y.detach().float().numpy().copy())
        )
        for path in {norm.path for norm in norms}
    ]
    inputs = _inputs(zoo)
    with exporting():
        results = zoo.module(**inputs)
    for handle in handles:
        handle.remove()
    truths = [
        Truth(n.site_name, v, n.kind, n.epsilon, n.role, n.tower)
        for n, v in zip(norms, values, strict=True)
    ]
    case = Case(name, form, proto, truths, family=_family(zoo))
    feeds = {key: tensor.numpy() for key, tensor in inputs.items()}
    tensors = results if isinstance(results, tuple) else (results,)
    outputs = zip(proto.graph.output, tensors, strict=True)
    expected = {output.name: tensor.detach().numpy() for output, tensor in outputs}
    try:
        own = run(proto, feeds)
    except Exception as error:
        case.note = _NOT_RUN.format(first_line(error))
    else:
        if any(distance(own[key], array) > case.tolerance for key, array in expected.items()):
            case.note = "the original computes something else than the module"
        expected = own
    case.probes.append((feeds, expected, dict.fromkeys(expected, case.tolerance)))
    return case


def _inputs(zoo: Any) -> dict[str, Any]:
    """The zoo's inputs as its files take them.

    TorchScript's files declare one batch size for all. A mask of ones is not read by transformers'
    running modules, and with it goes causality; files have both.
    """
    batch = min(tensor.shape[0] for tensor in zoo.inputs.values())
    inputs = {key: tensor[:batch].clone() for key, tensor in zoo.inputs.items()}
    if "attention_mask" in inputs:
        inputs["attention_mask"][0, -1] = 0
    return inputs


def _family(zoo: Any) -> str:
    if zoo.text:
        return "clip" if zoo.image else "bert"
    return "swin" if "swin" in zoo.name else "vit"


# -- generated files -----------------------------------------------------------------------------


def generated_cases(count: int) -> Iterator[Case]:
    """``count`` of each group, always the same.

    A look-alike is a spelling with one wrong step: every kind of wrong step in turn.
    """
    from hypothesis import strategies as st

    from tests.norms.lowered_spellings import lowered_spellings, two_norm_spellings
    from tests.norms.near_misses import MUTATIONS, near_miss, near_misses
    from tests.norms.spelling_plan import SIMPLE, plans
    from tests.norms.spellings import simple_spellings, spellings

    # ONNX Runtime runs BatchNorm in training mode wrongly once equal constants are merged, which
    # many tools do: its running mean is written over a shared constant.
    lowered = lowered_spellings().filter(lambda c: not c.description.startswith("batch_training"))
    plain = plans(**SIMPLE | PLAIN)
    groups: dict[str, list[Any]] = {
        "plain spellings": [spellings(**SIMPLE | PLAIN)],
        "exporters' spellings": [simple_spellings()],
        "any spellings": [spellings(), spellings(), lowered, two_norm_spellings()],
        "plain look-alikes": [st.builds(near_miss, plain, st.just(name)) for name in MUTATIONS],
        "any look-alikes": [near_misses(name) for name in MUTATIONS],
    }
    for group, strategies in groups.items():
        for number in range(count):
            drawn = _drawn(strategies[number % len(strategies)], number)
            yield _generated_case(f"{number}: {drawn.description}", group, drawn)


def _drawn(strategy: Any, seed: int) -> Any:
    """The second example for ``seed``: the first is the plainest, later ones vary those before."""
    import hypothesis

    drawn: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(case: Any) -> None:
        drawn.append(case)

    collect()
    return drawn[-1]


def _generated_case(name: str, form: str, drawn: Any) -> Case:
    from tests.norms.spelling_proof import Evaluated

    case, evaluated = Case(name, form, drawn.proto), Evaluated(drawn.proto)
    dtypes = {
        i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
        for i in drawn.proto.graph.input
    }
    for seed, scale in enumerate(SCALES[:2] if case.half else SCALES):
        raw = evaluated.feeds(scale, seed, offset=0.5)
        feeds = {key: array.astype(dtypes[key]) for key, array in raw.items()}
        true = evaluated({key: array.astype(np.float64) for key, array in feeds.items()})
        expected = {o.name: true[o.name] for o in drawn.proto.graph.output}
        try:
            own = run(drawn.proto, feeds)
        except Exception as error:
            own, case.note = expected, _NOT_RUN.format(first_line(error))
        for key, array in own.items():  # where the original overflows there is nothing to keep
            expected[key] = np.where(np.isfinite(array), expected[key], np.nan)
        allowed = {k: max(case.tolerance, 4 * distance(own[k], v)) for k, v in expected.items()}
        case.probes.append((feeds, expected, allowed))
        case.truths = case.truths or [
            Truth(f"{t.kind} {t.output}", true[t.output], t.kind, t.epsilon) for t in drawn.truths
        ]
    return case


# -- counting ------------------------------------------------------------------------------------


@dataclass
class Count:
    """Sums over files. ``spelled``: norms that are several operators in the file as it is."""

    files: int = 0
    norms: int = 0
    found: int = 0
    spelled: int = 0
    spelled_found: int = 0
    wrong: int = 0
    broken: int = 0
    failed: int = 0
    taken: int = 0  # files with more norms that are none than the file as it is
    taken_wrong: int = 0
    seconds: float = 0.0
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any], plain: dict[str, Any]) -> None:
        self.files += 1
        self.seconds += row.get("seconds", 0.0)
        self.norms += len(row["truths"])
        spelled = set(plain.get("missed", row["truths"]))
        self.spelled += len(spelled)
        if problem := row.get("problem"):
            self.broken += problem.startswith("broken")
            self.failed += not problem.startswith("broken")
            self.problems[problem.split(":")[0]] += 1
            return
        missed = set(row["missed"])
        self.found += len(row["truths"]) - len(missed)
        self.spelled_found += len(spelled - missed)
        wrong = row["error"] > 1
        self.wrong += wrong
        # a look-alike of a LayerNorm may be an InstanceNorm and be told so
        own = [kind for kind in row["kinds"] if kind in ("instance_norm", "group_norm")]
        more = len(row["strangers"]) - len(own) > len(plain.get("strangers", ()))
        self.taken += more
        self.taken_wrong += more and wrong

    @property
    def missing(self) -> bool:
        return bool(self.files) and self.problems["not installed"] == self.files


def counts(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Count]:
    """By tool and form, and by tool and 'all'."""
    plain = {(r["name"], r["form"]): r for r in rows if r["tool"] == AS_IT_IS}
    result: dict[tuple[str, str], Count] = {}
    for row in rows:
        for form in (row["form"], "all"):
            count = result.setdefault((row["tool"], form), Count())
            count.add(row, plain[row["name"], row["form"]])
    return result


def zoo_table(rows: Sequence[dict[str, Any]], **style: Any) -> Table:
    table, by = Table(title="norms found in the zoo's ONNX files", **style), counts(rows)
    forms = list(dict.fromkeys(row["form"] for row in rows))
    for column in ("", *forms, "all", "spelled out", "wrong", "broken", "failed", "s/file"):
        table.add_column(column)
    for tool in dict.fromkeys(row["tool"] for row in rows):
        total = by[tool, "all"]
        cells = [f"{by[tool, f].found}/{by[tool, f].norms}" for f in (*forms, "all")]
        cells += [f"{total.spelled_found}/{total.spelled}", str(total.wrong), str(total.broken)]
        cells += [str(total.failed), f"{total.seconds / total.files:.2f}"]
        table.add_row(tool, *(["not installed"] if total.missing else cells))
    return table


def generated_tables(rows: Sequence[dict[str, Any]], **style: Any) -> list[Table]:
    """Spellings, with the found norms; look-alikes, with the files in which a tool sees a norm."""
    spellings: list[dict[str, Any]] = []
    look_alikes: list[dict[str, Any]] = []
    for row in rows:
        (look_alikes if row["form"].endswith("look-alikes") else spellings).append(row)
    found = ("found", "wrong", "broken", "failed")
    taken = ("taken for a norm", "wrongly", "wrong", "broken", "failed")
    return [
        _generated_table("generated spellings", found, spellings, style),
        _generated_table("generated look-alikes", taken, look_alikes, style),
    ]


def _generated_table(
    title: str, heads: Sequence[str], rows: Sequence[dict[str, Any]], style: dict[str, Any]
) -> Table:
    table, by = Table(title=title, **style), counts(rows)
    forms = list(dict.fromkeys(row["form"] for row in rows))
    for column in ("", *(h for f in forms for h in (f"{f}: {heads[0]}", *heads[1:]))):
        table.add_column(column)
    for tool in dict.fromkeys(row["tool"] for row in rows):
        cells = []
        for c in (by[tool, form] for form in forms):
            seen = [f"{c.found}/{c.norms}"] if c.norms else [f"{c.taken}/{c.files}", c.taken_wrong]
            cells += [*seen, c.wrong, c.broken, c.failed]
        missing = by[tool, "all"].missing
        table.add_row(tool, *(["not installed"] if missing else map(str, cells)))
    return table


# -- the command ---------------------------------------------------------------------------------


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tests.zoo.exports import ONNX_FORMS
    from tests.zoo.models import FAMILIES

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--names", nargs="*", default=list(FAMILIES), help="models; 'none' for none"
    )
    parser.add_argument("--forms", nargs="*", default=list(ONNX_FORMS), choices=ONNX_FORMS)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--cases", type=int, default=200, help="generated files of each group")
    parser.add_argument("--files", type=Path, help="a folder to keep the exported files in")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--markdown", action="store_true", help="print the tables as markdown")
    options = parser.parse_args()
    if options.files:
        options.files.mkdir(parents=True, exist_ok=True)
    names = [] if options.names == ["none"] else options.names
    tools = list(dict.fromkeys([AS_IT_IS, *options.tools]))
    tables: list[Table] = []
    everything: dict[str, list[dict[str, Any]]] = {}
    style = {"box": box.MARKDOWN if options.markdown else box.HEAVY_HEAD}
    total = len(names) * len(options.forms)
    cases = zoo_cases(names, options.forms, options.files)
    if names:
        rows = everything["zoo"] = _rows(cases, tools, total)
        tables.append(zoo_table([r for r in rows if "tool" in r], **style))
        _keep(everything, options.json)
    if options.cases:
        generated = generated_cases(options.cases)
        rows = everything["generated"] = _rows(generated, tools, GROUPS * options.cases)
        tables += generated_tables(rows, **style)
        _keep(everything, options.json)
    for table in tables:
        Console(width=500 if options.markdown else 240).print(table)


def _keep(everything: dict[str, list[dict[str, Any]]], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps({"versions": versions()} | everything, indent=1))


def _rows(
    cases: Iterator[Case | tuple[str, str, str]], tools: Sequence[str], total: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with Progress(lines=True) as progress, Guard(judged, SECONDS) as guard:
        for done, case in enumerate(cases, start=1):
            if isinstance(case, tuple):
                name, form, why = case
                rows.append({"name": name, "form": form, "not exported": why})
                continue
            progress(done, total, f"{case.form} {case.name[:50]}")
            for tool in tools:
                found, problem = guard(tool, case)
                row = {"name": case.name, "form": case.form, "tool": tool, "note": case.note}
                truths = {"truths": [truth.name for truth in case.truths]}
                rows.append(row | truths | (found or {"problem": problem}))
    return rows


if __name__ == "__main__":
    main()
