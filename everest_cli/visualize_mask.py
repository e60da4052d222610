"""`everest visualize-mask`"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everest_cli import options as o
from everest_cli.output import print_json, say

if TYPE_CHECKING:
    from everest.mask_view import Model
    from everest.selection import Selector

COMPARED = ("random", "tube", "running-cell", "redundancy-robust")  # EVEREST Figure 8


class Format(StrEnum):
    """How the picture is written."""

    png = "png"
    gif = "gif"
    mp4 = "mp4"
    html = "html"


def visualize_mask(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO…", help="Videos, or folders of videos.")],
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "-c", metavar="C", help="Whose embedding measures; else the pixels do."),
    ] = None,
    strategy: Annotated[str, typer.Option("--strategy", help="A token selection.")] = "redundancy-robust",
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", metavar="SHARE,…", help="Kept share of the tokens; several are stacked [0.3]."
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Stack the strategies of the field.")] = False,
    order: Annotated[str, typer.Option("--order", help="descending or ascending.")] = "descending",
    distance: Annotated[str, typer.Option("--distance", help="l2, l1, neg-cosine or neg-cka.")] = "l2",
    frames: Annotated[int, typer.Option("--frames", min=2, help="Of a clip, without a checkpoint.")] = 16,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Frames from one to the next.")] = 4,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=16, help="Shorter side in pixels, without a checkpoint [224] or of a tokenizer."
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option("--windows", min=1, help="Clips of a long video, a picture each.")
    ] = 1,
    kind: Annotated[
        Format, typer.Option("--format", help="Still, moving, or a page with sliders.")
    ] = Format.png,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")
    ] = Path(),
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Show what is kept, what the encoder sees and what is predicted of videos; prints the pictures.

    Example: everest visualize-mask video.mp4 --keep 0.5,0.25,0.15
    """
    from everest.data.named import named_videos
    from everest.errors import DataError
    from everest.mask_report import Look, report_masks

    shares: list[float | None] = [None] if keep is None else list(o.read_shares(keep))
    model, trained_size = _model(checkpoint)
    settings = {"order": order, "distance": distance} if strategy == "redundancy-robust" else {}
    if trained_size is not None or strategy == "learned-importance":
        selectors = _scored(shares, compared=compare)
    else:
        selectors = _compared(shares) if compare else _stacked(strategy, shares, settings)
    look = Look(
        selectors=selectors,
        frames=frames,
        stride=stride,
        size=size or trained_size or 224,
        tubelet=(2, 16, 16),
        windows=windows,
        seed=seed,
        model=model,
    )
    told: list[dict[str, Any]] = []
    failed = False
    for video in named_videos(videos):
        try:
            rows = report_masks(video, look, out, kind.value, overwrite=overwrite)
        except DataError as error:
            say(f"error: {error}")
            failed = True
            continue
        told += rows
        if not as_json:
            typer.echo("\n".join(dict.fromkeys(path for row in rows for path in row["written"])))
    if as_json:
        print_json(told)
    if failed:
        raise typer.Exit(4)


def _model(checkpoint: str | None) -> tuple[Model | None, int | None]:
    """The model, and of a tokenizer the shorter side in pixels that it was trained at."""
    if checkpoint is None:
        return None, None
    from everest.load import find_weights, model_of, open_weights, tokenizer_of
    from everest.tokenizer_spec import TokenizerSpec

    path = find_weights(checkpoint)
    weights = open_weights(path)
    if weights.kind != "tokenizer":
        return model_of(weights, source=path), None
    spec = TokenizerSpec.of(weights.settings, source=path)
    return tokenizer_of(weights, source=path), min(spec.size)


def _scored(shares: list[float | None], *, compared: bool) -> list[tuple[str, Selector]]:
    """What a tokenizer's scores keep, and beside it what other scores do, as in LVMAE's Figure 3."""
    from everest.learned_importance import LearnedImportance, ScoreName

    scores: tuple[ScoreName, ...] = ("frame-difference", "random", "learned") if compared else ("learned",)
    return [
        (
            score if share is None else f"{score}\n{share:g} kept",
            LearnedImportance(mask_ratio=1.0, keep_ratio=share or 0.1, random_ratio=0.0, score=score),
        )
        for share in shares
        for score in scores
    ]


def _stacked(
    strategy: str, shares: list[float | None], settings: dict[str, str]
) -> list[tuple[str, Selector]]:
    from everest.notebook import make_selector

    titles = [strategy if share is None else f"{strategy}\n{share:g} kept" for share in shares]
    selectors = [make_selector(strategy, kept=share, settings=settings) for share in shares]
    return list(zip(titles, selectors, strict=True))


def _compared(shares: list[float | None]) -> list[tuple[str, Selector]]:
    from everest.notebook import make_selector

    kept = dict.fromkeys(COMPARED) | {COMPARED[-1]: shares[0]}
    return [(name, make_selector(name, kept=share, settings={})) for name, share in kept.items()]
