"""The report on a tokenizer: how well it rebuilds clips it was not trained on, and whether it has collapsed.

B batch, n clips, N ranked tokens (of all slices but the first), K kept tokens, T frames, H W pixels,
t h w the grid of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from everest.config.settings import TrainSettings
from everest.data.dataset import NONE_FAILED, VideoClips, failures
from everest.methods.grid import num_kept
from everest.tokenizer.clips import spaced_clips
from everest.tokenizer.measures import (
    change_of_tokens,
    change_ratio,
    codebook_use,
    highest,
    mean_overlap,
    psnr,
    rank_correlation,
    score_entropy,
    slice_shares,
)
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.scorer import TokenScorer
from everest.video.pixels import in_unit_range

CLIPS: Final = 256  # enough for every figure; our choice
TOP_SHARE: Final = 0.1  # of the tokens, which are compared with the change of pixels; our choice
EXAMPLES: Final = 2  # clips that are drawn

# Limits that a scorer which ignores the content exceeds. Our choice, from a prototype.
MOST_IN_A_SLICE: Final = 2.0  # times an even share
MOST_OVERLAP: Final = 1.5  # times the overlap of a ranking by frame difference
LEAST_CHANGE: Final = 0.5  # times the change of a ranking by frame difference
LEAST_PERPLEXITY: Final = 0.25  # of the highest possible perplexity


class Example(NamedTuple):
    """A clip for a figure, in the scaled size in which the tokenizer works."""

    video: str
    frames: Tensor  # (3, T, H, W) in [0, 1]
    mask: Tensor  # (t, h, w) of 0 and 1
    rebuilt: Tensor  # (3, T, H, W)
    scores: Tensor  # (t, h, w)


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """The measurements as JSON values, and a few example clips."""

    figures: dict[str, Any]
    examples: list[Example]
    skipped: list[tuple[str, str]]  # path and reason


class _Batch(NamedTuple):
    """Measurements of some clips, on the CPU."""

    own: Tensor  # (B,) PSNR in dB of clips rebuilt from the tokens that the tokenizer selects
    random: Tensor  # (B,) the same from as many random tokens
    all: Tensor  # (B,) the same from all tokens
    kept: Tensor  # (B, N) bool
    scores: Tensor  # (B, N)
    untrained: Tensor  # (B, N) scores before training
    change: Tensor  # (B, N) of pixels
    codes: Tensor  # (B, K) of kept tokens, including the first slice


@torch.inference_mode()
def measure_tokenizer(
    model: AdaptiveTokenizer, clips: VideoClips, untrained: TokenScorer, *, settings: TrainSettings
) -> TokenizerReport:
    """Measure a tokenizer on up to `CLIPS` clips of one window each, from the whole list, in float32.

    Args:
        untrained: the scorer before training, which already detects motion well.
    """
    model.eval()
    measured: list[_Batch] = []
    examples: list[Example] = []
    skipped: list[tuple[str, str]] = []
    for clip in spaced_clips(clips, CLIPS, settings=settings):
        skipped += [tries[0] for tries in failures(clip)]
        readable = [row for row, failed in enumerate(clip.failed) if failed == NONE_FAILED]
        if not readable:
            continue
        frames = in_unit_range(clip.frames[readable, 0].to(model.target_mean.device))  # (B, 3, T, H, W)
        output = model.encode(frames)
        mask = model.select_tokens(output.scores, keep=model.keep)
        rebuilt = model.reconstruct(frames, mask=mask)
        scaled = model.scaled(frames)
        generator = torch.Generator(frames.device).manual_seed(1)
        noise = torch.rand(mask.shape, generator=generator, device=frames.device)
        from_random = model.reconstruct(frames, mask=model.select_tokens(noise, keep=model.keep))
        from_all = model.reconstruct(frames, keep=1.0)
        # By their number, which is known: a boolean index would wait for the device.
        num_codes = mask[0, 0].numel() + num_kept(mask[0, 1:].numel(), model.keep)
        ids = mask.flatten(1).topk(num_codes).indices.sort().values  # (B, K)
        batch = _Batch(
            own=psnr(rebuilt, scaled),
            random=psnr(from_random, scaled),
            all=psnr(from_all, scaled),
            kept=_ranked(mask).bool(),
            scores=_ranked(output.scores),
            untrained=_ranked(untrained(scaled)),
            change=_ranked(change_of_tokens(scaled, mask.shape[1:])),
            codes=output.codes.gather(1, ids),
        )
        measured.append(_Batch(*(x.cpu() for x in batch)))
        names = [clip.video_id[row] for row in readable]
        candidates = zip(names, scaled, mask, rebuilt, output.scores, strict=True)
        for name, *tensors in islice(candidates, EXAMPLES - len(examples)):
            examples.append(Example(name, *(tensor.cpu() for tensor in tensors)))
    if not measured:
        return TokenizerReport(figures={}, examples=[], skipped=skipped)
    joined = _Batch(*(torch.cat(parts) for parts in zip(*measured, strict=True)))
    figures = _figures(joined, model)
    warnings = [*scorer_warnings(figures), *codebook_warnings(figures)]
    return TokenizerReport(figures={**figures, "warnings": warnings}, examples=examples, skipped=skipped)


def _ranked(by_token: Tensor) -> Tensor:
    """Remove the first slice, of which all tokens are kept: (B, t, h, w) to (B, N)."""
    return by_token[:, 1:].flatten(1)


def _figures(clips: _Batch, model: AdaptiveTokenizer) -> dict[str, Any]:
    kept_by_change = highest(clips.change, clips.kept.float().mean().item())

    def compare_with_change(scores: Tensor) -> dict[str, float]:
        ratio = change_ratio(highest(scores, TOP_SHARE), clips.change)
        return {"ratio": ratio, "rank_correlation": rank_correlation(scores, clips.change)}

    return {
        "clips": len(clips.own),
        "kept": int(clips.kept[0].sum()),
        "ranked": clips.kept.size(1),
        "psnr": {name: getattr(clips, name).mean().item() for name in ("own", "random", "all")},
        "change": {
            "scorer": compare_with_change(clips.scores),
            "untrained": compare_with_change(clips.untrained),
            "frame_difference": compare_with_change(clips.change),
        },
        "overlap": {"scorer": mean_overlap(clips.kept), "frame_difference": mean_overlap(kept_by_change)},
        "slice_shares": slice_shares(clips.kept, model.slices - 1),
        "score_entropy": score_entropy(clips.scores),
        "codebook": codebook_use(clips.codes.flatten(), model.quantizer),
    }


def scorer_warnings(figures: dict[str, Any]) -> Iterator[str]:
    """Warn, one line per sign, that the scorer ranks something other than content."""
    change = {name: values["ratio"] for name, values in figures["change"].items()}
    overlap, shares = figures["overlap"], figures["slice_shares"]
    most = max(range(len(shares)), key=shares.__getitem__)
    if shares[most] > MOST_IN_A_SLICE / len(shares):
        yield (
            f"{shares[most]:.0%} of the kept tokens are in slice {most + 2} of {len(shares) + 1}: the scorer "
            "ranks positions in time, not content"
        )
    if overlap["scorer"] > MOST_OVERLAP * overlap["frame_difference"]:
        yield (
            f"different clips keep the same positions (overlap {overlap['scorer']:.2f}, by frame difference "
            f"{overlap['frame_difference']:.2f})"
        )
    if change["scorer"] < LEAST_CHANGE * change["frame_difference"]:
        yield (
            f"the tokens with the highest scores change {change['scorer']:.1f} times as much as all tokens, "
            f"by frame difference {change['frame_difference']:.1f}"
        )


def codebook_warnings(figures: dict[str, Any]) -> Iterator[str]:
    """Warn of unused codes; a tokenizer at the start of training leaves many unused."""
    use = figures["codebook"]
    if use["perplexity_share"] < LEAST_PERPLEXITY:
        yield (
            f"the codes of kept tokens have a perplexity of {use['perplexity']:.0f}, "
            f"{use['perplexity_share']:.0%} of the highest possible one"
        )


def scalar_figures(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that are logged in a row of metrics.jsonl."""
    return {
        **{f"psnr_{name}": value for name, value in figures["psnr"].items()},
        "change_ratio": figures["change"]["scorer"]["ratio"],
        "overlap": figures["overlap"]["scorer"],
        "largest_slice_share": max(figures["slice_shares"]),
        "score_entropy": figures["score_entropy"],
        "perplexity": figures["codebook"]["perplexity"],
    }
