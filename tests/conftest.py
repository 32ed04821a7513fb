"""Settings for all tests."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which torch.compile may do in any test.
    os.environ["TRITON_INTERPRET"] = "1"

# New examples on every run of a developer, the same ones on every run of CI.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")
