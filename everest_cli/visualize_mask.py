"""`everest visualize-mask`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from everest.errors import DataError, RecipeError
from everest_cli import options as o
from everest_cli.option_values import read_recipe, read_shares
from everest_cli.output import print_json, say


def visualize_mask(
    videos: o.VideosOrFolders,
    checkpoint: o.Embedding = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", metavar="R", help="Clips and tokens of this recipe, before training."),
    ] = None,
    stage: Annotated[
        Literal["pretrain", "finetune"], typer.Option("--stage", help="Of --recipe.")
    ] = "pretrain",
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="Token selection [redundancy-robust, or of C or R].")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="SHARE,…", help="Keep ratios, stacked [0.3, or of C or R]."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Stack the common strategies.")] = False,
    align: o.Align = None,
    cuts: o.Cuts = None,
    slice_cap: Annotated[
        float | None,
        typer.Option(
            "--slice-cap", metavar="SHARE", help="Largest share of the kept tokens in one slice [1]."
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=2, help="Frames of a clip [16, or of C or R].")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="Frames from one frame to the next [4, or of C or R]."),
    ] = None,
    fps: o.Fps = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=16, help="Shorter side in pixels [224, or of R]; a transformer has its own."
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option("--windows", min=1, help="Clips of a long video, one figure each.")
    ] = 1,
    kind: Annotated[
        Literal["png", "gif", "mp4", "html"],
        typer.Option("--format", help="Still, moving, or a page with sliders."),
    ] = "png",
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the figures.")
    ] = Path(),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of random selections.")] = 0,
    overwrite: o.OverwriteFile = False,
    as_json: o.AsJson = False,
) -> None:
    """Draw kept, visible and predicted tokens of videos; prints the paths of the figures.

    Example: everest visualize-mask video.mp4 --keep 0.5,0.25,0.15
    """
    if recipe is None and stage != "pretrain":
        raise RecipeError(f"--stage {stage}: needs --recipe")
    from everest.checkpoints.load import open_model
    from everest.figures.mask_choice import DEFAULT_CLIP, choices_of_recipe, own_choices, requested_selectors
    from everest.figures.mask_files import MaskRequest, write_mask_figures
    from everest.lists.inputs import named_videos, refuse_same_stems
    from everest.methods.ranked import ByChange
    from everest.tokenizer.spec import TokenizerSpec

    ratios = () if keep is None else read_shares(keep)
    opened = None if checkpoint is None else open_model(checkpoint)
    tokenizer = opened if opened is not None and opened.weights.kind == "tokenizer" else None
    given = {"slice_cap": slice_cap, "align": align, "cuts": cuts}
    settings = {name: value for name, value in given.items() if value is not None}
    own = None if opened is None or tokenizer is not None else own_choices(opened)
    if own is not None and opened is not None:
        encoder = opened.transformer.encoder
        for option, given, side in (
            ("--frames", frames, encoder.num_frames),
            ("--size", size, min(opened.spec.size)),
        ):
            if given not in (None, side):
                raise RecipeError(f"{option} {given}: the model of --checkpoint takes {side}; leave it out")
    if recipe is not None:
        if own is not None:
            raise RecipeError("--recipe: a transformer of --checkpoint has its own clips; leave one out")
        own = choices_of_recipe(read_recipe(recipe), stage)
    chosen = strategy or keep or compare or settings
    selectors = (
        own.selectors
        if own and not chosen
        else requested_selectors(
            strategy if strategy is None or ":" in strategy else strategy.replace("_", "-"),
            ratios,
            settings,
            compared=compare,
            has_tokenizer=tokenizer is not None,
            trained=own.selectors[0][1] if own else None,
        )
    )
    aligned = [
        selector for _, selector in selectors if isinstance(selector, ByChange) and selector.sees_camera
    ]
    if aligned and own and own.clip.get("input_kind") == "differences":
        raise RecipeError("--align, --cuts: compare frames, and model.input of the recipe is differences")
    paths = named_videos(videos)
    refuse_same_stems(paths)
    clip: dict[str, Any] = {**DEFAULT_CLIP}
    if tokenizer is not None and isinstance(tokenizer.spec, TokenizerSpec):
        window = tokenizer.spec.window
        clip |= {"size": min(tokenizer.spec.size), "frames": -(-clip["frames"] // window) * window}
    clip |= own.clip if own else {}
    requested = {"frames": frames, "stride": stride, "fps": fps, "size": size}
    requested["sampling"] = None if stride is None else "dense"  # the others have no stride
    clip |= {name: value for name, value in requested.items() if value is not None}
    request = MaskRequest(
        selectors=selectors,
        windows=windows,
        seed=seed,
        model=None if opened is None else opened.module,
        **clip,
    )
    documents: list[dict[str, Any]] = []
    failed = False
    for video in paths:
        try:
            rows = write_mask_figures(video, request, out, kind, read=paths, overwrite=overwrite)
        except DataError as error:
            say(f"error: {error}")
            failed = True
            continue
        documents += rows
        if not as_json:
            typer.echo("\n".join(dict.fromkeys(path for row in rows for path in row["written"])))
    if as_json:
        print_json(documents)
    if failed:
        raise typer.Exit(4)
