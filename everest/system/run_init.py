"""The option --init of a run, and the values of env.json about the weights that a run started from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

INIT: Final = "init"  # the weights
INIT_NAME: Final = "init_name"  # the option --init, as an absolute path
DECODER: Final = "decoder"  # the option --decoder
ORIGIN: Final = "origin"  # describes the weights, and what they started from in turn

Decoder = Literal["keep", "fresh"]


@dataclass(frozen=True, kw_only=True)
class Init:
    """The option --init of a run.

    Args:
        name: as the user wrote it, a path made absolute.
        file: the weights that were found.
        decoder: the option --decoder; None: keep the decoder if it fits.
    """

    name: str
    file: str
    decoder: Decoder | None = None
