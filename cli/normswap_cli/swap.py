"""``normswap swap``: other norms in place of a model's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normswap_cli.console import joined_group, working
from normswap_cli.options import (
    FileOrName,
    ImageOptions,
    arch_option,
    certify_option,
    examples,
    image_options,
    json_option,
    load_models,
    model_argument,
    output_option,
    sites_option,
    trust_option,
)
from normswap_cli.pass_options import PassCommand, To
from normswap_cli.precision_options import Precision, precision_options
from normswap_cli.rewrite import save_if_passed, tell

if TYPE_CHECKING:
    from normswap.passes import Pass


@click.command(
    cls=PassCommand,
    epilog=examples(
        "normswap swap vit.onnx -o fused.onnx --to fused",
        "normswap swap vit.onnx -o vit-fp16.onnx --to fused --dtype float16",
        "normswap swap vit.onnx -o for-npu.onnx --target rknn",
        "normswap swap vit.onnx -o rms.onnx --to rmsnorm --sites 'role=pre_*'",
        "normswap swap vit.onnx -o rescaled.onnx --to rescale --data images",
        "normswap swap vit.pt2 -o free.pt2 --to affine --refit-writers --fold --data images",
    ),
)
@model_argument
@output_option
@click.option(
    "--to",
    "kind",
    required=True,
    type=To(),
    help="What the norms become: see above. With --target, 'dialect' by default.",
)
@sites_option
@click.option(
    "--fold-affine",
    is_flag=True,
    help="Exact swaps: fold gamma and beta into what reads the norms.",
)
@certify_option
@click.option(
    "--data",
    type=FileOrName(),
    metavar="DATA",
    help="Fitted swaps and rescale: calibration inputs without labels: a folder of images, "
    "prepared as the model's own configuration says, or a .npy, .npz or .safetensors file of "
    "prepared inputs.",
)
@image_options
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Fitted swaps and rescale: use at most that many of DATA, drawn at random (always the "
    "same).",
)
@click.option("--fold", "then_fold", is_flag=True, help="Fitted swaps: fold what was swapped in.")
@precision_options
@json_option
@trust_option
@arch_option
def swap(
    model: str,
    output: Path,
    kind: type[Pass],
    sites: str | None,
    fold_affine: bool,
    certify: bool,
    data: str | None,
    images: ImageOptions,
    samples: int | None,
    then_fold: bool,
    precision: Precision,
    as_json: bool,
    trust: bool,
    arch: str | None,
    **options: Any,
) -> int:
    """Put other norms in place of those of MODEL.

    Without --sites all norms are taken; in a CLIP, --to batchnorm and affine take the image
    tower's. Exit status 1, and nothing written, if MODEL has no norm, one that --sites asks for is
    skipped, or --ensure leaves none to swap.
    """
    takes_data = kind.needs_data or kind.takes_data
    _check_belongs(kind, "--data", data is not None, takes_data)
    _check_belongs(kind, "--samples", samples is not None, takes_data)
    # Only what is fitted leaves something to fold, only an exact swap a norm with gamma and beta.
    _check_belongs(kind, "--fold", then_fold, not kind.exact)
    _check_belongs(kind, "--fold-affine", fold_affine, kind.exact)
    _check_belongs(kind, "--certify", certify, kind.exact)
    if kind.needs_data and data is None:
        raise click.UsageError(f"--to {kind.to} needs calibration data: give --data.")
    with working() as progress:
        import normswap
        from normswap.io.save import check_output
        from normswap.lowering import Lowering
        from normswap.report.rewriting import Rewriting

        check_output(output)
        given = {name: value for name, value in options.items() if value is not None}
        made_for = {name: given.pop(name) for name in kind.lowering if name in given}
        if "kernels" in made_for and output.suffix != ".pt2":
            raise click.UsageError("--kernels: only a .pt2 file can hold them; name one with -o.")
        how = kind(**given)
        (source,) = load_models([model], trust, arch)
        source = images.of(source)
        with joined_group() as first:  # under torchrun each process fits to its share of the data
            swapped = normswap.swap(
                source,
                how,
                sites=sites,
                data=images.data(data, source, progress, samples),
                samples=samples,
                lowering=Lowering(**made_for) if made_for else None,
                certify=certify,
                progress=progress,
            )
        if not first:
            return 0
        steps = [(kind.to, swapped)]
        if then_fold:
            steps.append(("fold", normswap.fold(swapped.model)))
        if fold_affine:
            steps.append(("fold-affine", normswap.fold_affine(swapped.model, certify=certify)))
        report = save_if_passed(Rewriting(source, steps, sites is not None), output, precision)
    return tell(report, output, "no norm was found", as_json)


def _check_belongs(kind: type[Pass], option: str, given: bool, fits: bool) -> None:
    """Raises UsageError where an option is given that is for passes of the other sort."""
    if given and not fits:
        from normswap.passes import passes

        is_data = option in ("--data", "--samples")
        takers = [
            word
            for word, other in passes().items()
            if (other.needs_data or other.takes_data if is_data else other.exact != kind.exact)
        ]
        raise click.UsageError(f"{option} belongs to --to {' or '.join(takers)}, not to {kind.to}.")
