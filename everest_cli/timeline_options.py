"""Options that the commands for bouts share: how bouts follow from probabilities, and kinds of files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from everest.errors import RecipeError

if TYPE_CHECKING:
    from everest.inference.bouts import BoutRules

AnnotationKind = Literal["csv", "boris", "elan", "srt", "vtt"]
FileKind = Literal[AnnotationKind, "json"]
ENDINGS: Final = {
    ".csv": "csv",
    ".boris": "boris",
    ".eaf": "elan",
    ".srt": "srt",
    ".vtt": "vtt",
    ".json": "json",
}


def kind_of(output: Path | None, to: str | None, kinds: tuple[str, ...]) -> str | None:
    """The kind of the file of --output, by --to or its ending; None without --output."""
    if output is None:
        if to is not None:
            raise RecipeError(f"--to {to}: needs --output, the file to write")
        return None
    kind = to or ENDINGS.get(output.suffix.lower())
    if kind not in kinds:
        known = ", ".join(ending for ending, kind in ENDINGS.items() if kind in kinds)
        raise RecipeError(f"--output {output}: end its name in {known}, or add --to")
    return kind


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """How bouts follow from the probabilities of windows."""

    background: Annotated[
        float | None,
        typer.Option("--background", metavar="P", help="Windows less probable than this have no class."),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", metavar="P", help="Multi-label classes are present from here on [the model's]."
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
        from everest.inference.bouts import BoutRules

        return BoutRules(**asdict(self))
