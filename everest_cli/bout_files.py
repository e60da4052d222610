"""Files of bouts: their kinds, the options that name them, and the checks before they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from everest.errors import RecipeError
from everest.system.files import check_new_file, refuse_inputs
from everest.system.text import plural
from everest_cli import options as o
from everest_cli.options import option

if TYPE_CHECKING:
    from everest.config.heads import Heads

SAVED_SUFFIX: Final = ".safetensors"
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


def choose_kind(output: Path | None, to: str | None, kinds: tuple[str, ...]) -> str | None:
    """Choose the kind of the --output file, by --to or the file's ending; None without --output."""
    if output is None:
        if to is not None:
            raise RecipeError(f"--to {to}: needs --output, the file to write")
        return None
    by_ending = KINDS_BY_ENDING.get(output.suffix.lower())
    kind = to or by_ending
    # A BORIS project is a JSON file.
    if by_ending not in (None, kind) and (kind, by_ending) != ("boris", "json"):
        raise RecipeError(f"--output {output}: its ending says {by_ending}, but --to says {kind}; change one")
    if kind not in kinds:
        endings = ", ".join(ending for ending, kind in KINDS_BY_ENDING.items() if kind in kinds)
        raise RecipeError(f"--output {output}: end its name in {endings}, or add --to")
    return kind


@dataclass(frozen=True, kw_only=True)
class TimelineFiles:
    """The options that name the files to write."""

    save: Path | None = option("--save F", "Save all probabilities [OUTPUT.safetensors beside --output].")
    output: Path | None = o.OUTPUT_FILE
    to: FileKind | None = option("--to", "Kind of --output [by its ending].", show_default=False)
    plot: Path | None = option("--plot F", "Draw the timelines (and --truth) to F (.png, .pdf, .svg).")
    overwrite: bool = o.OVERWRITE_FILES

    @property
    def saved(self) -> Path | None:
        """The file of the probabilities; by default it is beside --output, which may be a folder."""
        saved, output = self.save, self.output
        if saved is None and output is not None:
            stem = output.stem if output.suffix.lower() in KINDS_BY_ENDING else output.resolve().name
            saved = output.with_name(stem) if output.name else output / "timeline"
            saved = saved.with_name(saved.name + SAVED_SUFFIX)
        if saved is not None and saved.suffix != SAVED_SUFFIX:
            raise RecipeError(f"--save {saved}: end its name in {SAVED_SUFFIX}")
        return saved

    def plan_outputs(
        self, kind: str | None, names: Iterable[str], heads: Heads
    ) -> Mapping[Path, Sequence[str]]:
        """Return the --output files with the paths of their videos; annotations need a head of classes."""
        from everest_workflows.annotations.formats import plan_files

        if self.output is None or kind is None:
            return {}
        if kind != "json" and all(head.task == "regression" for head in heads):
            raise RecipeError(f"--to {kind}: needs classes, but this model predicts numbers; use json")
        videos = list(dict.fromkeys(names))
        return {self.output: videos} if kind == "json" else plan_files(self.output, videos, kind)


def check_outputs(
    outputs: Mapping[str, Sequence[Path | None]], inputs: Sequence[object], *, overwrite: bool
) -> None:
    """Refuse an output that exists, is an input, or is named by two options."""
    from everest.figures.style import check_figure_path

    options: dict[Path, str] = {}  # the option that names each file
    for option_name, paths in outputs.items():
        for path in filter(None, paths):
            if (first := options.setdefault(path.resolve(), option_name)) != option_name:
                raise RecipeError(f"{option_name} {path}: is also the file of {first}; choose another name")
            refuse_inputs(path, inputs, option=option_name)
            check = check_figure_path if option_name == "--plot" else check_new_file
            check(path, option=option_name, overwrite=overwrite)


def agreement_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the agreement of two observers: a line for each behavior."""
    observers = document["observers"]
    kappa = "" if document["kappa"] is None else f", kappa {document['kappa']:.2f}"
    videos = plural(document["videos"], "video")
    yield f"{' and '.join(observers)}, {videos}, {document['seconds']:.1f} s{kappa}"
    width = max(len(row["behavior"]) for row in [{"behavior": "behavior"}, *document["agreement"]])
    titles = "kappa", "bout F1", *(f"{name} s" for name in observers)
    yield f"  {'behavior':<{width}}" + "".join(f"  {title:>11}" for title in titles)
    for row in document["agreement"]:
        cells = ["-" if row["kappa"] is None else f"{row['kappa']:.2f}"]
        cells.append("-" if row["bout_f1"] is None else f"{row['bout_f1']:.1f}")
        cells += [f"{seconds:.1f}" for seconds in row["seconds"].values()]
        yield f"  {row['behavior']:<{width}}" + "".join(f"  {cell:>11}" for cell in cells)
