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


MAX_MEMORY = 1e9  # GiB


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
    measured: Annotated[
        bool, typer.Option("--measure", help="Time real steps on this device; on a GPU, also the energy.")
    ] = False,
    max_batch: Annotated[
        bool, typer.Option("--max-batch", help="Estimate the largest batch that fits in memory.")
    ] = False,
    memory: Annotated[
        float | None,
        typer.Option("--memory", metavar="GIB", help="Memory of another device, for --max-batch."),
    ] = None,
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
    if memory is not None and not 0 < memory < MAX_MEMORY:
        raise RecipeError(f"--memory: must be more than 0 and less than {MAX_MEMORY:g} GiB, not {memory}")
    other_options = (
        *(backbone, method, recipe, frames, size, keep, overrides),
        *(data, comparing, measured, max_batch, memory, videos, epochs, gpu),
    )
    if (checkpoint is None) == latency:
        raise RecipeError("--latency and --checkpoint go together: name the model that is timed")
    notices = {
        "with --latency only --checkpoint, --data, --gpus and --json have an effect": latency
        and (paper or batch or any(value for value in other_options if value is not data)),
        "with --paper no other option but --json has an effect": paper and any(other_options),
        "--recipe has no effect on --compare, which shows the methods' own": recipe and comparing,
        "--batch has no effect without --measure or --data": batch and not (measured or data or latency),
        "--gpus has no effect without --measure, --data, --max-batch or --latency": gpus != "auto"
        and not (measured or data or max_batch or latency),
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
    clips: dict[str, int] = {}  # of a run, by stage, for --data; counted before anything is measured
    if data is not None:
        from everest.profiling.loading import clips_of_run, readable_stages

        clips = {stage: clips_of_run(profiled, stage) for stage in readable_stages(profiled, notify=say)}
    document: dict[str, Any] = {**profile(profiled), "compare": compare(changes) if comparing else []}
    if planned is not None and videos is not None:
        document["plan"] = plan_pretraining(profiled, planned, videos=videos, epochs=epochs)
    on_cpu = is_on_cpu(gpus)
    if max_batch or memory is not None:
        _add_largest_batches(document, memory, on_cpu=on_cpu)
    if measured or data is not None:
        _add_measurements(document, profiled, batch, clips, on_cpu=on_cpu, quiet=quiet)
    print_json(document) if as_json else print_profile(document)


def _add_largest_batches(document: dict[str, Any], memory: float | None, *, on_cpu: bool) -> None:
    """Estimate the largest batch of each stage in `memory` GiB, or in this device's free memory."""
    import torch

    from everest.profiling.measure import largest_batch
    from everest.system.accelerator import free_memory

    device = torch.device("cuda" if torch.cuda.is_available() and not on_cpu else "cpu")
    available = int(memory * 2**30) if memory is not None else free_memory(device)
    document["memory_bytes"] = available
    for stage in document["stages"].values():
        stage["max_batch"] = largest_batch(
            memory=available,
            state=stage["model_state_bytes"],
            bytes_per_clip=stage["activation_bytes_per_clip"],
        )


def _add_measurements(
    document: dict[str, Any],
    recipe: Recipe,
    batch: int | None,
    clips: dict[str, int],
    *,
    on_cpu: bool,
    quiet: bool,
) -> None:
    """Measure the steps of all stages and, if the clips of their videos are given, the loader."""
    from everest.profiling import loading
    from everest.profiling.measure import measure
    from everest.profiling.profile import STAGES

    for stage in STAGES:
        if not quiet:
            say(f"measuring {stage}")
        measured = measure(recipe, stage, batch=batch, clips_of_run=clips.get(stage), cpu=on_cpu)
        document["stages"][stage]["measured"] = measured
    problems = [stage["measured"]["energy_problem"] for stage in document["stages"].values()]
    for problem in dict.fromkeys(filter(None, problems)):
        say(f"no energy measured: {problem}")
    for stage in loading.STAGES:
        if stage not in clips:
            continue
        if not quiet:
            say(f"measuring the videos of {stage}")
        step = document["stages"][stage]["measured"]
        document["stages"][stage]["loading"] = loading.measure_loading(
            recipe, stage, batch=step["batch"], step_clips_per_second=step["clips_per_second"]
        )
