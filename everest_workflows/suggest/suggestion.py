"""A suggested recipe for lists or class folders, with the time of its stages on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from everest.checkpoints.describe import WeightSettings
from everest.config.merge import HYPHENATED_KEYS, read_overrides
from everest.config.recipe import load_recipe
from everest.config.recipe_files import RecipeFile
from everest.config.settings import DataSettings, Recipe
from everest.config.values import StageName
from everest.config.yaml import write_yaml
from everest.errors import RecipeError
from everest.profiling.timing import measure_stage
from everest.system.compute import NetworkTime
from everest.system.text import time_text
from everest_workflows.suggest.rules import (
    DEVICE_VALUES,
    Choice,
    DataStats,
    DeviceValues,
    RecipePurpose,
    choose_values,
    examine_data,
)
from everest_workflows.suggest.variants import (
    MIN_PAPER_VIDEOS,
    PAPER_BASE_LINE,
    choose_paper_values,
    reduce_for_latency,
    with_weights,
)

STAGES_OF_PURPOSE: Final[dict[RecipePurpose, tuple[StageName, ...]]] = {  # that a recipe is for
    "pretrain": ("pretrain",),
    "finetune": ("pretrain", "finetune"),
    "scratch": ("finetune",),
}


class StageTime(NamedTuple):
    """The steps of a stage, and its time at a measured speed, without validations."""

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
    max_steps: Mapping[str, int] = field(default_factory=dict)  # none: as many as the data set needs
    start: WeightSettings | None = None  # the weights of --init; None: from scratch
    size: DeviceValues | None = None  # of the model, for a time on a CPU; None: by the device
    frames: int | None = None  # of a clip of image weights, for a time on a CPU; None: as usual
    latency: float | None = None  # milliseconds for a clip on one thread of a CPU; None: no limit
    network_time: NetworkTime | None = None  # None: not measured

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
        is_large = (self.stats.pretrain or self.stats.train).num_videos >= MIN_PAPER_VIDEOS
        if self.purpose != "scratch" and self.device != "cpu" and is_large:
            base = PAPER_BASE_LINE
            choices = choose_paper_values(self.stats, self.device, max_steps=self.max_steps)
        else:
            choices = choose_values(
                self.stats, self.device, purpose=self.purpose, max_steps=self.max_steps, size=self.size
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
            speed = measure_stage(self.recipe, stage, batch=batch if on_cpu else None, cpu=on_cpu, reads=True)
            speeds[stage] = 1 / speed.seconds(1)
        return replace(self, speeds=speeds)

    def within(self, max_seconds: float) -> Suggestion:
        """The same suggestion with at most `max_seconds` for each measured stage."""
        sizes = {stage: getattr(self.recipe, stage).batch_size for stage in self.speeds}
        max_steps = {stage: int(max_seconds * speed / sizes[stage]) for stage, speed in self.speeds.items()}
        return replace(self, max_steps=max_steps)


def suggest_recipe(
    section: Mapping[str, Any],
    device: str,
    *,
    purpose: RecipePurpose,
    output: Path,
    overrides: Sequence[str] = (),
    start: WeightSettings | None = None,
) -> Suggestion:
    """Choose the values of a recipe for these data and a device; see `Suggestion`."""
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
    """The choices with the values of overrides, and the overrides of all other keys.

    Among the latter are those that choose another variant of a section than the choices are for.
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

    Comments name the values of --set that are not among them, `overridden`.
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
