"""`everest profile`"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest.errors import RecipeError, unknown_name
from everest_cli import options as o
from everest_cli.option_groups import is_on_cpu
from everest_cli.option_values import read_size
from everest_cli.output import print_json
from everest_cli.profile_latency import print_latency

if TYPE_CHECKING:
    from everest.config.settings import Recipe
    from everest.profiling.loading import TrainingStage


def profile(
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", "-b", metavar="NAME", help="vit-tiny, vit-s, vit-b, vit-l, vit-h, vit-g."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m", metavar="NAME", help="everest, videomae, st-mae, videomae-v2 [everest]."
        ),
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
        typer.Option("--data", metavar="DIR", help="Videos to measure the loader on, or for --latency."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "-c", metavar="C", help="Checkpoint or ONNX file, for --latency."),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time a trained model from a video file to its output.")
    ] = False,
    overrides: o.Overrides = None,
    comparing: Annotated[bool, typer.Option("--compare", help="Compare all methods.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Print the paper's cost tables beside everest's values.")
    ] = False,
    measured: Annotated[bool, typer.Option("--measure", help="Time real steps on this device.")] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", min=1, help="Clips per step, for --measure.")
    ] = None,
    videos: Annotated[
        int | None, typer.Option("--videos", metavar="N", min=1, help="Plan a pre-training run on N videos.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="E", min=1, help="Epochs of the planned run [the recipe's]."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="G", help="GPU of the planned run: h200, a100, 4090, t4.")
    ] = None,
    gpus: o.OneGpu = "auto",
    as_json: o.AsJson = False,
) -> None:
    """Compute the cost of a recipe: GMACs, parameters, tokens and memory of every stage.

    With --videos and --gpu, also the hours and the memory of a run on that GPU, in words. With
    --checkpoint and --latency, only the time that a trained model takes for a video.

    Example: everest profile --backbone vit-b --videos 10000 --epochs 800 --gpu a100
    """
    if (checkpoint is None) == latency:
        raise RecipeError("--latency needs --checkpoint, and --checkpoint needs --latency")
    if method is not None and recipe is not None:
        raise RecipeError("--method and --recipe both choose a recipe; use one of them")
    if gpu is None and (videos is not None or epochs is not None):
        raise RecipeError("--videos and --epochs need --gpu, which names the GPU of the planned run")
    if (batch is not None or gpus != "auto") and not (measured or data or latency):
        raise RecipeError("--batch and --gpus need --measure, --data or --latency")
    if checkpoint is not None:
        print_latency(checkpoint, data, cpu=is_on_cpu(gpus), as_json=as_json)
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

    from everest.profiling.planner import plan_pretraining
    from everest.profiling.profile import METHODS, RANKS, changed_recipe, profile

    method = (method or "everest").replace("_", "-")
    if method not in METHODS:
        raise unknown_name("--method", method, METHODS)
    overrides = overrides or []
    if data is not None:
        overrides = [*overrides, f"data.root={json.dumps(str(data.resolve()))}"]
    changed = partial(
        changed_recipe,
        backbone=backbone,
        frames=frames,
        size=None if size is None else read_size(size),
        keep=keep,
        overrides=overrides,
    )
    profiled = changed(recipe or METHODS[method])
    if keep is not None and not isinstance(profiled.pretrain.selection, RANKS):
        raise RecipeError(f"--keep: strategy {profiled.pretrain.selection.strategy} has no keep ratio")
    if profiled.pretrain.teacher or (profiled.tokenizer is not None and profiled.tokenizer.checkpoint):
        from everest.engine.tokenizer_first import with_absolute_paths

        profiled = with_absolute_paths(profiled)
    document: dict[str, Any] = {**profile(profiled), "compare": []}
    if comparing:
        document["compare"] = [{"method": name, **profile(changed(named))} for name, named in METHODS.items()]
    if gpu is not None:
        document["plan"] = plan_pretraining(profiled, gpu, videos=videos, epochs=epochs)
    if measured or data is not None:
        _add_measurements(document, profiled, batch, loads=data is not None, cpu=is_on_cpu(gpus))
    print_json(document) if as_json else print_profile(document)


def _add_measurements(
    document: dict[str, Any], recipe: Recipe, batch: int | None, *, loads: bool, cpu: bool
) -> None:
    """Measure the steps of all stages, and if it `loads`, the loaders of the stages that have videos."""
    from everest.profiling.loading import measure_loading, stage_clips
    from everest.profiling.measure import measure
    from everest.profiling.profile import STAGES

    loading: tuple[TrainingStage, ...] = ()
    if loads:
        loading = ("pretrain", "finetune") if recipe.data.train else ("pretrain",)
    for stage in loading:  # missing videos are reported before anything is measured
        stage_clips(recipe, stage)
    for stage in STAGES:
        document["stages"][stage]["measured"] = measure(recipe, stage, batch=batch, cpu=cpu)
    for stage in loading:
        step = document["stages"][stage]["measured"]
        document["stages"][stage]["loading"] = measure_loading(
            recipe,
            stage,
            batch=step["batch"],
            step_clips_per_second=step["clips_per_second"],
            cpu=cpu,
        )
