"""Arguments and options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from normswap.model import Model


def examples(*lines: str) -> str:
    """Lines to type, as the end of a command's help text."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class FileOrName(click.ParamType):  # type: ignore[type-arg]
    """What a MODEL or DATA is called. Shells complete the paths among such names."""

    name = "text"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


model_argument = click.argument("model", type=FileOrName())
output_option = click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The file to write, .onnx or .pt2. It may be MODEL itself.",
)
sites_option = click.option(
    "--sites",
    metavar="PATTERN",
    help="Alternatives separated by commas, each of terms that must all hold, separated by "
    "spaces: globs on site names, role=ROLE, tower=TOWER.",
)
certify_option = click.option(
    "--certify",
    is_flag=True,
    help="Exact passes: also prove that the result is the same function in real arithmetic. "
    "Without a proof nothing is written.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)
limit_option = click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one run in a runtime's own process may take, or loading the model there.",
)
trust_option = click.option(
    "--trust", is_flag=True, help="Let the pickled parts of a .pt2 file run code."
)
arch_option = click.option(
    "--arch",
    metavar="ARCH",
    help="Where a MODEL is a file of weights (.safetensors, .pth): what they are of, timm:NAME or "
    "open_clip:NAME, with options as in timm:NAME?num_classes=10.",
)


def load_models(sources: Sequence[str], trust: bool, arch: str | None) -> list[Model]:
    """The models that a command names; ``arch`` is for those that are files of weights."""
    from normswap.errors import NormswapError
    from normswap.io.load import load, takes_arch

    if arch is not None and not any(takes_arch(source) for source in sources):
        raise NormswapError(f"--arch {arch}: no MODEL is a file of weights; omit it")
    return [load(s, trust=trust, arch=arch if takes_arch(s) else None) for s in sources]


# -- images --------------------------------------------------------------------------------------


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """One to three numbers, separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        try:
            return tuple(float(word) for word in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is not numbers such as 0.485,0.456,0.406.", param, ctx)


class _Size(click.ParamType):  # type: ignore[type-arg]
    """One number, or a height and a width."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        words = value.lower().split("x")
        if len(words) > 2 or not all(w.isascii() and w.isdecimal() and len(w) < 6 for w in words):
            self.fail(f"'{value}' is not a size such as 256 or 224x224.", param, ctx)
        return tuple(map(int, words))


@dataclass(frozen=True)
class ImageOptions:
    """How a command prepares the images of DATA, and whether it leaves out bad ones."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: tuple[int, ...] | None
    resample: str | None
    skip_bad: bool

    def of(self, model: Model) -> Model:
        """The model, which takes images prepared like that."""
        from normswap.io.images import adjusted

        return adjusted(model, self.mean, self.std, self.size, self.resample)

    def data(self, source: str | None, model: Model, progress: Any, samples: int | None) -> Any:
        """What ``source`` names, loaded where images are to be left out."""
        if not self.skip_bad:
            return source
        if source is None or not Path(source).is_dir():
            raise click.UsageError("--skip-bad belongs to --data with a folder of images.")
        from normswap.io.data import load_data

        return load_data(source, model, samples, skip_bad=True, progress=progress)


_IMAGE_OPTIONS = (
    click.option(
        "--mean",
        type=_Numbers(),
        metavar="NUMBERS",
        help="Images: what is subtracted from pixels of 0 to 1, one number or one per channel. By "
        "default, like the next three, as the model's own configuration says.",
    ),
    click.option(
        "--std", type=_Numbers(), metavar="NUMBERS", help="Images: what they are divided by then."
    ),
    click.option(
        "--size",
        type=_Size(),
        metavar="N|HxW",
        help="Images: resize the shorter side to N and cut out the centre that MODEL takes, or "
        "resize to H x W.",
    ),
    click.option(
        "--resample",
        type=click.Choice(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]),
        help="Images: the filter that resizes them.",
    ),
    click.option(
        "--skip-bad",
        is_flag=True,
        help="Images: leave those out that cannot be read or used, and say which.",
    ),
)


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for the images of --data, which the command gets as ``images``."""

    @functools.wraps(command)
    def collected(**given: Any) -> Any:
        own = {name: given.pop(name) for name in ImageOptions.__dataclass_fields__}
        return command(images=ImageOptions(**own), **given)

    for option in reversed(_IMAGE_OPTIONS):
        collected = option(collected)
    return collected
