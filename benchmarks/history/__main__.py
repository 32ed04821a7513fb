"""How what benchmarks measured has changed: draws it over time, and names what got worse.

    python -m benchmarks.history [BENCHMARK ...] [--folder FOLDER] [-o FILE.png|FILE.svg] [--all]

in the repository's root, of the runs that were kept with ``--record``. The last run of a benchmark
on a machine, with as many threads, is held against the one before. A figure got worse where its
lower quartile is above the upper one of then, and its median by more than 5 %. *times* is the ratio
of the medians. ``--all`` also prints what got better or stayed. In the picture every line is a
figure by its first value there. Exit status 1 if anything got worse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.history.record import FOLDER, Figure, Record, records

_SHOWS = 0.05  # of the median before, for a difference
_NAMED = 8  # lines of a plot that have a name
_WORDS = {True: "worse", False: "better", None: "as it was"}


@dataclass(frozen=True)
class Change:
    """A figure in the last run and in the one before. ``worse``: None where no difference shows."""

    name: str
    before: Figure
    after: Figure

    @property
    def times(self) -> float:
        return self.after.median / self.before.median if self.before.median else float("inf")

    @property
    def worse(self) -> bool | None:
        grown = self.after.median - self.before.median
        if abs(grown) <= _SHOWS * abs(self.before.median):
            return None
        if grown > 0:
            return True if self.after.low > self.before.high else None
        return False if self.after.high < self.before.low else None


def changes(before: Record, after: Record) -> list[Change]:
    """Of the figures that both runs have, those that got worst first."""
    both = [name for name in after.figures if name in before.figures]
    found = [Change(name, before.figures[name], after.figures[name]) for name in both]
    return sorted(found, key=lambda change: -change.times)


def runs_by_place(found: Sequence[Record]) -> dict[tuple[str, str, int], list[Record]]:
    """The runs that may be held against each other, the oldest first."""
    places: dict[tuple[str, str, int], list[Record]] = {}
    for record in found:
        places.setdefault(record.place, []).append(record)
    return places


def table(runs: Sequence[Record], everything: bool) -> tuple[str, bool]:
    """What changed in the last of ``runs``, in Markdown; and whether anything got worse."""
    last = runs[-1]
    lines = [f"{last.benchmark}, {last.machine}, {last.threads} threads: {_called(last)}"]
    if len(runs) == 1:
        return f"{lines[0]}, the only run", False
    before = runs[-2]
    lines[0] += f" against {_called(before)}"
    versions = [
        f"{name} {before.versions.get(name, 'none')} to {version}"
        for name, version in last.versions.items()
        if before.versions.get(name) != version
    ]
    lines += [f"other versions: {', '.join(versions)}"] if versions else []
    found = changes(before, last)
    shown = [c for c in found if everything or c.worse]
    if not shown:
        return "\n".join([*lines, f"none of {len(found)} figures got worse"]), False
    lines += ["", "| figure | before | now | times | |", "|---|---|---|---|---|"]
    for c in shown:
        cells = [c.name, _text(c.before), _text(c.after), f"{c.times:.2f}", _WORDS[c.worse]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines), any(c.worse for c in found)


def _called(record: Record) -> str:
    commit = record.commit or "no commit"
    return f"{record.when[:16].replace('T', ' ')} ({commit}{', edited' * record.edited})"


def _text(figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    return f"{figure.median:.3g} ({figure.low:.3g} to {figure.high:.3g}){unit}"


def draw(places: Sequence[Sequence[Record]], path: Path) -> None:
    """One plot for each benchmark on each machine, over time."""
    import matplotlib

    matplotlib.use("Agg")
    from datetime import datetime

    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(places), 1, figsize=(10, 4 * len(places)), squeeze=False, layout="constrained"
    )
    for plot, runs in zip(axes[:, 0], places, strict=True):
        names = list(dict.fromkeys(name for run in runs for name in run.figures))
        ends: dict[str, float] = {}
        for name in names:
            own = [run for run in runs if name in run.figures]
            first = own[0].figures[name].median or 1.0
            ends[name] = own[-1].figures[name].median / first
        named = sorted(names, key=lambda n: -ends[n])[:_NAMED]
        for name in names:
            own = [run for run in runs if name in run.figures]
            first = own[0].figures[name].median or 1.0
            plot.plot(
                [datetime.fromisoformat(run.when) for run in own],
                [run.figures[name].median / first for run in own],
                marker="o",
                label=name if name in named else None,
                alpha=1.0 if name in named else 0.3,
            )
        plot.axhline(1.0, color="gray", linewidth=0.8)
        plot.set_title(f"{runs[0].benchmark}: {runs[0].machine}, {runs[0].threads} threads")
        plot.set_ylabel("times the first run")
        plot.tick_params(axis="x", rotation=20)
        plot.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to draw it")
    parser.add_argument("--all", action="store_true", help="also what did not get worse")
    given = parser.parse_args(arguments)
    found = [
        r for r in records(given.folder) if r.benchmark in given.benchmarks or not given.benchmarks
    ]
    if not found:
        sys.exit(f"{given.folder}: there is no record; run a benchmark with --record")
    places = list(runs_by_place(found).values())
    told = [table(runs, given.all) for runs in places]
    print("\n\n".join(text for text, _ in told))
    if given.output:
        draw(places, given.output)
    return int(any(worse for _, worse in told))


if __name__ == "__main__":
    sys.exit(main())
