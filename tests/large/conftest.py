"""What takes minutes, or gigabytes."""

from __future__ import annotations

from tests.unit.conftest import place

__all__ = ["place"]
