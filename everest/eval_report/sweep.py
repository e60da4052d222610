"""What a classifier costs with other shares of the tokens than it was trained with: EVEREST Table 10."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from everest.methods.strategies import at_test
from everest.models.cost import count_tokens, gmacs_of_clip
from everest.models.spec import ModelSpec


def share_cost(spec: ModelSpec, keep: float) -> dict[str, Any]:
    """The tokens that a share leaves, and the GMACs of one view, which the papers call GFLOPs.

    Raises:
        RecipeError: it leaves none.
    """
    tried = replace(spec, selection=at_test(spec.selection, keep))
    return {
        "keep": keep,
        "tokens": count_tokens(tried).visible,
        "gmacs": round(gmacs_of_clip(tried), 4),
    }
