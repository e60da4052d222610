"""`everest timeline`: classes over time, as bouts, files, scores and figures; options of all bouts."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import typer

from everest.errors import RecipeError, UserError, first_names
from everest.system.events import Report, notice, warning
from everest.system.files import check_new_file, refuse_inputs, write_text
from everest.system.processes import is_main
from everest.system.text import json_text
from everest_cli import options as o
from everest_cli.options import argument, option
from everest_cli.output import exit_if_failed, say

if TYPE_CHECKING:
    from everest.annotations.bout import Bouts
    from everest.annotations.codings import BoutFilter
    from everest.inference.bouts import BoutRules
    from everest.inference.timelines import Timelines
    from everest.lists.classes import Classes

SAVED_SUFFIX = ".safetensors"
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
    """The kind of the file of --output, by --to or its ending; None without --output."""
    if output is None:
        if to is not None:
            raise RecipeError(f"--to {to}: needs --output, the file to write")
        return None
    by_ending = KINDS_BY_ENDING.get(output.suffix.lower())
    kind = to or by_ending
    # A project of BORIS is JSON.
    if by_ending not in (None, kind) and (kind, by_ending) != ("boris", "json"):
        raise RecipeError(f"--output {output}: its ending says {by_ending}, but --to says {kind}; change one")
    if kind not in kinds:
        endings = ", ".join(ending for ending, kind in KINDS_BY_ENDING.items() if kind in kinds)
        raise RecipeError(f"--output {output}: end its name in {endings}, or add --to")
    return kind


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """The options that turn probabilities of windows into bouts; by default as in the saved file."""

    background: float | None = option(
        "--background P", "Report no class where even the most probable is below P."
    )
    threshold: float | None = option(
        "--threshold P", "Multi-label: report classes at least this probable [the model's]."
    )
    smooth: float | None = option(
        "--smooth SECONDS", "Average the probabilities over this time first [as saved, else 0].", min=0
    )
    min_seconds: float | None = option(
        "--min-seconds SECONDS", "Shorter bouts take their neighbor's class [as saved, else 0].", min=0
    )

    def over(self, saved: BoutRules) -> BoutRules:
        """The saved rules, changed by the options that were given."""
        return replace(saved, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class TimelineModel(o.ModelOptions):
    """The model; saved timelines do not need it."""

    checkpoint: str = option(
        "--checkpoint -c C", f"{o.CHECKPOINT_HELP} Not with a saved file.", "", show_default=False
    )


@dataclass(frozen=True, kw_only=True)
class TimelineFiles:
    """The files to write."""

    save: Path | None = option("--save F", "Save all probabilities [OUTPUT.safetensors beside --output].")
    output: Path | None = o.OUTPUT_FILE
    to: FileKind | None = option("--to", "Kind of --output [by its ending].", show_default=False)
    plot: Path | None = option("--plot F", "Draw the timelines (and --truth) to F (.png, .pdf, .svg).")
    overwrite: bool = o.OVERWRITE_FILES

    @property
    def saved(self) -> Path | None:
        """The file of the probabilities."""
        saved = self.save or (_find_saved(self.output) if self.output else None)
        if saved is not None and saved.suffix != SAVED_SUFFIX:
            raise RecipeError(f"--save {saved}: end its name in {SAVED_SUFFIX}")
        return saved


def timeline(
    *,
    model: TimelineModel,
    rules: RuleOptions,
    videos: list[Path] = argument("VIDEO…", "Videos, folders of videos, or lists; or one saved file."),
    window: float | None = option(
        "--window SECONDS", "Length of a window [as trained by everest train, else a clip's span].", min=0.001
    ),
    step: float | None = option(
        "--step SECONDS",
        "Time between window starts [a quarter of the window if `everest train` chose it, else one window].",
        min=0.001,
    ),
    files: TimelineFiles,
    truth: Path | None = option("--truth F", "Ground-truth annotations of any kind, to print scores."),
    whose: o.WhoseOptions,
    as_json: bool = o.AS_JSON,
) -> None:
    """Predict classes over time with a sliding window; neighboring windows of a class form a bout.

    --save F writes the probabilities to F; without it, --output writes them to OUTPUT.safetensors. To score
    or draw them again, give this file as VIDEO, without --checkpoint.

    Example: everest timeline VIDEOS -c runs/finetune --step 0.5 -o bouts.csv
    """
    from everest.inference.scores import score_timelines, write_bouts

    whose_bouts = whose.read(truth, option="--truth")
    kind = choose_kind(files.output, files.to, get_args(FileKind))
    display = model.display()
    save = None
    if len(videos) == 1 and videos[0].suffix == SAVED_SUFFIX:
        options = {"--window": window, "--step": step, "--save": files.save}
        source = _read_timelines(videos[0], options, model)
    else:
        save = files.saved
        source = _predict_timelines(model, videos, (window, step), files, display.report)
    bout_rules = rules.over(source.rules)
    bout_rules.check(source.classes.heads)
    if kind not in (None, "json") and all(head.task == "regression" for head in source.classes.heads):
        raise RecipeError(f"--to {kind}: needs classes, but this model predicts numbers; use json")
    paths_of = _name_files(files.output, kind, source.names)
    save_option = "--save" if files.save is not None else "saved timeline"  # written beside --output
    outputs = {"--output": [*paths_of], save_option: [save], "--plot": [files.plot]}
    inputs = [*videos, *model.inputs, *filter(None, [truth]), *source.inputs]
    check_outputs(outputs, inputs, overwrite=files.overwrite or source.may_replace)
    with display:
        labeled = {}
        if truth is not None:  # before anything is computed
            labeled = _read_truth(truth, source, whose_bouts, display.report)
        for text in source.errors:
            display.report(notice(text))
        with source.timelines as timelines:
            if timelines is None:
                return
            timelines = replace(timelines, rules=bout_rules, model=model.checkpoint or timelines.model)
            for text in timelines.notices:
                display.report(notice(text))
            save = save if timelines.extents else None
            if save is not None:
                timelines.save(save)
            bouts = timelines.bouts()
            scores = None
            if truth is not None:
                scores = score_timelines(timelines, bouts, labeled, report=display.report)
            if files.plot is not None and timelines.extents:
                from everest.figures.timeline import draw_timelines

                draw_timelines(files.plot, timelines, bouts, labeled)
            rows = timelines.to_rows(bouts) if as_json or kind in (None, "json") else []
            text = json_text(rows if scores is None else {**scores, "timelines": rows}, indent=2) + "\n"
            written: list[Path] = []
            for file, paths in paths_of.items():
                if kind == "json":
                    write_text(file, text)
                    written.append(file)
                else:
                    written += write_bouts(file, str(kind), timelines, bouts, paths)
    if as_json:
        typer.echo(text, nl=False)
    elif files.output is None:
        typer.echo(format_bouts(rows), nl=False)
    if scores is not None and not as_json:
        typer.echo(format_scores(scores), nl=False, err=files.output is not None)
    for file in written:
        typer.echo(file, err=as_json)
    if timelines.extents and not model.quiet:
        say(*list_end_lines(timelines, save, files.plot, source.group))
    exit_if_failed(any(video.error for video in timelines.videos))


def _read_truth(truth: Path, source: TimelineSource, whose: BoutFilter, report: Report) -> Bouts:
    """The bouts of --truth by recording; reports what is left out, and which of them a model predicted."""
    from everest.annotations.codings import read_video_annotations
    from everest.inference.scores import check_labeled_classes

    labels = read_video_annotations([truth], source.names, people=whose)
    for text in labels.notices:
        report(notice(text))
    if labels.uncorrected_text:
        report(warning(f"--truth has {labels.uncorrected_text}: scores on them are not accuracy"))
    check_labeled_classes(labels.bouts, source.classes, report=report)
    return labels.bouts


def list_end_lines(
    timelines: Timelines, save: Path | None, plot: Path | None, group: str | None = None
) -> Iterator[str]:
    """The names of the saved file and of the figure, and the command that draws windows to check.

    Args:
        group: with which the model was trained; windows are drawn in each group if two or more fit in each.
    """
    from everest.metrics.budget import choose_first_draw

    if save is not None:
        rules = timelines.rules.options()
        yield f"probabilities: {save}" + (f" (unsmoothed; remembers {rules})" if rules else "")
    if plot is not None:
        yield f"figure: {plot}"
    heads = timelines.classes.heads
    if save is not None and len(heads) == 1 and heads[0].task != "regression":
        options = ["--timeline", str(save), "--output", str(save.with_name("checked.csv"))]
        number, seconds = choose_first_draw(timelines.extents)
        with suppress(UserError):  # the group is no part of these names
            num_groups = len(group_recordings(group, timelines.extents)) if group else 1
            if 1 < num_groups <= number // 2:
                options += ["--group", str(group)]
                number //= num_groups
        yield f"next: everest budget {shlex.join(options)} --draw {number} --window {seconds:g}"


def group_recordings(group: str, videos: Iterable[str]) -> dict[str, list[str]]:
    """The recordings of each group, by a value of --group."""
    from everest.lists.sample import Sample
    from everest.prepare.split import COLUMN_PREFIX, set_groups
    from everest.project.lists import SUBJECT

    if group == SUBJECT or group.startswith(COLUMN_PREFIX):
        raise RecipeError(
            f"--group {group}: recordings have only names here; give a pattern, as '^([^\\W_]+)'"
        )
    groups: dict[str, list[str]] = {}
    for sample in set_groups([Sample(path=video) for video in videos], group, root=Path()):
        groups.setdefault(sample.group_or_path, []).append(sample.path)
    return dict(sorted(groups.items()))


class TimelineSource(NamedTuple):
    """Timelines, saved or to be computed, with what is known before any is computed."""

    classes: Classes
    names: Sequence[str]  # paths of the videos
    inputs: Sequence[object]  # files that are read, besides files that options name
    timelines: AbstractContextManager[Timelines | None]  # None in all processes but the main one
    rules: BoutRules  # of a saved file, else none
    errors: Sequence[str] = ()  # of videos that could not be read
    may_replace: bool = False  # see `LongJob`
    group: str | None = None  # with which `everest train` divided the recordings


def _read_timelines(file: Path, options: Mapping[str, object], model: TimelineModel) -> TimelineSource:
    """Saved timelines; videos that could not be read are reported again.

    Refuses options without effect on saved timelines: `options` with a value, and the options of the model.
    """
    from everest.inference.timelines import Timelines

    given = [*(name for name, value in options.items() if value), *model.changed]
    if given:
        raise RecipeError(f"{', '.join(given)}: no effect on a saved file; give videos, or leave it out")
    saved = Timelines.load(file)
    names = [video.path for video in saved.videos]
    errors = [f"{video.video}: {video.error}" for video in saved.videos if video.error is not None]
    timelines = nullcontext(saved if is_main() else None)
    return TimelineSource(saved.classes, names, [], timelines, saved.rules, errors)


def _predict_timelines(
    model: TimelineModel,
    videos: Sequence[Path],
    window_step: tuple[float | None, float | None],
    files: TimelineFiles,
    report: Report,
) -> TimelineSource:
    """Timelines that a model will compute."""
    from everest.checkpoints.load import find_run_weights
    from everest.inference.bouts import NO_RULES
    from everest.inference.timelines import compute_timelines, read_trained_group, timeline_job
    from everest.inference.videos import Passes
    from everest.lists.inputs import find_samples
    from everest.lists.sources import seen_in

    if not model.checkpoint:
        raise RecipeError("--checkpoint: missing; name a model, or give a saved timeline instead of videos")
    opened = model.open((1, 1))
    classes = opened.classes  # also refuses an autoencoder, before the videos are listed
    samples = find_samples(videos, root=model.data)
    if known := seen_in(opened.recipe.data, "train", samples):
        names = first_names([Path(sample.path).name for sample in known])
        report(warning(f"the model learned from {names}: scores there are too good to publish"))
    inputs = [*find_run_weights(opened.file), *(sample.video for sample in samples)]
    window, step = window_step
    passes = Passes(batch=model.batch, window=window, step=step, report=report)
    others = [*filter(None, [files.output, files.plot])]
    options = {"output": files.saved, "other_files": others, "overwrite": files.overwrite}
    job = timeline_job(opened, samples, passes, **options)
    if job.rows_folder is not None:
        refuse_inputs(job.rows_folder, inputs)
    paths = [sample.path for sample in samples]
    timelines = compute_timelines(job)
    group = read_trained_group(opened.file)
    return TimelineSource(
        classes, paths, inputs, timelines, NO_RULES, may_replace=job.may_replace(), group=group
    )


def _find_saved(output: Path) -> Path:
    """The saved file next to an output, which may be a folder of subtitles."""
    stem = output.stem if output.suffix.lower() in KINDS_BY_ENDING else output.resolve().name
    return output.with_name(stem + SAVED_SUFFIX) if output.name else output / f"timeline{SAVED_SUFFIX}"


def _name_files(output: Path | None, kind: str | None, names: Sequence[str]) -> Mapping[Path, Sequence[str]]:
    """The files of --output, each with the paths of its videos."""
    from everest.annotations.formats import plan_files

    if output is None or kind is None:
        return {}
    videos = list(dict.fromkeys(names))
    return {output: videos} if kind == "json" else plan_files(output, videos, kind)


def check_outputs(
    outputs: Mapping[str, Sequence[Path | None]], inputs: Sequence[object], *, overwrite: bool
) -> None:
    """Refuse an output that exists, that is an input, or that two options name."""
    from everest.figures.style import check_figure_path

    options: dict[Path, str] = {}  # the option that names each file
    for option_name, paths in outputs.items():
        for path in filter(None, paths):
            if (first := options.setdefault(path.resolve(), option_name)) != option_name:
                raise RecipeError(f"{option_name} {path}: is also the file of {first}; choose another name")
            refuse_inputs(path, inputs, option=option_name)
            check = check_figure_path if option_name == "--plot" else check_new_file
            check(path, option=option_name, overwrite=overwrite)


def format_bouts(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of recordings, with a line for each bout, or for each window with predicted numbers."""
    lines: list[str] = []
    for row in rows:
        lines.append(row["video"])
        bouts = row["bouts"] if isinstance(row["bouts"], dict) else {"": row["bouts"]}
        parts = [
            (
                bout["start"],
                bout["end"],
                f"{head} {bout['label'] or 'background'}",
                f"{bout['probability']:.1%}",
            )
            for head, head_bouts in bouts.items()
            for bout in head_bouts
        ]
        parts += [
            (window["start"], window["end"], head, f"{predictions[0]['value']:.6g}")
            for window in row["windows"]
            for head, predictions in window.get("heads", {"": window.get("predictions", ())}).items()
            if "value" in predictions[0]
        ]
        for start, end, name, value in sorted(parts):
            lines.append(f"  {start:8.2f} to {end:8.2f} s  {value:>8}  {name.strip()}".rstrip())
        if "error" in row:
            lines.append(f"  {row['error']}")
    return "".join(f"{line}\n" for line in lines)


