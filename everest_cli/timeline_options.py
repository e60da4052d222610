"""The options of `everest predict --timeline`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everest.annotations.kinds import Kind
from everest.errors import RecipeError
from everest_cli.option_values import read_numbers

if TYPE_CHECKING:
    from everest.inference.bouts import BoutRules


@dataclass(frozen=True, kw_only=True)
class TimelineOptions:
    """Windows, the bouts that follow from them, and what they are compared with."""

    timeline: Annotated[
        bool, typer.Option("--timeline", help="Classes over time: a window slides over each video.")
    ] = False
    window: Annotated[
        float | None,
        typer.Option(
            "--window", min=0.001, metavar="SECONDS", help="Window of the timeline [a clip's span]."
        ),
    ] = None
    step: Annotated[
        float | None,
        typer.Option(
            "--step", min=0.001, metavar="SECONDS", help="Step of the timeline [--window: no overlap]."
        ),
    ] = None
    bouts: Annotated[
        bool,
        typer.Option(
            "--bouts", help="Print bouts instead of windows: neighboring windows of one class, merged."
        ),
    ] = False
    background: Annotated[
        float | None,
        typer.Option(
            "--background", metavar="P", help="Windows less probable than this have no class in bouts."
        ),
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
    to: Annotated[
        Kind | None,
        typer.Option(
            "--to", metavar="KIND", help="Write bouts as annotations: csv, boris, elan, … (--output)."
        ),
    ] = None
    truth: Annotated[
        Path | None,
        typer.Option("--truth", metavar="F", help="Annotations of a person, of any kind: print scores."),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="F", help="Also draw the bouts or numbers of a video, and --truth, to this PNG."
        ),
    ] = None

    @property
    def given(self) -> set[str]:
        """The options that differ from their defaults."""
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return {f"--{name.replace('_', '-')}" for name in changed}

    def check(self) -> None:
        """Raise RecipeError for options that belong to another one."""
        if not self.timeline and self.given:
            verb = "belongs" if len(self.given) == 1 else "belong"
            raise RecipeError(f"{', '.join(sorted(self.given))} {verb} to --timeline; add it")

    def check_rules(self, *, as_json: bool) -> None:
        """Raise RecipeError for rules of bouts if the command shows none."""
        changing = self.given & {"--background", "--threshold", "--smooth", "--min-seconds"}
        if changing and not (self.bouts or self.plot or self.truth or self.to or as_json):
            names = " and ".join(sorted(changing))
            raise RecipeError(f"{names}: for bouts only; add --bouts, --plot, --to, --truth or --json")

    def rules(self) -> BoutRules:
        """How bouts follow from windows.

        Raises:
            RecipeError: --threshold is no number or pair of numbers.
        """
        from everest.inference.bouts import BoutRules

        pair = None
        if self.threshold is not None:
            values = read_numbers(self.threshold)
            if len(values) not in (1, 2):
                raise RecipeError(
                    f"--threshold {self.threshold}: give HIGH,LOW or one number, such as 0.6,0.4"
                )
            pair = (values[0], values[-1])
        return BoutRules(
            background=self.background, threshold=pair, smooth=self.smooth, min_seconds=self.min_seconds
        )
