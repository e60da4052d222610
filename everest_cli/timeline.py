"""`everest timeline`: classes over time, as bouts, files, scores and figures; options for bouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from everest.errors import RecipeError
from everest.system.events import Emit
from everest_cli import options as o
from everest_cli.bout_files import SAVED_SUFFIX, FileKind, TimelineFiles, check_outputs, choose_kind
from everest_cli.model_options import ModelOptions
from everest_cli.options import argument, option
from everest_cli.output import Display, exit_if_failed, hint
from everest_cli.timeline_text import format_alarms, format_bouts, format_scores
from everest_workflows.recordings.groups import suggest_budget

if TYPE_CHECKING:
    from everest_workflows.recordings.bouts import BoutRules
    from everest_workflows.recordings.timeline_run import TimelineSource
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
    normal: str | None = option(
        "--normal CLASS",
        "Print alarms: windows where 1 - P(CLASS) is at least --threshold [as trained, else 0.5].",
    )
    hold: int | None = option("--hold N", "Such windows in a row that make an alarm [1].", min=1)


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
    from everest_workflows.recordings.timeline_run import run_timeline

    bout_filter = whose.read(truth, option="--truth")
    kind = choose_kind(files.output, files.to, get_args(FileKind))
    display = Display()
    source = _find_source(videos, windows, files, model, display.emit)
    if alarms.normal is None and alarms.hold is not None:
        raise RecipeError("--hold: needs --normal CLASS")
    search: dict[str, Any] = {}
    if alarms.normal is not None:
        search = {"normal": alarms.normal, "threshold": rules.threshold, "hold": alarms.hold or 1}
        rules = replace(rules, threshold=None)  # it is that of alarms
    bout_rules = rules.over(source.rules)
    bout_rules.check(source.classes.heads)
    outputs = files.plan_outputs(kind, source.names, source.classes.heads)
    save_option = "--save" if files.save is not None else "saved timeline"  # it is written beside --output
    paths = {"--output": [*outputs], save_option: [source.save], "--plot": [files.plot]}
    inputs = [*videos, *model.inputs, *filter(None, [truth]), *source.inputs]
    check_outputs(paths, inputs, overwrite=files.overwrite or source.may_replace)
    options = {"truth": truth, "bout_filter": bout_filter, "alarms": search, "plot": files.plot, "kind": kind}
    with display:
        results = run_timeline(
            source, bout_rules, model=model.checkpoint, outputs=outputs, emit=display.emit, **options
        )
    if results is None:
        return
    if as_json:
        typer.echo(results.text, nl=False)
    elif files.output is None:
        typer.echo(format_bouts(results.rows), nl=False)
    if results.scores is not None and not as_json:
        typer.echo(format_scores(results.scores), nl=False, err=files.output is not None)
    if results.alarms and not as_json:
        typer.echo(format_alarms(results.alarms), nl=False, err=files.output is not None)
    for file in results.written:
        typer.echo(file, err=as_json)
    timelines = results.timelines
    if timelines.extents:
        hint(*list_end_lines(timelines, source.save, files.plot, source.group))
    exit_if_failed(any(video.error for video in timelines.videos))


def _find_source(
    videos: Sequence[Path], windows: WindowOptions, files: TimelineFiles, model: TimelineModel, emit: Emit
) -> TimelineSource:
    """Find saved timelines, or the videos of which a model computes them; refuse options without effect."""
    from everest.inference.videos import Batching
    from everest_workflows.recordings.timeline_run import TimelineSource

    if len(videos) == 1 and videos[0].suffix == SAVED_SUFFIX:
        options = {"--window": windows.window, "--step": windows.step, "--save": files.save}
        given = [*(name for name, value in options.items() if value), *model.changed]
        if given:
            raise RecipeError(f"{', '.join(given)}: no effect on a saved file; give videos, or leave it out")
        return TimelineSource.of_saved(videos[0])
    save = files.saved
    if not model.checkpoint:
        raise RecipeError("--checkpoint: missing; name a model, or give a saved timeline instead of videos")
    return TimelineSource.of_model(
        model.open((1, 1), "classifier"),
        videos,
        Batching(batch=model.batch, window=windows.window, step=windows.step, emit=emit),
        root=model.data,
        save=save,
        other_files=[*filter(None, [files.output, files.plot])],
        overwrite=files.overwrite,
    )


def list_end_lines(
    timelines: Timelines, save: Path | None, plot: Path | None, group: str | None = None
) -> Iterator[str]:
    """Yield the names of the saved file and the figure, and the next command; see `suggest_budget`."""
    if save is not None:
        rules = timelines.rules.options()
        yield f"probabilities: {save}" + (f" (unsmoothed; remembers {rules})" if rules else "")
    if plot is not None:
        yield f"figure: {plot}"
    if save is not None:
        yield from suggest_budget(timelines, save, group)
