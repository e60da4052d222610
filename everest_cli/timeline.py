"""`everest timeline`: classes over time, as bouts, files, scores and figures; options for bouts."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import typer

from everest.errors import RecipeError, UserError, first_names
from everest.system.events import Emit, notice, warning
from everest.system.files import refuse_inputs, write_text
from everest.system.processes import is_main
from everest.system.text import json_text
from everest_cli import options as o
from everest_cli.bout_files import (
    SAVED_SUFFIX,
    FileKind,
    TimelineFiles,
    check_outputs,
    choose_kind,
)
from everest_cli.model_options import ModelOptions
from everest_cli.options import argument, option
from everest_cli.output import Display, exit_if_failed, hint
from everest_cli.timeline_text import format_alarms, format_bouts, format_scores

if TYPE_CHECKING:
    from everest.lists.classes import Classes
    from everest_workflows.annotations.bout import Bouts
    from everest_workflows.recordings.bouts import BoutRules
    from everest_workflows.recordings.timelines import Timelines


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """The options that turn window probabilities into bouts; the default is the rules in the saved file."""

    background: float | None = option(
        "--background P", "Report no class where even the most probable is below P."
    )
    threshold: float | None = option(
        "--threshold P", "Multi-label: report classes at least this probable [the model's]. See --normal."
    )
    smooth: float | None = option(
        "--smooth SECONDS", "Average the probabilities over this time first [as saved, else 0].", min=0
    )
    min_seconds: float | None = option(
        "--min-seconds SECONDS", "Shorter bouts take their neighbor's class [as saved, else 0].", min=0
    )

    def over(self, saved: BoutRules) -> BoutRules:
        """Return the saved rules, changed by the given options."""
        return replace(saved, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class TimelineModel(ModelOptions):
    """The options of the model, which saved timelines do not need."""

    checkpoint: str = option(
        "--checkpoint -c C",
        f"{o.CHECKPOINT_HELP} Also a .onnx file. Not with a saved file.",
        "",
        show_default=False,
    )


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """The options of the sliding window."""

    window: float | None = option(
        "--window SECONDS", "Length of a window [as trained by everest train, else a clip's span].", min=0.001
    )
    step: float | None = option(
        "--step SECONDS",
        "Time between window starts [a quarter of the window if `everest train` chose it, else one window].",
        min=0.001,
    )


@dataclass(frozen=True, kw_only=True)
class AlarmOptions:
    """The options of alarms."""

    normal: str | None = option(
        "--normal CLASS",
        "Print alarms: windows where 1 - P(CLASS) is at least --threshold [as trained, else 0.5].",
    )
    hold: int | None = option("--hold N", "Such windows in a row that make an alarm [1].", min=1)

    def find(self, timelines: Timelines, threshold: float | None) -> dict[str, Any]:
        """The document of `find_alarms`; empty without --normal."""
        from everest_workflows.recordings.alarms import find_alarms

        if self.normal is None:
            return {}
        return find_alarms(timelines, self.normal, threshold=threshold, hold=self.hold or 1)


def timeline(
    *,
    model: TimelineModel,
    rules: RuleOptions,
    videos: list[Path] = argument("VIDEO…", "Videos, folders of videos, or lists; or one saved file."),
    windows: WindowOptions,
    files: TimelineFiles,
    truth: Path | None = option("--truth F", "Ground-truth annotations of any kind, to print scores."),
    whose: o.WhoseOptions,
    alarms: AlarmOptions,
    as_json: bool = o.AS_JSON,
) -> None:
    """Predict classes over time with a sliding window; neighboring windows of a class form a bout.

    --save F writes the probabilities to F; without it, --output writes them to OUTPUT.safetensors. To score
    or draw them again, give this file as VIDEO, without --checkpoint.

    Example: everest timeline VIDEOS -c runs/finetune --step 0.5 -o bouts.csv
    """
    from everest_workflows.recordings.scores import read_truth

    people = whose.read(truth, option="--truth")
    kind = choose_kind(files.output, files.to, get_args(FileKind))
    display = Display()
    if len(videos) == 1 and videos[0].suffix == SAVED_SUFFIX:
        source = _read_timelines(videos[0], windows, files, model)
    else:
        source = _predict_timelines(videos, windows, files, model, display.emit)
    threshold = rules.threshold
    if alarms.normal is None and alarms.hold is not None:
        raise RecipeError("--hold: needs --normal CLASS")
    if alarms.normal is not None:
        rules = replace(rules, threshold=None)  # it is that of alarms
    bout_rules = rules.over(source.rules)
    bout_rules.check(source.classes.heads)
    outputs = files.plan_outputs(kind, source.names, source.classes.heads)
    save_option = "--save" if files.save is not None else "saved timeline"  # it is written beside --output
    paths = {"--output": [*outputs], save_option: [source.save], "--plot": [files.plot]}
    inputs = [*videos, *model.inputs, *filter(None, [truth]), *source.inputs]
    check_outputs(paths, inputs, overwrite=files.overwrite or source.may_replace)
    with display:
        # Read before anything is computed.
        labeled, observers = None, {}
        if truth is not None:
            labeled, observers = read_truth(truth, source.names, source.classes, people, display.emit)
        for text in source.errors:
            display.emit(notice(text))
        with source.timelines as timelines:
            if timelines is None:
                return
            timelines = replace(timelines, rules=bout_rules, model=model.checkpoint or timelines.model)
            timelines = replace(timelines, subject=source.subject or timelines.subject)
            for text in timelines.notices:
                display.emit(notice(text))
            if source.save is not None and timelines.extents:
                timelines.save(source.save)
            found = alarms.find(timelines, threshold)
            results = _write_results(
                timelines, found, labeled, observers, files.plot, kind, outputs, as_json, display.emit
            )
    rows, scores, text, written = results
    if as_json:
        typer.echo(text, nl=False)
    elif files.output is None:
        typer.echo(format_bouts(rows), nl=False)
    if scores is not None and not as_json:
        typer.echo(format_scores(scores), nl=False, err=files.output is not None)
    if found and not as_json:
        typer.echo(format_alarms(found), nl=False, err=files.output is not None)
    for file in written:
        typer.echo(file, err=as_json)
    if timelines.extents:
        hint(*list_end_lines(timelines, source.save, files.plot, source.group))
    exit_if_failed(any(video.error for video in timelines.videos))


def _write_results(
    timelines: Timelines,
    alarms: Mapping[str, Any],
    labeled: Bouts | None,
    observers: Mapping[str, Bouts],
    plot: Path | None,
    kind: str | None,
    outputs: Mapping[Path, Sequence[str]],
    as_json: bool,
    emit: Emit,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, str, list[Path]]:
    """Score and draw timelines, and write the files of --output.

    Returns:
        The rows of `Timelines.to_rows` (none if only annotations are written), the scores, the document of
        --json, and the files of --output.
    """
    from everest_workflows.recordings.scores import compare_with_observers, score_timelines, write_bouts

    bouts = timelines.bouts()
    scores = None
    if labeled is not None:
        scores = score_timelines(timelines, bouts, labeled, emit=emit)
        scores["agreement"] = compare_with_observers(timelines, bouts, observers)
    if plot is not None and timelines.extents:
        from everest_workflows.recordings.timeline_figure import draw_timelines

        draw_timelines(plot, timelines, bouts, labeled or {})
    rows = timelines.to_rows(bouts) if as_json or kind in (None, "json") else []
    summary = {**(scores or {}), **({"alarms": alarms} if alarms else {})}
    text = json_text({**summary, "timelines": rows} if summary else rows, indent=2) + "\n"
    written: list[Path] = []
    for file, paths in outputs.items():
        if kind == "json":
            write_text(file, text)
            written.append(file)
        else:
            written += write_bouts(file, str(kind), timelines, bouts, paths)
    return rows, scores, text, written


def list_end_lines(
    timelines: Timelines, save: Path | None, plot: Path | None, group: str | None = None
) -> Iterator[str]:
    """Yield the names of the saved file and the figure, and the command that plans or draws windows to check.

    Args:
        group: the --group of training; windows are sampled in each group.
    """
    from everest_workflows.project.lists import SUBJECT
    from everest_workflows.recordings.footage import choose_first_sample
    from everest_workflows.recordings.window_plan import find_group_pattern, has_fold_tests

    if save is not None:
        rules = timelines.rules.options()
        yield f"probabilities: {save}" + (f" (unsmoothed; remembers {rules})" if rules else "")
    if plot is not None:
        yield f"figure: {plot}"
    heads = timelines.classes.heads
    if save is not None and len(heads) == 1 and heads[0].task != "regression":
        number, seconds = choose_first_sample(timelines.extents)
        if group == SUBJECT:
            group = find_group_pattern(timelines.model) or group
        options, num_groups = ["--timeline", str(save)], 1
        try:
            num_groups = len(group_recordings(group, timelines.extents)) if group else 1
        except UserError:  # the names of these recordings do not state their groups
            yield f"add --group PATTERN: training had --group {group}, which these names do not show"
        if group and num_groups > 1:
            options += ["--group", group]
        draw = ["--output", str(save.with_name("checked.csv")), "--draw", str(max(number // num_groups, 2))]
        options += ["--plan"] if has_fold_tests(timelines.model) else [*draw, "--window", f"{seconds:g}"]
        yield f"next: everest budget {shlex.join(options)}"


def group_recordings(group: str, videos: Iterable[str]) -> dict[str, list[str]]:
    """Return the recordings of each group, for a value of --group."""
    from everest.lists.groups import COLUMN_PREFIX, set_groups
    from everest.lists.sample import Sample
    from everest_workflows.project.lists import SUBJECT

    if group == SUBJECT or group.startswith(COLUMN_PREFIX):
        raise RecipeError(
            f"--group {group}: recordings have only names here; give a pattern, as '^([^\\W_]+)'"
        )
    groups: dict[str, list[str]] = {}
    for sample in set_groups([Sample(path=video) for video in videos], group, root=Path()):
        groups.setdefault(sample.group_or_path, []).append(sample.path)
    return dict(sorted(groups.items()))


class TimelineSource(NamedTuple):
    """Saved or future timelines, with the facts that are known before any timeline is computed."""

    classes: Classes
    names: Sequence[str]  # paths of the videos
    inputs: Sequence[object]  # files that are read, besides the files that options name
    timelines: AbstractContextManager[Timelines | None]  # None except in the main process
    rules: BoutRules  # rules of a saved file, else no rules
    errors: Sequence[str] = ()  # errors of unreadable videos
    save: Path | None = None  # file for the probabilities
    may_replace: bool = False  # see `LongJob`
    group: str | None = None  # --group by which `everest train` divided the recordings
    subject: str = ""  # --subject of `everest train`, if it names one subject


def _read_timelines(
    file: Path, windows: WindowOptions, files: TimelineFiles, model: TimelineModel
) -> TimelineSource:
    """Read saved timelines; report their unreadable videos again.

    Options that have no effect on saved timelines are refused.
    """
    from everest_workflows.recordings.timelines import Timelines

    options = {"--window": windows.window, "--step": windows.step, "--save": files.save}
    given = [*(name for name, value in options.items() if value), *model.changed]
    if given:
        raise RecipeError(f"{', '.join(given)}: no effect on a saved file; give videos, or leave it out")
    saved = Timelines.load(file)
    names = [video.path for video in saved.videos]
    errors = [f"{video.video}: {video.error}" for video in saved.videos if video.error is not None]
    timelines = nullcontext(saved if is_main() else None)
    return TimelineSource(saved.classes, names, [], timelines, saved.rules, errors)


def _predict_timelines(
    videos: Sequence[Path],
    windows: WindowOptions,
    files: TimelineFiles,
    model: TimelineModel,
    emit: Emit,
) -> TimelineSource:
    """Prepare timelines that a model will compute."""
    from everest.checkpoints.load import find_run_weights
    from everest.inference.videos import Batching
    from everest.lists.inputs import find_samples
    from everest.lists.sources import seen_in
    from everest_workflows.annotations.codings import NO_SUBJECT
    from everest_workflows.recordings.bouts import NO_RULES
    from everest_workflows.recordings.timelines import compute_timelines, read_trained_option, timeline_job

    save = files.saved
    if not model.checkpoint:
        raise RecipeError("--checkpoint: missing; name a model, or give a saved timeline instead of videos")
    opened = model.open((1, 1), "classifier")
    classes = opened.classes  # also refuses an autoencoder before videos are listed
    samples = find_samples(videos, root=model.data)
    if known := seen_in(opened.recipe.data, "train", samples):
        names = first_names([Path(sample.path).name for sample in known])
        emit(warning(f"the model learned from {names}: scores there are too good to publish"))
    inputs = [*find_run_weights(opened.file), *(sample.video for sample in samples)]
    batching = Batching(batch=model.batch, window=windows.window, step=windows.step, emit=emit)
    others = [*filter(None, [files.output, files.plot])]
    options = {"output": save, "other_files": others, "overwrite": files.overwrite}
    subject = read_trained_option(opened.module, "subject") or ""
    job = timeline_job(opened, samples, batching, **options)
    if job.rows_folder is not None:
        refuse_inputs(job.rows_folder, inputs)
    return TimelineSource(
        classes,
        names=[sample.path for sample in samples],
        inputs=inputs,
        timelines=compute_timelines(job),
        rules=NO_RULES,
        save=save,
        may_replace=job.may_replace(),
        group=read_trained_option(opened.module, "group"),
        subject="" if subject == NO_SUBJECT or set(subject) & {*"*?["} else subject,
    )
