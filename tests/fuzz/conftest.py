"""How long fuzzing takes: ``FUZZ=100 make fuzz`` tries a hundred times as many examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    max_examples=100 * int(os.environ.get("FUZZ", "1")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
settings.load_profile("fuzz")
