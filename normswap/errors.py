"""The one exception that users see: bad input or usage, told in one line."""

from __future__ import annotations


class NormswapError(Exception):
    """Bad input or usage.

    The message is one line that names the file or the site, says what is wrong and what to do.
    The command line prints it and exits with status 2.
    """
