"""The ``normswap`` program: a group of commands, and what becomes of their errors."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import os
import signal
import sys
import threading
import types
from typing import Any

import click

from normswap_cli.bench import bench
from normswap_cli.compare import compare
from normswap_cli.console import complain
from normswap_cli.demo import demo
from normswap_cli.distill import distill
from normswap_cli.export import export
from normswap_cli.fold import fold
from normswap_cli.inspect import inspect
from normswap_cli.logs import logs_on_stderr
from normswap_cli.options import examples
from normswap_cli.swap import swap
from normswap_cli.validate import validate

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class BadInput(click.ClickException):
    """A NormswapError, on one line."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        complain(self.message)


class Program(click.Group):
    """Commands return their exit status (None is 0)."""

    interrupted = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            try:
                return super().main(*args, **kwargs)
            except OSError as error:
                if not _gives_up_output():
                    raise
                complain(f"standard output cannot be written ({error.strerror}); name another")
                sys.exit(BadInput.exit_code)
        except (Exception, SystemExit) as error:
            # Libraries turn an interrupt into an error of their own: torch's import does.
            if self.interrupted and (not isinstance(error, SystemExit) or error.code):
                # CPython dies of the signal in the end if an interrupt went through an exec() of
                # text (dataclasses have one), caught or not, unless another exec() came after it.
                exec("")
                sys.exit(INTERRUPTED)
            raise

    def watch_for_interrupts(self) -> None:
        """Remembers Ctrl-C, whatever becomes of the KeyboardInterrupt."""

        def interrupt(number: int, _frame: object) -> None:
            self.interrupted = True
            if _is_importing("torch"):  # its C++ aborts at an exception: try again soon
                later = threading.Timer(0.05, os.kill, (os.getpid(), number))
                later.daemon = True  # not into what is ending by then
                later.start()
            else:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)

    def invoke(self, ctx: click.Context) -> Any:
        # A graph is many small objects that all stay: looking for garbage took a fifth of the time.
        gc.set_threshold(100_000, 50, 100)
        try:
            status = super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except click.UsageError as error:  # it has what was given in it
            from normswap.errors import visible

            shown = visible(error.format_message(), keep="\n\t")
            raise click.UsageError(shown, error.ctx) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from normswap.errors import NormswapError  # normswap imports numpy: only if need be

            if isinstance(error, NormswapError):
                raise BadInput(str(error)) from error
            raise
        ctx.exit(status or 0)


def _gives_up_output() -> bool:
    """Whether standard output cannot be written. It then goes nowhere from here on, so that what
    is left of it is not tried again at the end."""
    try:
        sys.stdout.write("\n")  # what failed may be gone from its buffer
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_importing(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"normswap {_version()}")
        ctx.exit()


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("normswap")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        import normswap

        return normswap.__version__


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "normswap inspect vit.onnx",
        "normswap swap vit.onnx -o fused.onnx --to fused",
        "normswap validate vit.onnx fused.onnx",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.option("-v", "--verbose", count=True, help="Log to standard error; -vv logs more.")
@click.pass_context
def main(ctx: click.Context, verbose: int) -> None:
    """Rewrite the norms of ViT and CLIP models, and prove with numbers what changed.

    MODEL is file.onnx, file.pt2, a Hugging Face folder, hf:ID, timm:NAME or open_clip:NAME.

    Exit status:

    \b
        0  done
        1  a gate was not met: parity, no norm found, a site asked for was skipped
        2  bad input or usage

    Nothing is written unless it is 0.
    """
    ctx.with_resource(logs_on_stderr(verbose))


for command in (inspect, swap, fold, validate, bench, distill, compare, export, demo):
    main.add_command(command)


class _OnUse(types.ModuleType):
    """Stands for a module until something of it is used, however early it is named."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)  # who asks whether it is there

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def program() -> None:
    """The ``normswap`` command."""
    # A third of a short command, and of use for sizes that are formulas alone.
    for name in ("sympy", "onnx_ir._symbolic_shapes"):
        sys.modules.setdefault(name, _OnUse(name))
    main.watch_for_interrupts()
    main()


if __name__ == "__main__":
    program()
