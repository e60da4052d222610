"""`everest profile`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest.errors import RecipeError
from everest_cli import options as o
from everest_cli.option_groups import is_on_cpu
from everest_cli.option_values import read_size
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.profiling.loading import TrainingStage


def profile(
    backbone: Annotated[
        str | None, typer.Option("--backbone", "-b", help="vit-tiny, vit-s, vit-b, vit-l, vit-h, vit-g.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="everest, videomae, st-mae, videomae-v2 [everest].")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", metavar="R", help="A recipe instead of a method.")
    ] = None,
    frames: Annotated[int | None, typer.Option("--frames", metavar="N", help="Frames of a clip.")] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="N|HxW", help="Side, or height x width of a frame.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option("--keep", metavar="X", help="Keep ratio in pre-training (rho_pre).")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Also measure the loader on these videos; the videos of --latency."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "-c", metavar="C", help="Checkpoint or ONNX file, for --latency."),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time a trained model from a video file to its answer.")
    ] = False,
    overrides: o.Overrides = None,
    comparing: Annotated[bool, typer.Option("--compare", help="All methods side by side.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="The cost tables of the paper next to everest's.")
    ] = False,
    measured: Annotated[bool, typer.Option("--measure", help="Time real steps on this device.")] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", min=1, help="Clips per step, for --measure.")
    ] = None,
    videos: Annotated[
        int | None, typer.Option("--videos", metavar="N", min=1, help="Plan a pre-training run on N videos.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="E", min=1, help="Epochs of that run [the recipe's].")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="G", help="GPU of that run: h200, a100, 4090, t4.")
    ] = None,
    gpus: o.OneGpu = "auto",
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Compute the cost of a recipe: GMACs, parameters, tokens and memory of every stage.

    With --videos and --gpu, also the hours and the memory of a run on that GPU, in words. With
    --checkpoint and --latency, only the time that a trained model takes for a video.

    Example: everest profile --backbone vit-b --videos 10000 --epochs 800 --gpu a100
    """
    other_options = (
        *(backbone, method, recipe, frames, size, keep, overrides),
        *(data, comparing, measured, videos, epochs, gpu),
    )
    if (checkpoint is None) == latency:
        raise RecipeError("--latency and --checkpoint go together: name the model that is timed")
    notices = {
        "with --latency only --checkpoint, --data, --gpus and --json have an effect": latency
        and (paper or batch or any(value for value in other_options if value is not data)),
        "with --paper no other option but --json has an effect": paper and any(other_options),
        "--recipe has no effect on --compare, which shows the methods' own": recipe and comparing,
        "--batch has no effect without --measure or --data": batch and not (measured or data or latency),
        "--gpus has no effect without --measure, --data or --latency": gpus != "auto"
        and not (measured or data or latency),
    }
    for text in (text for text, holds in notices.items() if holds):
        say(text)

    if checkpoint is not None:
        from everest_cli.profile_latency import print_latency

        print_latency(checkpoint, data, gpus=gpus, as_json=as_json, quiet=quiet)
        return
    if recipe is not None:
        from everest.config.recipe_files import find_recipe, with_bases

        with_bases(find_recipe(recipe))  # refuses files that are no recipes before torch is imported

    from everest_cli.profile_tables import print_paper, print_profile

    if paper:
        from everest.profiling.paper_tables import paper_figures

        rows = [figure.dump() for figure in paper_figures()]
        print_json(rows) if as_json else print_paper(rows)
        return

    from everest.profiling.planner import gpu_to_plan, plan_pretraining

    planned = gpu_to_plan(gpu, videos=videos, epochs=epochs)

    from everest.profiling.choices import ProfileOverrides, compare, recipe_of_method
    from everest.profiling.profile import profile

    if method is not None and recipe is not None:
        raise RecipeError("--method and --recipe both name a recipe: leave one out")
    if data is not None:
        overrides = [*(overrides or ()), f"data.root={json.dumps(str(data.resolve()))}"]
    changes = ProfileOverrides(
        backbone=backbone,
        frames=frames,
        size=None if size is None else read_size(size),
        keep=keep,
        others=tuple(overrides or ()),
    )
    profiled = changes.applied(recipe or recipe_of_method(method or "everest"))
    if profiled.pretrain.teacher or (profiled.tokenizer is not None and profiled.tokenizer.checkpoint):
        from everest.engine.tokenizer_first import with_absolute_paths

        profiled = with_absolute_paths(profiled)
    unused = changes.unused(profiled)
    if unused is not None:
        say(unused)
    loaded: list[TrainingStage] = []  # found before anything is measured
    if data is not None:
        from everest.profiling.loading import readable_stages

        loaded = readable_stages(profiled, notify=say)
    document: dict[str, Any] = {**profile(profiled), "compare": compare(changes) if comparing else []}
    if planned is not None and videos is not None:
        document["plan"] = plan_pretraining(profiled, planned, videos=videos, epochs=epochs)
    on_cpu = is_on_cpu(gpus)
    if measured or data is not None:
        _add_measurements(document, profiled, batch, loaded, on_cpu=on_cpu, quiet=quiet)
    print_json(document) if as_json else print_profile(document)


def _add_measurements(
    document: dict[str, Any],
    recipe: Recipe,
    batch: int | None,
    loaded: list[TrainingStage],
    *,
    on_cpu: bool,
    quiet: bool,
) -> None:
    """Measure the steps of all stages, and the loader of the stages in `loaded`."""
    from everest.profiling.loading import measure_loading
    from everest.profiling.measure import measure
    from everest.profiling.profile import STAGES

    for stage in STAGES:
        if not quiet:
            say(f"measuring {stage}")
        document["stages"][stage]["measured"] = measure(recipe, stage, batch=batch, cpu=on_cpu)
    for stage in loaded:
        if not quiet:
            say(f"measuring the videos of {stage}")
        step = document["stages"][stage]["measured"]
        document["stages"][stage]["loading"] = measure_loading(
            recipe, stage, batch=step["batch"], step_clips_per_second=step["clips_per_second"]
        )
