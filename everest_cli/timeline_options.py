"""The options of bouts, which `everest timeline` and `everest budget` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from everest.errors import RecipeError
from everest_cli.option_values import read_numbers

if TYPE_CHECKING:
    from everest.inference.bouts import BoutRules


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """How bouts follow from the probabilities of windows."""

    background: Annotated[
        float | None,
        typer.Option("--background", metavar="P", help="Windows less probable than this have no class."),
    ] = None
    threshold: Annotated[
        str | None,
        typer.Option(
            "--threshold",
            metavar="HIGH,LOW",
            help="Multi-label bouts begin at HIGH and last as long as LOW [the model's].",
        ),
    ] = None
    smooth: Annotated[
        float,
        typer.Option(
            "--smooth", min=0, metavar="SECONDS", help="Average the probabilities over this time first."
        ),
    ] = 0.0
    min_seconds: Annotated[
        float,
        typer.Option(
            "--min-seconds", min=0, metavar="SECONDS", help="Shorter bouts take their neighbor's class."
        ),
    ] = 0.0

    def rules(self) -> BoutRules:
        """Read the options; RecipeError if --threshold is no number or pair of numbers."""
        from everest.inference.bouts import BoutRules

        numbers = None if self.threshold is None else read_numbers(self.threshold)
        if numbers is not None and len(numbers) not in (1, 2):
            raise RecipeError(f"--threshold {self.threshold}: give HIGH,LOW or one number, such as 0.6,0.4")
        return BoutRules(
            background=self.background,
            threshold=None if numbers is None else (numbers[0], numbers[-1]),
            smooth=self.smooth,
            min_seconds=self.min_seconds,
        )
