"""``normswap bench``: how long models take, beside each other."""

from __future__ import annotations

import click

from normswap_cli.console import show, show_json, working
from normswap_cli.options import (
    FileOrName,
    arch_option,
    examples,
    json_option,
    limit_option,
    load_models,
    trust_option,
)


@click.command(
    epilog=examples(
        "normswap bench vit.onnx fused.onnx",
        "normswap bench vit.pt2 vit.onnx --runtime torch --runtime onnxruntime",
    )
)
@click.argument("models", metavar="MODEL [MODEL ...]", type=FileOrName(), nargs=-1, required=True)
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(["torch", "onnxruntime", "openvino"]),
    multiple=True,
    help="Where to run them; may be repeated. By default torch, and onnxruntime for .onnx. A torch "
    "model goes to the others through torch's exporter.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows of the random inputs. By default 1, or what MODEL fixes.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=6),
    metavar="N",
    help="By default as many as take a minute, from 10 to 50.",
)
@limit_option
@json_option
@trust_option
@arch_option
def bench(
    models: tuple[str, ...],
    runtimes: tuple[str, ...],
    batch: int | None,
    rounds: int | None,
    limit: float,
    as_json: bool,
    trust: bool,
    arch: str | None,
) -> int:
    """Time every MODEL on the same inputs, in turn, and hold the others against the first.

    Each runs in a process of its own, on as many threads as torch takes (OMP_NUM_THREADS). Exit
    status 1 if one of them cannot be run.
    """
    with working() as progress:
        import normswap
        from normswap.report.terminal import bench_view

        loaded = load_models(models, trust, arch)
        report = normswap.bench(
            loaded,
            runtimes=runtimes or None,
            batch=batch,
            rounds=rounds,
            limit=limit,
            progress=progress,
        )
    if as_json:
        show_json(report.to_json())
    else:
        show(bench_view(report))
    return 0 if report.complete else 1
