"""A suggested recipe for lists or class folders, with the time of its stages on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from everest.checkpoints.describe import WeightSettings, read_weight_settings
from everest.config.heads import Task
from everest.config.merge import HYPHENATED_KEYS, read_overrides
from everest.config.recipe import load_recipe
from everest.config.recipe_files import RecipeFile
from everest.config.settings import DataSettings, Recipe
from everest.config.stage_settings import StageName
from everest.config.yaml import write_yaml
from everest.errors import RecipeError
from everest.lists.sample import ListSize, Sample
from everest.lists.sources import LIST_FILES
from everest.lists.writing import CLASSES_FILE
from everest.prepare.split import LabeledVideos
from everest.profiling.timing import measure_reading_speed, open_stage_clips, time_steps
from everest.suggest.data_section import (
    find_named_lists,
    find_shared_videos,
    has_class_folders,
    make_data_section,
    with_task,
)
from everest.suggest.rules import (
    DEVICE_VALUES,
    Choice,
    DataStats,
    DeviceValues,
    RecipePurpose,
    choose_values,
    examine_data,
)
from everest.suggest.variants import (
    FEWEST_PAPER_VIDEOS,
    PAPER_BASE_LINE,
    choose_paper_values,
    reduce_for_latency,
    with_weights,
)
from everest.system.compute import NetworkTime
from everest.system.events import Report, notice, warning
from everest.system.files import make_folder, write_text
from everest.system.processes import num_cores
from everest.system.storage import parse_location
from everest.system.text import plural, time_text

STAGES_OF_PURPOSE: Final[dict[RecipePurpose, tuple[StageName, ...]]] = {  # that a recipe is for
    "pretrain": ("pretrain",),
    "finetune": ("pretrain", "finetune"),
    "scratch": ("finetune",),
}


class StageTime(NamedTuple):
    """The steps of a stage, and its time at a measured speed, without validations and probes."""

    stage: StageName
    steps: int
    batch_size: int
    clips_per_second: float | None  # None: not measured
    seconds: int | None

    def __str__(self) -> str:
        text = f"{self.stage}: {self.steps} steps of {self.batch_size} clips"
        if self.seconds is None or self.clips_per_second is None:
            return f"{text}; their time was not measured, because --device is another machine"
        digits = ".0f" if self.clips_per_second >= 10 else ".2g"
        speed = f"{self.clips_per_second:{digits}} clips/s"
        return f"{text}, about {time_text(self.seconds)} at {speed} (measured)"


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A suggested recipe, and the steps and the time of each stage that it is for."""

    section: Mapping[str, Any]  # of data: folder and lists
    stats: DataStats
    device: str  # one of `DEVICE_VALUES`
    purpose: RecipePurpose
    output: Path  # where the recipe will be written, for messages and its name
    overrides: Sequence[str]  # `section.key=value` texts, which the stages also get
    speeds: Mapping[StageName, float] = field(default_factory=dict)  # clips/s here; none: not measured
    most_steps: Mapping[str, int] = field(default_factory=dict)  # none: as many as the data set needs
    start: WeightSettings | None = None  # the weights of --init; None: from scratch
    size: DeviceValues | None = None  # of the model, for a time on a CPU; None: by the device
    frames: int | None = None  # of a clip of image weights, for a time on a CPU; None: as usual
    latency: float | None = None  # milliseconds for a clip on one thread of a CPU; None: no limit
    network_time: NetworkTime | None = None  # None: not measured
    larger_ms: float | None = None  # of the next larger network, which is too slow; None: not measured

    @property
    def network_ms(self) -> float | None:
        """The milliseconds of the network for a clip, as far as they were measured."""
        return None if self.network_time is None else self.network_time.alone_ms

    @property
    def is_fast(self) -> bool:
        """Whether the network keeps the limit, as far as it was measured."""
        return self.latency is None or self.network_ms is None or self.network_ms <= self.latency

    @property
    def text(self) -> str:
        """The YAML."""
        base = (self.size or DEVICE_VALUES[self.device]).base
        is_large = (self.stats.pretrain or self.stats.train).num_videos >= FEWEST_PAPER_VIDEOS
        if self.purpose != "scratch" and self.device != "cpu" and is_large:
            base = PAPER_BASE_LINE
            choices = choose_paper_values(self.stats, self.device, most_steps=self.most_steps)
        else:
            choices = choose_values(
                self.stats, self.device, purpose=self.purpose, most_steps=self.most_steps, size=self.size
            )
        if self.latency is not None:
            choices = reduce_for_latency(choices, self.latency, fits=self.is_fast)
        if self.start is not None:
            choices = with_weights(choices, self.stats, self.device, self.start, frames=self.frames)
        choices, overridden = with_overrides(choices, self.overrides)
        return format_recipe(choices, self.section, base=base, stats=self.stats, overridden=overridden)

    @cached_property
    def recipe(self) -> Recipe:
        output = self.output
        file = RecipeFile(name=output.stem, label=str(output), text=self.text, folder=output.parent)
        return load_recipe(file, overrides=self.overrides)

    @property
    def times(self) -> list[StageTime]:
        times = []
        for stage in STAGES_OF_PURPOSE[self.purpose]:
            size = self.stats.train if stage == "finetune" else self.stats.pretrain or self.stats.train
            section = getattr(self.recipe, stage)
            steps = section.steps or max(1, section.epochs * size.num_samples // section.batch_size)
            speed = self.speeds.get(stage)
            seconds = None if speed is None else round(steps * section.batch_size / speed)
            times.append(StageTime(stage, steps, section.batch_size, speed, seconds))
        return times

    def timed(self) -> Suggestion:
        """The same suggestion with the measured speed of each stage on this machine."""
        speeds: dict[StageName, float] = {}
        on_cpu = self.device == "cpu"
        for stage in STAGES_OF_PURPOSE[self.purpose]:
            batch = 16 if self.start is None else 2  # public weights are larger than what a CPU trains
            timed = time_steps(self.recipe, stage, batch=batch if on_cpu else None, cpu=on_cpu)
            step = timed["clips_per_second"]
            read = measure_reading_speed(open_stage_clips(self.recipe, stage)) * num_cores()
            # On a CPU, steps and reading share the cores; on a GPU, the slower one counts.
            speeds[stage] = 1 / (1 / step + 1 / read) if on_cpu else min(step, read)
        return replace(self, speeds=speeds)

    def within(self, most_seconds: float) -> Suggestion:
        """The same suggestion with at most `most_seconds` for each measured stage."""
        sizes = {stage: getattr(self.recipe, stage).batch_size for stage in self.speeds}
        most_steps = {stage: int(most_seconds * speed / sizes[stage]) for stage, speed in self.speeds.items()}
        return replace(self, most_steps=most_steps)


@dataclass(frozen=True, kw_only=True)
class SuggestRequest:
    """The options of `everest recipes suggest`."""

    data: str  # a folder with class folders or lists
    output: Path
    lists: Mapping[str, str]  # by their keys of the data section; empty: those in the folder
    device: str  # one of `DEVICE_VALUES`
    pretrain: str | None  # a folder or a list of videos to pre-train on first
    unlabeled: bool  # pre-train only, on `pretrain` or `data`
    task: Task | None  # None: as the labels show
    group: str | None  # of the videos of class folders
    init: str | None  # the weights to start from; None: from scratch
    hours: float | None  # at most for each stage
    measured: bool  # whether the stages are timed on this machine
    overwrite: bool

    @property
    def folder(self) -> Path:
        """The folder for the lists of class folders, next to the recipe."""
        return self.output.absolute().with_name(f"{self.output.name.removesuffix('.yaml')}-lists")


def suggest_for_folder(request: SuggestRequest, report: Report) -> tuple[Suggestion, list[str]]:
    """Write a recipe for a folder; class folders without lists get lists beside it.

    Returns the recipe, and lines that describe new lists.
    """
    on_cpu = request.device == "cpu"
    # Before the videos are read: a mistake in --init is found at once.
    start = None if request.init is None else read_weight_settings(request.init, on_cpu=on_cpu)
    has_new_lists = not (request.lists or request.unlabeled) and has_class_folders(request.data)
    if request.group is not None and not has_new_lists:
        raise RecipeError("--group: has no effect on lists; use it with class folders")
    videos, parts = _split_class_folders(request) if has_new_lists else (None, {})
    folder = request.folder
    # Temporary lists until the recipe is written; made beside their folder to check that it is writable.
    with make_folder(folder.parent), TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as trial:
        lists = request.lists if videos is None else videos.write(parts, Path(trial))
        section = _check_section(request, lists, has_new_lists=has_new_lists, report=report)
        purpose: RecipePurpose = "finetune" if request.pretrain else "scratch"
        purpose = "pretrain" if request.unlabeled else purpose
        suggestion = suggest_recipe(
            section, request.device, purpose=purpose, output=request.output, start=start
        )
        suggestion = suggestion.timed() if request.measured else suggestion
        if request.hours is not None:
            suggestion = suggestion.within(3600 * request.hours)
    lines = []
    if videos is not None:
        for name in (*LIST_FILES.values(), CLASSES_FILE):  # of an earlier recipe
            (folder / name).unlink(missing_ok=True)
        videos.write(parts, folder)
        sizes = (f"{name}: {ListSize.of(samples)}" for name, samples in parts.items())
        lines = [*videos.notices, *sizes, f"lists: {folder}"]
    written = {
        key: value.replace(trial, str(folder)) if isinstance(value, str) else value
        for key, value in section.items()
    }
    suggestion = replace(suggestion, section=written)
    write_text(request.output, suggestion.text)
    missing = [name for name in ("val", "test") if section.get(name) is None]
    if missing and not request.unlabeled:
        fix = "`everest prepare split LIST` divides a list first; its --group keeps people apart"
        if has_new_lists:
            fix = "label more videos, of further groups"
        report(warning(f"no {' or '.join(missing)} list; {fix}"))
    return suggestion, lines


def _check_section(
    request: SuggestRequest, lists: Mapping[str, str], *, has_new_lists: bool, report: Report
) -> dict[str, Any]:
    """The data section of a recipe with `lists`, which were given or made from class folders.

    Refuses videos of class folders for pre-training, and warns if videos for testing are among them.
    """
    source = request.pretrain
    section = make_data_section(request.data, **lists, pretrain=source, labeled=not request.unlabeled)
    if not request.unlabeled:
        section, reason = with_task(section, request.task)
        if reason is not None:
            report(notice(reason))
        if source is None:
            return section
    settings = DataSettings(**section)
    keys = ("train", "val", "test") if has_new_lists else ("val", "test")
    held_out = [name for key in keys if (name := getattr(settings, key)) is not None]
    held_out = held_out or [name for key in ("val", "test") for name in find_named_lists(request.data, key)]
    shared = find_shared_videos(settings, "pretrain" if source else "train", held_out)
    videos = plural(len(shared), "video")
    if shared and has_new_lists:
        raise RecipeError(
            f"--pretrain {source}: has {videos} of {request.data}, which will be split; name another folder, "
            "or make lists first (everest prepare split) and use --train train.csv --pretrain train.csv"
        )
    if shared:
        given, fix = (
            (f"--pretrain {source}", "--pretrain") if source else (f"--unlabeled {request.data}", "--train")
        )
        text = f"{given} has {videos} of the validation or test list, such as {shared[0]}, so results"
        report(warning(f"{text} will be too good; leave them out by {fix} LIST"))
    return section


def _split_class_folders(request: SuggestRequest) -> tuple[LabeledVideos, dict[str, list[Sample]]]:
    """The videos of class folders, and their parts for the lists in `request.folder`."""
    folder = request.folder
    root = parse_location(request.data)
    if not isinstance(root, Path):
        raise RecipeError(f"{request.data}: remote class folders cannot be split; make lists of them")
    if folder.parent == root.absolute():
        raise RecipeError(
            f"--output {request.output}: its lists would look like a class in this folder; name another "
            "folder"
        )
    if folder.exists() and not request.overwrite:
        raise RecipeError(f"{folder}: exists; name another recipe, or use --overwrite")
    videos = LabeledVideos.read(root, root=root.absolute(), group=request.group)
    return videos, videos.split()


def suggest_recipe(
    section: Mapping[str, Any],
    device: str,
    *,
    purpose: RecipePurpose,
    output: Path,
    overrides: Sequence[str] = (),
    start: WeightSettings | None = None,
) -> Suggestion:
    """Choose the values of a recipe for these data and a device; see `Suggestion`.

    Args:
        start: the weights to start from, of which the clips and the encoder follow; None: from scratch.
    """
    fitted = ("data.size=", "data.frames=")  # to the suggested tubelets
    data_overrides = [text for text in overrides if text.startswith("data.") and not text.startswith(fitted)]
    base_data = load_recipe("custom", overrides=data_overrides).data if data_overrides else DataSettings()
    settings = replace(base_data, **section)
    stats = examine_data(settings, labeled=purpose != "pretrain")
    if stats.pretrain is not None and stats.pretrain.num_samples == 1:
        raise RecipeError(f"--pretrain {settings.pretrain}: one video; pre-training compares several")
    return Suggestion(
        section=section,
        stats=stats,
        device=device,
        purpose=purpose,
        output=output,
        overrides=overrides,
        start=start,
    )


def with_overrides(
    choices: Sequence[Choice], overrides: Sequence[str]
) -> tuple[list[Choice], dict[str, Any]]:
    """The choices with the values of overrides, and the overridden keys that are not among them.

    Nor are those that choose a variant of a section: the other choices are for the suggested one.
    """
    layers = [values for _, values in read_overrides(overrides, [])]
    given = {".".join(key): value for values in layers for key, value in values.items()}
    chosen = {choice.key for choice in choices} - set(map(".".join, HYPHENATED_KEYS))
    replaced = [
        choice._replace(value=given[choice.key], reason="by --set")
        if choice.key in chosen & given.keys()
        else choice
        for choice in choices
    ]
    return replaced, {key: value for key, value in given.items() if key not in chosen}


def format_recipe(
    choices: Sequence[Choice],
    data: Mapping[str, Any],
    *,
    base: str,
    stats: DataStats,
    overridden: Mapping[str, Any],
) -> str:
    """The YAML of a recipe with a comment for each value; `choices` are in the order of its sections.

    `overridden` are values of --set that are not among them; comments name them.
    """
    labels = f"{stats.classes} classes" if stats.classes else "no labels"
    if stats.task == "regression":
        labels = "numbers as labels"
    more = f" Pre-training: {stats.pretrain}." if stats.pretrain else ""
    lines = [
        f"# Training: {stats.train}, {labels}.{more} Each value states its reason.",
        *(f"# by --set: {key}: {value!r}" for key, value in overridden.items()),
        f"base: {base}",
        *write_yaml({"data": dict(data)}).splitlines(),
    ]
    last_section = "data"
    for choice in choices:
        section, _, key = choice.key.partition(".")
        lines += [] if section == last_section else [f"{section}:"]
        last_section = section
        first, *others = write_yaml({key: choice.value}, width=10_000).splitlines()
        lines += [f"  {first} # {choice.reason}", *(f"  {line}" for line in others)]
    return "\n".join(lines) + "\n"
