"""`everest profile`: cost, memory, speed and latency."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from everest.errors import EnvironmentProblem
from everest_cli import options as o
from everest_cli.options import is_on_cpu, option, refuse
from everest_cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from everest.config.settings import Recipe

MB, GB = 1e6, 1e9


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    backbone: str | None = option("--backbone -b NAME", "vit-tiny, vit-s, vit-b, vit-l, vit-h, vit-g.")
    recipe: str = option(
        "--recipe -r R", "A shipped recipe, or a YAML file.", "k400", callback=o.refuse_sweep
    )
    data: Path | None = option("--data DIR", "Videos whose reading is timed, or for --latency.")
    checkpoint: str | None = option("--checkpoint -c C", "Checkpoint or ONNX file, for --latency.")
    latency: bool = option("--latency", "Time a trained model: a video file, and a timeline.", False)
    window: float | None = option("--window SECONDS", "Window of the timeline, for --latency.", min=0.001)
    step: float | None = option("--step SECONDS", "Step of the timeline, for --latency.", min=0.001)
    overrides: list[str] | None = o.OVERRIDES
    compare: bool = option("--compare", "Compare EVEREST, VideoMAE, ST-MAE and VideoMAE V2.", False)
    measure: bool = option("--measure", "Time real steps on this device.", False)
    batch: int | None = option(
        "--batch N", "Clips of a timed step; windows, for --latency.", min=1, max=o.MAX_CLIPS
    )
    videos: int | None = option("--videos N", "Hours of a pre-training on N videos, by timed steps.", min=1)
    labeled: int | None = option("--labeled N", "Also the hours of fine-tuning on N videos.", min=1)
    epochs: int | None = option("--epochs E", "Epochs of that pre-training [the recipe's].", min=1)
    gpus: str = option("--gpus auto|N|cpu|mps", "Device to measure on; with --videos N such GPUs.", "auto")

    @property
    def num_gpus(self) -> int:
        """The number of GPUs that a planned run is divided among."""
        return int(self.gpus) if self.videos and self.gpus.isdecimal() and int(self.gpus) else 1

    @property
    def is_measured(self) -> bool:
        return self.measure or self.data is not None or self.videos is not None

    def check(self) -> None:
        measures = self.is_measured or self.latency
        refuse(
            {
                "--latency and --checkpoint: give both or neither": (self.checkpoint is None) == self.latency,
                "--labeled and --epochs need --videos N, the number of training videos": self.videos is None
                and (self.labeled or self.epochs),
                "--window and --step need --latency": not self.latency and (self.window or self.step),
                "--batch needs --measure, --data, --videos or --latency": self.batch and not measures,
                "--gpus needs --measure, --data, --videos or --latency": self.gpus != "auto" and not measures,
            }
        )


def profile(*, options: ProfileOptions, as_json: bool = o.AS_JSON) -> None:
    """Compute the cost of a recipe: GMACs, parameters, tokens and memory of every stage.

    With --videos, also the hours of a run: steps, and with --data reading, are timed on this machine and
    multiplied. With --checkpoint and --latency, only the time of a trained model: for a video, on one CPU
    thread unless OMP_NUM_THREADS is set, and for 100 hours of recordings.

    Example: everest profile --backbone vit-s --videos 2000 --epochs 100
    """
    options.check()
    if options.checkpoint is not None:  # time of a trained model
        from everest.inference.videos import Batching
        from everest.profiling.latency import measure_latency
        from everest_workflows.recordings.speed import time_windows

        windows = Batching(window=options.window, step=options.step, batch=options.batch or 1)
        document = measure_latency(
            options.checkpoint,
            options.data,
            cpu=is_on_cpu(options.gpus),
            notify=say,
            time_windows=partial(time_windows, windows=windows),
        )
        (print_json if as_json else _print_latency)(document)
    else:
        (print_json if as_json else _print_profile)(_make_document(options))


def _make_document(options: ProfileOptions) -> dict[str, Any]:
    """The document of --json: the cost of a recipe and of all methods, measurements, and the plan."""
    from everest.checkpoints.frozen import with_absolute_paths
    from everest.config.recipe import load_recipe
    from everest.profiling.profile import METHODS, profile

    backbone = [] if options.backbone is None else [f"model.backbone={options.backbone}"]
    data = [] if options.data is None else [f"data.root={json.dumps(str(options.data.resolve()))}"]
    load = partial(load_recipe, overrides=[*backbone, *(options.overrides or []), *data])
    recipe = with_absolute_paths(load(options.recipe))
    document: dict[str, Any] = {**profile(recipe), "compare": []}
    if options.compare:
        document["compare"] = [{"method": name, **profile(load(source))} for name, source in METHODS.items()]
    if options.is_measured:
        _measure(recipe, options, document)
    return document


def _measure(recipe: Recipe, options: ProfileOptions, document: dict[str, Any]) -> None:
    """Add the measured speed of the stages to a document, and the plans that multiply it."""
    import torch

    from everest.profiling.profile import PROFILED_STAGES
    from everest.profiling.timing import measure_stage, open_stage_dataset, plan_run

    gpus, reads = options.num_gpus, options.data is not None
    if gpus > 1 and not torch.cuda.is_available():
        raise EnvironmentProblem(f"--gpus {gpus}: no GPU here to measure; plan on a machine with one")
    on_cpu = is_on_cpu("auto" if gpus > 1 else options.gpus)
    stages = PROFILED_STAGES
    if options.videos is not None:
        stages = ("pretrain", "finetune") if options.labeled else ("pretrain",)
    has_labels = recipe.data.train is not None
    for stage in stages if reads else ():  # missing videos are reported before anything is measured
        if stage == "pretrain" or (stage == "finetune" and has_labels):
            open_stage_dataset(recipe, stage)
    for stage in stages:
        stage_reads = reads and (stage == "pretrain" or has_labels)
        speed = measure_stage(recipe, stage, batch=options.batch, cpu=on_cpu, reads=stage_reads)
        document["stages"][stage]["measured"] = speed.dump()
        if options.videos is not None and stage == "pretrain":
            run = {"videos": options.videos, "epochs": options.epochs, "gpus": gpus}
            document["plan"] = plan_run(recipe, stage, speed, **run)
        elif options.labeled is not None and stage == "finetune":
            run = {"videos": options.labeled, "gpus": gpus}
            document["finetune_plan"] = plan_run(recipe, stage, speed, **run)


def _print_latency(document: Mapping[str, Any]) -> None:
    from everest.system.compute import NetworkTime

    latency = document["latency"]
    for name, value in latency.items():
        typer.echo(f"{name:<18}{value:10.1f}" if name.endswith("_ms") else f"{name:<18}{value:8}")
    own = "" if document["device"] != "cpu" else ", in the thread's own time as in train and export"
    typer.echo(f"network_ms: of the fastest pass{own}; the other times are by the clock")
    say(*NetworkTime(latency["network_ms"], latency["network_clock_ms"]).warnings)
    typer.echo(
        f"{document['checkpoint']} ({document['precision']}) on {document['device']}; one clip of "
        f"{document['data'] or 'a rendered video of 320 x 240 pixels'}"
    )
    if (timeline := document["windows"]) is not None:
        typer.echo(
            f"timeline: 100 hours of video take {100 / timeline['hours_per_hour']:.3g} hours (windows of "
            f"{timeline['window']:g} s, every {timeline['step']:g} s, --batch {timeline['batch']}, "
            "one process)"
        )


def _format_speed(speed: Mapping[str, Any]) -> str:
    text = (
        f"{speed['step_seconds']:.3f} s for {speed['batch']} clips: {speed['clips_per_second']:.2f} "
        f"clips/s, peak {speed['peak_memory_bytes'] / GB:.2f} GB ({speed['device']}, {speed['precision']})"
    )
    if speed["read_seconds"] is None:
        return text
    return f"{text}; reading {speed['read_clips_per_second']:.1f} clips/s"


# Table rows by key in the document of --json: the name of a row, and how to format its value.
TABLE_ROWS: Final[dict[str, tuple[str, Callable[[Any], str]]]] = {
    "gmacs": ("GMACs forward (the papers' GFLOPs)", "{:.2f}".format),
    "gflops": ("GFLOPs forward (2 x GMACs)", "{:.2f}".format),
    "tokenizer_gmacs": ("GMACs of the frozen tokenizer", "{:.2f}".format),
    "teacher_gmacs": ("GMACs of the frozen teacher", "{:.2f}".format),
    "views": ("views (clips x crops)", "{0[clips]} x {0[crops]}".format),
    "parameters": ("parameters", lambda number: f"{number / 1e6:.2f} M"),
    "trained_parameters": ("trained parameters", lambda number: f"{number / 1e6:.2f} M"),
    "tokens": ("tokens", lambda counts: ", ".join(f"{count} {name}" for name, count in counts.items())),
    "activation_bytes_per_clip": ("activations of a clip, estimate", lambda size: f"{size / MB:.1f} MB"),
    "model_state_bytes": ("weights, gradients, moments", lambda size: f"{size / GB:.2f} GB"),
    "measured": ("measured step", _format_speed),
}


def _print_profile(document: Mapping[str, Any]) -> None:
    """Print a table with a column for each stage, then the plan and the comparison of methods."""
    title = f"{document['backbone']}, {document['frames']} frames, {document['size']} pixels "
    title += f"({document['recipe']}, estimates for {document['precision']})"
    stages = document["stages"].values()
    rows = []
    for key, (name, text_of) in TABLE_ROWS.items():
        values = [stage.get(key) for stage in stages]
        if values != [None] * len(values):
            rows.append([name, *("-" if value is None else text_of(value) for value in values)])
    print_table(["", *document["stages"]], rows, title=title, box=None)
    for name, stage in document["stages"].items():
        if stage.get("measured", {}).get("data_wait", 0) > 0.1:
            wait = f"{stage['measured']['data_wait']:.0%} of the time of {name} is reading"
            typer.echo(f"{wait}; more train.workers or `everest prepare encode --codec mjpeg` may help")
    for plan in ("plan", "finetune_plan"):
        if plan in document:
            typer.echo(document[plan]["sentence"])
    columns = ("method", "stage", "GMACs", "GFLOPs", "everest / it")
    columns += ("parameters", "activations of a clip", "tokens")
    rows = []  # a row per method and stage, with the ratio of the first method's GMACs to this method's
    for method in document["compare"]:
        for name, stage in method["stages"].items():
            cells = {key: text_of(stage[key]) for key, (_, text_of) in TABLE_ROWS.items() if key in stage}
            ratio = f"{document['compare'][0]['stages'][name]['gmacs'] / stage['gmacs']:.2f}"
            rest = (cells[key] for key in ("parameters", "activation_bytes_per_clip", "tokens"))
            rows.append((method["method"], name, cells["gmacs"], cells["gflops"], ratio, *rest))
    if rows:
        print_table(columns, rows, title="\nMethods", box=None)
