"""Where `everest predict` puts its answers: text or annotations, and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import typer

from everest.errors import RecipeError
from everest_cli.output import say

if TYPE_CHECKING:
    from everest.annotations.bout import Bout
    from everest.annotations.kinds import Kind
    from everest.lists.classes import Classes
    from everest.lists.sample import Sample

PredictionFormat = Literal["table", "json", "csv", "srt"]


def format_of(kind: PredictionFormat | None, output: Path | None, *, as_json: bool) -> PredictionFormat:
    """Return the requested format; raises RecipeError if --json contradicts --format."""
    if as_json and kind not in (None, "json"):
        raise RecipeError(f"--json and --format {kind}: choose one")
    if as_json:
        return "json"
    suffix: Any = "" if output is None else output.suffix.removeprefix(".").lower()
    return kind or (suffix if suffix in get_args(PredictionFormat) else "table")


@dataclass(frozen=True, kw_only=True)
class PredictionOutput:
    """The files of a prediction."""

    path: Path | None  # of --output; None: standard output
    text: PredictionFormat
    to: Kind | None  # annotations of this kind in place of text
    plot: Path | None  # a figure in addition
    overwrite: bool

    def check(self, *, timeline: bool) -> None:
        """Check what needs neither model nor videos.

        Raises:
            RecipeError: subtitles without times, or a file that exists.
            EnvironmentProblem: a file cannot be written.
        """
        from everest.system.files import check_new_file

        if self.text == "srt" and not timeline:
            raise RecipeError("--format srt: subtitles need the times of --timeline")
        if self.path is not None and self.to is None:
            check_new_file(self.path, option="--output", overwrite=self.overwrite)
        if self.plot is not None:
            from everest.figures.drawing import check_target

            check_target(self.plot, option="--plot", overwrite=self.overwrite)

    def check_samples(self, samples: Sequence[Sample], inputs: Sequence[object]) -> None:
        """Check the files against the videos and the other inputs of the command.

        Raises:
            RecipeError: subtitles or a figure of several videos, a file that exists, or that is an input.
        """
        from everest.system.files import check_new_file, refuse_inputs

        if self.text == "srt" and len(samples) > 1:
            raise RecipeError(f"--format srt: subtitles are of one video, not of {len(samples)}")
        if self.plot is not None and len(samples) > 1:
            raise RecipeError(f"--plot: a figure is of one video, not of {len(samples)}")
        if self.plot is not None and self.path is not None and self.plot.resolve() == self.path.resolve():
            raise RecipeError(f"--plot {self.plot}: also the file of --output; choose another name")
        files = [] if self.path is None else [self.path]
        if self.to is not None:
            files = list(self._annotation_files(samples))
            for path in files:
                check_new_file(path, option="--output", overwrite=self.overwrite)
        for path in files:
            refuse_inputs(path, inputs, option="--output")
        if self.plot is not None:
            refuse_inputs(self.plot, inputs, option="--plot")

    def write(
        self,
        samples: Sequence[Sample],
        rows: list[dict[str, Any]],
        scores: dict[str, Any] | None,
        *,
        bouts: bool,
        classes: Classes,
    ) -> None:
        """Write and print the predictions of the samples, and their scores.

        Args:
            bouts: the text shows bouts in place of windows.
            classes: of the model, which annotation files name.
        """
        from everest.system.files import write_text
        from everest.system.json_text import json_text
        from everest_cli.prediction_text import TEXTS, scores_text, with_bouts

        if scores is not None and (self.to is not None or self.text in ("csv", "srt")):
            say(scores_text(scores).rstrip())
        if self.to is not None:
            for path in self._write_annotations(samples, rows, classes):
                typer.echo(path)
            return
        text = TEXTS[self.text](with_bouts(rows) if bouts and self.text != "json" else rows)
        if scores is not None and self.text == "json":
            text = json_text({**scores, "timelines": rows}, indent=2) + "\n"
        elif scores is not None and self.text == "table":
            text += scores_text(scores)
        if self.path is None:
            typer.echo(text, nl=False)
        else:
            write_text(self.path, text)
            typer.echo(self.path)

    def draw(
        self, row: dict[str, Any], classes: Classes, background: float | None, truth: Sequence[Bout] | None
    ) -> None:
        """Draw the timeline of a video, below the bouts of a person if there are any."""
        from everest.figures.timeline import draw_task_timeline, draw_timeline
        from everest.inference.truth import drawn_bouts
        from everest_cli.prediction_text import by_head

        assert self.plot is not None
        title, bouts, heads = Path(row["video"]).name, by_head(row["bouts"]), classes.heads
        if truth is not None:
            names = classes.of_head(heads[0])
            begin, end = row["windows"][0]["start"], row["windows"][-1]["end"]
            bouts = {"ground truth": drawn_bouts(truth, names, begin, end), "prediction": bouts[""]}
            heads = tuple(replace(heads[0], name=name) for name in bouts)
        if all(head.task == "single-label" for head in heads):
            draw_timeline(self.plot, bouts, title=title, background=background, aligned=truth is not None)
        else:
            draw_task_timeline(
                self.plot, row["windows"], bouts, heads, title=title, aligned=truth is not None
            )

    def _annotation_files(self, samples: Iterable[Sample]) -> Mapping[Path, Sequence[str]]:
        """The files with annotations, each with its videos."""
        from everest.annotations.formats import files_of

        assert self.path is not None
        assert self.to is not None
        return files_of(self.path, dict.fromkeys(sample.path for sample in samples), self.to)

    def _write_annotations(
        self, samples: Sequence[Sample], rows: list[dict[str, Any]], classes: Classes
    ) -> Iterator[Path]:
        """Write the bouts of the videos that could be read, without background; yields the files."""
        from everest.annotations.bout import BACKGROUND
        from everest.annotations.formats import write_annotations
        from everest.annotations.times import VideoTimes
        from everest.inference.bouts import automated_bouts

        assert self.to is not None
        pairs = [(sample, row) for sample, row in zip(samples, rows, strict=True) if row["windows"]]
        found = [
            bout
            for sample, row in pairs
            for bout in automated_bouts(sample.path, row["bouts"])
            if bout.label != BACKGROUND
        ]
        class_names = [
            " ".join(filter(None, [head.name, name]))
            for head in classes.heads
            if head.task != "regression"
            for name in classes.of_head(head)
            if name != BACKGROUND
        ]
        times = {sample.path: VideoTimes.of(sample.video) for sample, _ in pairs}
        for file, names in self._annotation_files(samples).items():
            of_file = {name: times[name] for name in names if name in times}
            if of_file:
                bouts = [bout for bout in found if bout.video in of_file]
                yield from write_annotations(file, bouts, self.to, times=of_file, classes=class_names)
