"""What a benchmark measured, as a file: with the machine, the versions and the commit.

A benchmark that measures times has ``--record [FOLDER]``. It then writes one JSON file for the run,
which ``python -m benchmarks.history`` reads. Of every figure less is better.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.paired import Spread, spread

FOLDER = Path(__file__).parent / "results"
"""Where results go by default."""
_SCHEMA = "normswap.benchmark/1"


@dataclass(frozen=True)
class Figure:
    """One quantity: its median and quartiles over the rounds. ``unit``: 's', 'MiB', '' of a
    ratio."""

    median: float
    low: float
    high: float
    unit: str

    @staticmethod
    def of(values: Sequence[float] | Spread, unit: str) -> Figure:
        """Of the values of all rounds, or of their spread."""
        found = values if isinstance(values, Spread) else spread(values)
        return Figure(found.median, found.low, found.high, unit)


Figures = Mapping[str, Figure]
"""By what was measured, which is called the same in every run."""


@dataclass(frozen=True)
class Record:
    """One run. ``when``: ISO 8601 in UTC. ``commit``: '' outside of a checkout. ``edited``: whether
    there were changes that are in no commit. ``versions``: of libraries by name."""

    benchmark: str
    when: str
    commit: str
    edited: bool
    command: str
    machine: str
    threads: int
    versions: dict[str, str]
    figures: dict[str, Figure]

    @property
    def place(self) -> tuple[str, str, int]:
        """Runs that may be held against each other have the same: the benchmark, the machine and
        the number of threads."""
        return self.benchmark, self.machine, self.threads


def add_record_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--record",
        nargs="?",
        type=Path,
        const=FOLDER,
        metavar="FOLDER",
        help="keep the result for benchmarks.history, there or in FOLDER",
    )


def write_record(folder: Path | None, benchmark: str, figures: Figures) -> None:
    """Writes a record of this run to ``folder``; nothing without a folder or figures."""
    if folder is None or not figures:
        return
    from normswap.parity.summary import provenance

    made = provenance()
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    record = Record(
        benchmark,
        now.isoformat(),
        _git("rev-parse", "--short=12", "HEAD"),
        bool(_git("status", "--porcelain", "--untracked-files=no")),
        shlex.join(["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]]),
        made.machine,
        made.threads,
        made.versions,
        dict(figures),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark}-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps({"schema": _SCHEMA, **asdict(record)}, indent=1) + "\n")
    print(f"\nrecorded in {path}", file=sys.stderr)


def records(folder: Path) -> list[Record]:
    """All records in ``folder``, the oldest first. Exits with one line for a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
            if content.pop("schema") != _SCHEMA:
                raise ValueError("another schema")
            figures = {name: Figure(**values) for name, values in content.pop("figures").items()}
            found.append(Record(**content, figures=figures))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            sys.exit(f"{path}: is no record of a benchmark ({error}); remove it")
    return sorted(found, key=lambda record: record.when)


def _git(*arguments: str) -> str:
    """What git says of this checkout; '' without git or a checkout."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
