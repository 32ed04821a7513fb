"""Other libraries' errors on one line."""

from __future__ import annotations

_LONGEST = 200


def first_line(error: BaseException) -> str:
    """The first line that ``error`` says, without a trailing stop; its class if it says none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0].rstrip(".:") if lines else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def root_cause(error: BaseException) -> BaseException:
    """What ``error`` was raised from, and that from, to the first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def plain(name: object) -> str:
    """A name from a file, fit for a line: short, and without control characters."""
    text = "".join(c if c.isprintable() else "?" for c in str(name)[:_LONGEST])
    return text if len(str(name)) <= _LONGEST else f"{text}..."
