"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# New examples on every run of a developer, the same ones on every run of CI.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")
