"""Time and memory of ``swap --to fused`` and of ``validate``, from a small ViT to one of 6.4 GB.

    python -m benchmarks.validate_cost [MODEL ...] [--folder FOLDER] [--json FILE]

in the repository's root. MODEL: vit_b (timm's ViT-B/16), clip_l (open_clip's ViT-L/14, both towers,
1.7 GB), large (48 layers of width 1664, 6.4 GB beside the file), or an ONNX file. Each model is
swapped in one process and validated against the result in another, the exact contract with its
default effort. *MiB*: the largest resident size, pages of mapped files included. ``large`` takes
20 GB of disk and most of an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.history.record import Figure, Figures, add_record_option, write_record
from benchmarks.large_vit import write_large_vit
from benchmarks.measured_process import measured
from benchmarks.tool import own_command

MODELS = ("vit_b", "clip_l", "large")
_NORMSWAP = [sys.executable, "-m", "normswap_cli.main"]


def _written(name: str, folder: Path) -> Path:
    """The file of a model, made in ``folder`` where it is none yet."""
    path = folder / f"{name}.onnx"
    if name == "large":
        write_large_vit(path, 48, 1664)
        return path
    if name == "clip_l":
        command = own_command("make", "ViT-L-14", path)
    elif name == "vit_b":
        source = "timm:vit_base_patch16_224?pretrained=false"
        command = [*_NORMSWAP, "export", source, "-o", str(path)]
    else:
        return Path(name)
    if error := measured(command).error:
        sys.exit(f"{name}: {error}")
    return path


def _row(name: str, folder: Path) -> dict[str, Any]:
    source, fused = _written(name, folder), folder / "fused.onnx"
    weights = source.with_name(f"{source.name}.data")
    size = source.stat().st_size + (weights.stat().st_size if weights.exists() else 0)
    swap = measured([*_NORMSWAP, "swap", str(source), "--to", "fused", "-o", str(fused)])
    row = {"model": name, "bytes": size, "swap": vars(swap)}
    if not swap.error:
        row["validate"] = vars(measured([*_NORMSWAP, "validate", str(source), str(fused)]))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| model | MB | command | s | CPU s | MiB | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        for command in ("swap", "validate"):
            if (cost := row.get(command)) is not None:
                cells = [row["model"], f"{row['bytes'] / 1e6:,.0f}", command]
                cells += [f"{cost[key]:,.1f}" for key in ("seconds", "cpu_seconds")]
                cells += [f"{cost['mib']:,.0f}", cost["error"] or "passed"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(rows: list[dict[str, Any]]) -> Figures:
    """What a record keeps of ``rows``."""
    return {
        f"{row['model']}: {command}: {name}": Figure.of([row[command][key]], unit)
        for row in rows
        for command in ("swap", "validate")
        if command in row and not row[command]["error"]
        for key, name, unit in (("seconds", "time", "s"), ("mib", "memory", "MiB"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--folder", type=Path, help="where the files go for a while")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    add_record_option(parser)
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)

    from normswap.report.progress import Progress

    rows = []
    with Progress(lines=True) as progress:
        for done, name in enumerate(options.models):
            progress(done, len(options.models), name)
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                rows.append(_row(name, Path(folder)))
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    write_record(options.record, "validate_cost", figures(rows))


if __name__ == "__main__":
    main()