def format_scores(scores: Mapping[str, Any]) -> str:
    """The metrics of timelines in percent, and a line per class."""
    titles = {"frame_accuracy": "frame accuracy", "majority_accuracy": "most frequent class"}
    titles |= {"edit": "edit score", "f1@10": "F1@10", "f1@25": "F1@25", "f1@50": "F1@50"}
    titles |= {"map@0.5": "mAP@0.5"}
    lines = ["", "  percent", *(f"  {title:<22}{_format_cell(scores[key])}" for key, title in titles.items())]
    width = max(len(entry["name"]) for entry in [{"name": "class"}, *scores["classes"]])
    columns = ("frame F1", "AP@0.5", "true bouts", "predicted", "true s", "predicted s")
    lines += ["", f"  {'class':<{width}}" + "".join(f"  {name:>11}" for name in columns)]
    for entry in scores["classes"]:
        cells = [_format_cell(entry[key]) for key in ("f1", "ap@0.5")]
        cells += [f"{entry[of][unit]:g}" for unit in ("bouts", "seconds") for of in ("truth", "predicted")]
        lines.append(f"  {entry['name']:<{width}}" + "".join(f"  {cell:>11}" for cell in cells))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _format_cell(percent: float | None) -> str:
    return f"{'-' if percent is None else f'{percent:.1f}':>6}"
