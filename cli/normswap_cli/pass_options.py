"""The options of the passes on the command line, made from the fields of each pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from normswap.options import Option
    from normswap.passes import Pass

_TO, _TARGET = "--to", "--target"
_FOR_TARGET = "dialect"  # what --target alone asks for
_OFFERED = "normswap.offered"


class To(click.ParamType):  # type: ignore[type-arg]
    """One of the passes that swap. A ``click.Choice`` would import all for ``normswap --help``."""

    name = "swap"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> type[Pass]:
        from normswap.passes import pass_called, passes

        kind = pass_called(value)
        if kind is None:
            self.fail(f"'{value}' is none of {', '.join(passes())}.", param, ctx)
        return kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from normswap.passes import passes

        return [CompletionItem(word) for word in passes() if word.startswith(incomplete)]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        from normswap.passes import passes

        return f"[{'|'.join(passes())}]"


class PassCommand(click.Command):
    """A command with ``--to``, which also takes the options of the pass that is named there.

    ``--target`` without ``--to`` asks for ``--to dialect``. Only that pass is imported; without
    both, and for the help text, all of them are.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from normswap.passes import pass_called, passes

        word = _word_in(_TO, args)
        if word is None and _word_in(_TARGET, args) is not None:
            word, args = _FOR_TARGET, [_TO, _FOR_TARGET, *args]
        kind = None if word is None or set(args) & set(ctx.help_option_names) else pass_called(word)
        ctx.meta[_OFFERED] = passes() if kind is None else {word: kind}
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            takers = [w for w, k in passes().items() if error.option_name in _flags(k)]
            if kind is None or not takers:
                raise
            raise click.UsageError(
                f"{error.option_name} belongs to --to {' or '.join(takers)}, not to {word}.", ctx
            ) from error

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from normswap.passes import passes

        own = super().get_params(ctx)
        if _OFFERED not in ctx.meta:  # nothing is parsed: the documentation asks
            ctx.meta[_OFFERED] = passes()
        return [*own[:-1], *_click_options(ctx.meta[_OFFERED]), own[-1]]  # help comes last

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from normswap.passes import passes

        ctx.meta[_OFFERED] = passes()
        with formatter.section(f"What {_TO} takes"):
            formatter.write_dl([(word, kind.summary) for word, kind in passes().items()])
        super().format_options(ctx, formatter)


def _word_in(flag: str, args: Sequence[str]) -> str | None:
    """What stands behind the last ``flag``."""
    word = None
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        if argument == flag:
            word = following
        elif argument.startswith(f"{flag}="):
            word = argument.removeprefix(f"{flag}=")
    return word


def _flags(kind: type[Pass]) -> set[str]:
    return {_flag(name) for name, _ in _options(kind)}


def _options(kind: type[Pass]) -> list[tuple[str, Option]]:
    """Those of a pass, and those of lowering that mean something for it."""
    from normswap.lowering import Lowering
    from normswap.options import options_of

    lowering = [named for named in options_of(Lowering) if named[0] in kind.lowering]
    return [*options_of(kind), *lowering]


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"  # a field cannot be called 'for'


def _click_options(offered: dict[str, type[Pass]]) -> list[click.Option]:
    """One option for all passes that have the same; two of one name may mean different things."""
    shown: dict[tuple[str, Option], list[str]] = {}
    for word, kind in offered.items():
        for named in _options(kind):
            shown.setdefault(named, []).append(word)
    return [_click_option(name, option, words) for (name, option), words in shown.items()]


def _click_option(name: str, option: Option, words: Sequence[str]) -> click.Option:
    kind = click.Choice(option.choices) if option.choices else option.type
    return click.Option(
        [_flag(name), name],
        help=f"{', '.join(words)}: {option.help}",
        default=None,
        metavar=option.metavar,
        **({"is_flag": True} if option.type is bool else {"type": kind}),
    )
