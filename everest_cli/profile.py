"""`everest profile`: cost, memory, speed and latency."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import typer

from everest.errors import RecipeError, unknown_name
from everest_cli import options as o
from everest_cli.options import is_on_cpu, option, read_size, refuse
from everest_cli.output import print_json, print_table, say

MB, GB = 1e6, 1e9


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """The options of `everest profile`."""

    backbone: str | None = option("--backbone -b NAME", "vit-tiny, vit-s, vit-b, vit-l, vit-h, vit-g.")
    method: str | None = option("--method -m NAME", "everest, videomae, st-mae, videomae-v2 [everest].")
    recipe: str | None = option("--recipe -r R", "A recipe instead of a method.")
    frames: int | None = option("--frames N", "Frames of a clip.")
    size: str | None = option("--size N|HxW", "Side, or height x width of a frame.")
    keep: float | None = option("--keep X", "Keep ratio in pre-training (rho_pre).")
    data: Path | None = option("--data DIR", "Videos to measure the loader on, or for --latency.")
    checkpoint: str | None = option("--checkpoint -c C", "Checkpoint or ONNX file, for --latency.")
    latency: bool = option("--latency", "Time a trained model: a video file, and a timeline.", False)
    window: float | None = option("--window SECONDS", "Window of the timeline, for --latency.", min=0.001)
    step: float | None = option("--step SECONDS", "Step of the timeline, for --latency.", min=0.001)
    overrides: list[str] | None = o.OVERRIDES
    compare: bool = option("--compare", "Compare all methods.", False)
    paper: bool = option("--paper", "Print the paper's cost tables beside everest's values.", False)
    measure: bool = option("--measure", "Time real steps on this device.", False)
    batch: int | None = option(
        "--batch N", "Clips per step, for --measure; windows, for --latency.", min=1, max=o.MOST_CLIPS
    )
    videos: int | None = option("--videos N", "Plan a pre-training run on N videos.", min=1)
    labeled: int | None = option("--labeled N", "Plan fine-tuning on N labeled videos, too.", min=1)
    epochs: int | None = option("--epochs E", "Epochs of the planned pre-training [the recipe's].", min=1)
    codec: Literal["h264", "mjpeg"] = option("--codec", "Codec of the videos of the planned run.", "h264")
    gpu: str | None = option("--gpu G", "GPU of the planned run: h100, h200, a100, 4090, t4.")
    gpus: str = option("--gpus auto|N|cpu|mps", "Device to measure on, or N GPUs to plan for.", "auto")

    @property
    def plans_gpus(self) -> bool:
        """Whether --gpus is the number of GPUs to plan for, not a device to measure on."""
        return self.gpu is not None and self.gpus.isdecimal() and int(self.gpus) > 0

    def check(self) -> None:
        """Raise RecipeError for options that do not fit together."""
        measures = self.measure or self.data or self.latency
        plans = self.gpu is not None
        refuse(
            {
                "--latency and --checkpoint: give both or neither": (self.checkpoint is None) == self.latency,
                "--method and --recipe both choose a recipe; use one of them": self.method and self.recipe,
                "--videos, --labeled and --epochs need --gpu, the GPU of the planned run": not plans
                and (self.videos or self.labeled or self.epochs),
                "--gpu plans a run: add --videos N, the number of training videos": self.gpu
                and self.videos is None,
                "--window and --step need --latency": not self.latency and (self.window or self.step),
                "--batch needs --measure, --data or --latency": self.batch and not measures,
                "--gpus needs --measure, --data or --latency, or is a number from 1 beside --gpu": (
                    self.gpus != "auto" and not (measures or self.plans_gpus)
                ),
            }
        )


def profile(*, options: ProfileOptions, as_json: bool = o.AS_JSON) -> None:
    """Compute the cost of a recipe: GMACs, parameters, tokens and memory of every stage.

    With --videos and --gpu, also the hours and the memory of a run on that GPU, in words. With
    --checkpoint and --latency, only the time of a trained model: for a video, on one CPU thread unless
    OMP_NUM_THREADS is set, and for 100 hours of recordings.

    Example: everest profile --backbone vit-b --videos 10000 --epochs 800 --gpu h100 --gpus 4
    """
    options.check()
    if options.checkpoint is not None:  # time of a trained model
        from everest.inference.videos import Passes
        from everest.profiling.latency import measure_latency
        from everest_workflows.recordings.speed import time_windows

        windows = Passes(window=options.window, step=options.step, batch=options.batch or 1)
        on_cpu = is_on_cpu(options.gpus)
        document = measure_latency(
            options.checkpoint,
            options.data,
            cpu=on_cpu,
            notify=say,
            time_windows=partial(time_windows, windows=windows),
        )
        (print_json if as_json else _print_latency)(document)
    elif options.paper:  # the paper's tables
        from everest.profiling.profile import compute_paper_figures

        (print_json if as_json else _print_paper)([figure.dump() for figure in compute_paper_figures()])
    else:
        (print_json if as_json else _print_profile)(_make_document(options))


def _make_document(options: ProfileOptions) -> dict[str, Any]:
    """The document of --json: the cost of a recipe and of all methods, measurements, and the plan."""
    from everest.checkpoints.frozen import with_absolute_paths
    from everest.profiling.other_gpu import plan_run
    from everest.profiling.profile import METHODS, RANKING_STRATEGIES, profile, recipe_with_changes
    from everest.profiling.timing import DEFAULT_BATCH, time_loader, time_stages

    data, gpu, batch = options.data, options.gpu, options.batch
    data_root = [] if data is None else [f"data.root={json.dumps(str(data.resolve()))}"]
    load = partial(
        recipe_with_changes,
        backbone=options.backbone,
        frames=options.frames,
        size=None if options.size is None else read_size(options.size),
        keep=options.keep,
        overrides=[*(options.overrides or []), *data_root],
    )
    method = (options.method or "everest").replace("_", "-")
    if method not in METHODS:
        raise unknown_name("--method", method, METHODS)
    recipe = with_absolute_paths(load(options.recipe or METHODS[method]))
    if options.keep is not None and not isinstance(recipe.pretrain.selection, RANKING_STRATEGIES):
        raise RecipeError(f"--keep: strategy {recipe.pretrain.selection.strategy} has no keep ratio")
    document: dict[str, Any] = {**profile(recipe), "compare": []}
    if options.compare:
        document["compare"] = [{"method": name, **profile(load(source))} for name, source in METHODS.items()]
    stages = document["stages"]
    with_loader = data is not None and gpu is None
    if options.measure or with_loader:  # measured on this device
        on_cpu = is_on_cpu("auto" if options.plans_gpus else options.gpus)
        for stage, result in time_stages(recipe, batch=batch, with_loader=with_loader, cpu=on_cpu).items():
            stages[stage] |= result
    if gpu is not None and options.videos is not None:
        count = int(options.gpus) if options.plans_gpus else 1
        place: dict[str, Any] = {"gpus": count, "codec": options.codec}
        run = {"videos": options.videos, "epochs": options.epochs, **place}
        document["plan"] = plan_run(recipe, gpu, **run)
        if data is not None:  # compared with the step on the planned GPUs, not on this machine
            speed = document["plan"]["step_clips_per_second"]
            clips = batch or DEFAULT_BATCH["cuda"]
            loading = time_loader(recipe, "pretrain", batch=clips, step_clips_per_second=speed)
            stages["pretrain"]["loading"] = loading
            document["plan"] = plan_run(recipe, gpu, **run, loader=loading["clips_per_second"])
            place["loader"] = loading["clips_per_second"]
        if options.labeled is not None:
            document["finetune_plan"] = plan_run(
                recipe, gpu, stage="finetune", videos=options.labeled, **place
            )
    return document


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
    if (timeline := document["timeline"]) is not None:
        typer.echo(
            f"timeline: 100 hours of video take {100 / timeline['hours_per_hour']:.3g} hours (windows of "
            f"{timeline['window']:g} s, every {timeline['step']:g} s, --batch {timeline['batch']}, "
            "one process)"
        )


def _format_step(step: Mapping[str, Any]) -> str:
    return (
        f"{step['step_seconds']['median']:.3f} s for {step['batch']} clips: {step['clips_per_second']:.2f} "
        f"clips/s, peak {step['peak_memory_bytes'] / GB:.2f} GB ({step['device']}, {step['precision']})"
    )


def _format_loader(loader: Mapping[str, Any]) -> str:
    waits = f"; the step waits for it {loader['data_wait']:.0%} of its time" if loader["data_wait"] else ""
    return f"{loader['clips_per_second']:.1f} clips/s with {loader['workers']} workers{waits}"


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
    "measured": ("measured step", _format_step),
    "loading": ("measured loader", _format_loader),
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
        if "loading" in stage:
            loader, limit = stage["loading"], "step is the limit"
            speeds = [f"{loader[key]:.0f} clips/s" for key in ("clips_per_second", "step_clips_per_second")]
            if loader["data_wait"]:
                changes = [f"{change} (x{factor:.1f})" for change, factor in loader["changes"].items()]
                limit = f"loader is the limit; what helps most: {', then '.join(changes) or 'more cores'}"
            typer.echo(f"{name}: loader {speeds[0]}, step {speeds[1]}: the {limit}")
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


def _print_paper(figures: Sequence[Mapping[str, Any]]) -> None:
    """Print the paper's figures next to everest's."""
    from everest.profiling.profile import TABLE_SUBJECTS

    columns = ("quantity", "unit", "paper", "everest", "difference", "note")
    for number, subject in TABLE_SUBJECTS.items():
        rows = []
        for figure in (figure for figure in figures if figure["table"] == number):
            computed, difference = "needs GPU", ""
            if figure["ours"] is not None:
                computed, difference = figure["rounded"], f"{figure['deviation_percent']:+.2f} %"
            quantity = (figure["what"], figure["unit"], figure["paper"])
            rows.append((*quantity, computed, difference, figure["note"]))
        print_table(columns, rows, title=f"Table {number}: {subject}", box=None)
    typer.echo(
        "difference: before rounding, in percent of the paper's. GMACs are what the papers print as GFLOPs.\n"
        "Memory is estimated, of 8 GPUs in bf16 with attention that is not fused; the paper measured it."
    )
