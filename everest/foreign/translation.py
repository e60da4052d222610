"""The fate of the tensors of a foreign checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Translation:
    """The fate of each foreign tensor."""

    # Our name to the foreign ones: several are stacked in this order (query, key, value).
    take: dict[str, tuple[str, ...]] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)  # without effect on the model, and why
    unexpected: list[str] = field(default_factory=list)  # our model has no place for these
    table: str | None = None  # a stored position table of the encoder
