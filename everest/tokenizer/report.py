"""A tokenizer on clips that it was not trained on: how well it rebuilds them, and whether it has collapsed.

B batch, n clips, N ranked tokens: those of all slices but the first.
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
from everest.tokenizer.clips import first_clips
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
from everest.tokenizer.network import AdaptiveTokenizer, TokenizerOutput
from everest.tokenizer.scorer import TokenScorer
from everest.video.pixels import in_unit_range

CLIPS: Final = 256  # ours: so many are enough for every figure
TOP_SHARE: Final = 0.1  # ours: the tokens that are compared with what changes
EXAMPLES: Final = 2  # clips that are drawn

# Ours, from a prototype: what a scorer that has forgotten the content goes beyond.
MOST_IN_A_SLICE: Final = 2.0  # times an even share
MOST_OVERLAP: Final = 1.5  # times that of a ranking by frame difference
LEAST_CHANGE: Final = 0.5  # times that of a ranking by frame difference
LEAST_LEVEL: Final = 0.001  # of the kept tokens
LEAST_PERPLEXITY: Final = 0.25  # of what the tokens could show


class Example(NamedTuple):
    """A clip in the size that the tokenizer works in, as a picture shows it."""

    video: str
    frames: Tensor  # (3, T, H, W) in [0, 1]
    mask: Tensor  # (t, h, w) of 0 and 1
    rebuilt: Tensor  # (3, T, H, W)
    scores: Tensor  # (t, h, w)


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """The figures, as JSON, and a few clips to look at."""

    figures: dict[str, Any]
    examples: list[Example]
    skipped: list[tuple[str, str]]  # path and reason


class _Batch(NamedTuple):
    """What is kept of some clips, on the CPU."""

    own: Tensor  # (B,) dB, from the tokenizer's own choice
    random: Tensor  # (B,) from as many random tokens
    all: Tensor  # (B,) from all
    kept: Tensor  # (B, N) bool
    scores: Tensor  # (B, N)
    untrained: Tensor  # (B, N)
    change: Tensor  # (B, N)
    codes: Tensor  # (B, K) of kept tokens, first slice included


@torch.inference_mode()
def measure_tokenizer(
    model: AdaptiveTokenizer, clips: VideoClips, untrained: TokenScorer, *, settings: TrainSettings
) -> TokenizerReport:
    """Measure a tokenizer on up to `CLIPS` clips of one window each, in float32.

    Args:
        untrained: the scorer as it was before training, which is a good motion detector already.
    """
    model.eval()
    found: list[_Batch] = []
    examples: list[Example] = []
    skipped: list[tuple[str, str]] = []
    for clip in first_clips(clips, CLIPS, settings=settings):
        skipped += [tries[0] for tries in failures(clip)]
        readable = [place for place, failed in enumerate(clip.failed) if failed == NONE_FAILED]
        if not readable:
            continue
        frames = in_unit_range(clip.frames[readable, 0].to(model.target_mean.device))  # (B, 3, T, H, W)
        told = model.encode(frames)
        mask = model.choose(told.scores, keep=model.keep)
        rebuilt = model.reconstruct(frames, mask=mask)
        found.append(_measured(model, untrained, frames, told, mask, rebuilt))
        names = [clip.video_id[place] for place in readable]
        shown = zip(names, model.scaled(frames), mask, rebuilt, told.scores, strict=True)
        for name, *tensors in islice(shown, EXAMPLES - len(examples)):
            examples.append(Example(name, *(tensor.cpu() for tensor in tensors)))
    if not found:
        return TokenizerReport(figures={}, examples=[], skipped=skipped)
    joined = _Batch(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    slices = model.window // model.config.stride[0] - 1
    figures = _figures(joined, model, slices)
    warnings = [*scorer_warnings(figures), *codebook_warnings(figures)]
    return TokenizerReport(figures={**figures, "warnings": warnings}, examples=examples, skipped=skipped)


def _measured(
    model: AdaptiveTokenizer,
    untrained: TokenScorer,
    frames: Tensor,
    told: TokenizerOutput,
    mask: Tensor,
    rebuilt: Tensor,
) -> _Batch:
    scaled = model.scaled(frames)
    generator = torch.Generator(frames.device).manual_seed(1)
    noise = torch.rand(mask.shape, generator=generator, device=frames.device)
    from_random = model.reconstruct(frames, mask=model.choose(noise, keep=model.keep))
    from_all = model.reconstruct(frames, keep=1.0)
    change = change_of_tokens(scaled, mask.shape[1:])
    measured = _Batch(
        own=psnr(rebuilt, scaled),
        random=psnr(from_random, scaled),
        all=psnr(from_all, scaled),
        kept=_ranked(mask).bool(),
        scores=_ranked(told.scores),
        untrained=_ranked(untrained(scaled)),
        change=_ranked(change),
        codes=told.codes[mask.flatten(1).bool()].view(len(mask), -1),
    )
    return _Batch(*(x.cpu() for x in measured))


def _ranked(by_token: Tensor) -> Tensor:
    """(B, t, h, w) to (B, N): without the first slice, which is kept whole."""
    return by_token[:, 1:].flatten(1)


def _figures(found: _Batch, model: AdaptiveTokenizer, slices: int) -> dict[str, Any]:
    kept_by_change = highest(found.change, found.kept.float().mean().item())

    def beside_change(scores: Tensor) -> dict[str, float]:
        ratio = change_ratio(highest(scores, TOP_SHARE), found.change)
        return {"ratio": ratio, "rank_correlation": rank_correlation(scores, found.change)}

    return {
        "clips": len(found.own),
        "kept": int(found.kept[0].sum()),
        "ranked": found.kept.size(1),
        "psnr": {name: getattr(found, name).mean().item() for name in ("own", "random", "all")},
        "change": {
            "scorer": beside_change(found.scores),
            "untrained": beside_change(found.untrained),
            "frame_difference": beside_change(found.change),
        },
        "overlap": {"scorer": mean_overlap(found.kept), "frame_difference": mean_overlap(kept_by_change)},
        "slice_shares": slice_shares(found.kept, slices),
        "score_entropy": score_entropy(found.scores),
        "codebook": codebook_use(found.codes.flatten(), model.quantizer),
    }


def scorer_warnings(figures: dict[str, Any]) -> Iterator[str]:
    """What of the figures says that the scorer ranks something else than content, in a line each."""
    change = {name: values["ratio"] for name, values in figures["change"].items()}
    overlap, shares = figures["overlap"], figures["slice_shares"]
    most = max(range(len(shares)), key=shares.__getitem__)
    if shares[most] > MOST_IN_A_SLICE / len(shares):
        yield (
            f"{shares[most]:.0%} of what is kept lies in slice {most + 2} of {len(shares) + 1}: the scorer "
            "ranks places in time, not content"
        )
    if overlap["scorer"] > MOST_OVERLAP * overlap["frame_difference"]:
        yield (
            f"different clips keep the same places (overlap {overlap['scorer']:.2f}, by frame difference "
            f"{overlap['frame_difference']:.2f})"
        )
    if change["scorer"] < LEAST_CHANGE * change["frame_difference"]:
        yield (
            f"what scores highest changes {change['scorer']:.1f} times as much as the rest, by frame "
            f"difference {change['frame_difference']:.1f}"
        )


def codebook_warnings(figures: dict[str, Any]) -> Iterator[str]:
    """What says that codes are left unused; a tokenizer that has just begun leaves many."""
    use = figures["codebook"]
    if use["least_level"] < LEAST_LEVEL:
        yield f"a level of the codes has {use['least_level']:.2%} of the kept tokens"
    if use["perplexity_share"] < LEAST_PERPLEXITY:
        yield (
            f"the codes of kept tokens are as many as {use['perplexity']:.0f} equally frequent ones, "
            f"{use['perplexity_share']:.0%} of what is possible"
        )


def scalar_figures(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that a row of metrics.jsonl has."""
    return {
        **{f"psnr_{name}": value for name, value in figures["psnr"].items()},
        "change_ratio": figures["change"]["scorer"]["ratio"],
        "overlap": figures["overlap"]["scorer"],
        "largest_slice_share": max(figures["slice_shares"]),
        "score_entropy": figures["score_entropy"],
        "perplexity": figures["codebook"]["perplexity"],
    }
