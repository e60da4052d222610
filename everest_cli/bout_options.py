"""Options of commands that read or write bouts: the kind of a file, and how bouts follow from windows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from everest.errors import RecipeError
from everest_cli.options import option

if TYPE_CHECKING:
    from everest.inference.bouts import BoutRules

AnnotationKind = Literal["csv", "boris", "elan", "srt", "vtt"]
FileKind = Literal[AnnotationKind, "json"]
KINDS_BY_ENDING: Final[dict[str, FileKind]] = {
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
    kind = to or KINDS_BY_ENDING.get(output.suffix.lower())
    if kind not in kinds:
        known = ", ".join(ending for ending, kind in KINDS_BY_ENDING.items() if kind in kinds)
        raise RecipeError(f"--output {output}: end its name in {known}, or add --to")
    return kind


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """How bouts follow from the probabilities of windows."""

    background: float | None = option("--background P", "Give no class if all are less probable.")
    threshold: float | None = option(
        "--threshold P", "Multi-label: report classes at least this probable [the model's]."
    )
    smooth: float = option("--smooth SECONDS", "Average the probabilities over this time first.", 0.0, min=0)
    min_seconds: float = option(
        "--min-seconds SECONDS", "Shorter bouts take their neighbor's class.", 0.0, min=0
    )

    def rules(self) -> BoutRules:
        from everest.inference.bouts import BoutRules

        return BoutRules(**asdict(self))
