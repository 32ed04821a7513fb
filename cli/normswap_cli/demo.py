"""``normswap demo``: the whole way on two small trained models."""

from __future__ import annotations

from pathlib import Path

import click

from normswap_cli.console import show, working
from normswap_cli.options import examples


@click.command(
    epilog=examples(
        "normswap demo",
        "normswap demo -o demo-output",
    )
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("normswap-demo"),
    show_default=True,
    metavar="FOLDER",
    help="Where models and reports go; it is made if it is not there.",
)
def demo(output: Path) -> int:
    """Inspect, swap, fold and validate digits-vit and digits-clip, in torch and in ONNX.

    Takes about a minute on two processors. Needs scikit-learn and transformers.
    """
    with working(lines=True) as progress:
        from normswap.demo.demo_results import demo_view
        from normswap.demo.run_demo import run_demo

        results = run_demo(output, progress)
    show(demo_view(results))
    return 0 if results.passed else 1
