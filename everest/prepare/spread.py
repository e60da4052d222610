"""How far values lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, middle and greatest; None of nothing."""
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None
