"""The report on a tokenizer: how well it reconstructs held-out clips, and whether it has collapsed.

A tokenizer whose scorer ignores the content can reconstruct clips as well as any other, so the pixel error
alone
is not enough: the kept tokens must be examined as well (see docs/lvmae.md).

n clips, N ranked tokens per clip (all time indices but the first), K kept tokens, T frames, H W pixels, t h w
the grid of tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from everest.config.settings import TrainSettings
from everest.data.clip_dataset import ClipDataset
from everest.methods.grid import num_kept
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.tokenizer.clips import spaced_clips
from everest.tokenizer.layers import FSQ, TokenScorer, top_k
from everest.video.pixels import in_unit_range

MAX_CLIPS: Final = 256  # heuristic: maximum number of clips; enough for every figure
TOP_FRACTION: Final = 0.1  # heuristic: fraction of the tokens that are compared with the change of pixels
NUM_EXAMPLES: Final = 2  # number of clips in the figure
TINY_CHANGE: Final = 1e-12  # makes a ratio of changes 1 if nothing changes

# Limits beyond which a scorer ignores the content. Our choice, from a prototype.
MAX_AT_A_TIME_INDEX: Final = 2.0  # multiple of an even fraction of the kept tokens
MAX_OVERLAP: Final = 1.5  # times the overlap of a ranking by frame difference
MIN_CHANGE: Final = 0.5  # times the change of a ranking by frame difference
MIN_PERPLEXITY: Final = 0.25  # fraction of the highest possible perplexity


class Example(NamedTuple):
    """A clip for a figure, in the scaled size that the tokenizer works in."""

    video: str
    frames: Tensor  # (3, T, H, W) in [0, 1]
    mask: Tensor  # (t, h, w) of 0 and 1
    reconstructed: Tensor  # (3, T, H, W)
    scores: Tensor  # (t, h, w)


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """The measurements as JSON values, and a few example clips."""

    metrics: dict[str, Any]
    examples: list[Example]
    skipped: list[tuple[str, str]]  # path and reason of each skipped video


@torch.inference_mode()
def measure_tokenizer(
    model: AdaptiveTokenizer, dataset: ClipDataset, untrained: TokenScorer, *, settings: TrainSettings
) -> TokenizerReport:
    """Measure a tokenizer in float32 on at most `MAX_CLIPS` clips of one window, spread over the list.

    Args:
        untrained: the scorer before training, which already detects motion well.
    """
    model.eval()
    measured: dict[str, list[Tensor]] = defaultdict(list)  # values of all clips, on the CPU
    examples: list[Example] = []
    skipped: list[tuple[str, str]] = []
    for clip in spaced_clips(dataset, MAX_CLIPS, settings=settings):
        skipped += [failed[0] for failed in clip.failed_reads if failed]
        readable = [row for row, failed in enumerate(clip.failed_reads) if not failed]
        if not readable:
            continue
        frames = in_unit_range(clip.frames[readable, 0].to(model.target_mean.device))  # (n, 3, T, H, W)
        scaled, output = model.scaled(frames), model.encode(frames)
        mask = model.select_tokens(output.scores, keep=model.spec.keep)
        generator = torch.Generator(frames.device).manual_seed(1)
        noise = torch.rand(mask.shape, generator=generator, device=frames.device)
        masks = (mask, model.select_tokens(noise, keep=model.spec.keep), torch.ones_like(mask))
        reconstructed = [model.reconstruct(frames, mask=mask) for mask in masks]
        # topk needs only the known number of codes; a boolean index would wait for the device.
        num_codes = mask[0, 0].numel() + num_kept(mask[0, 1:].numel(), model.spec.keep)
        ids = mask.flatten(1).topk(num_codes).indices.sort().values  # (n, K)
        batch = {
            "own": psnr(reconstructed[0], scaled),  # (n,) in dB, reconstructed from the selected tokens
            "random": psnr(reconstructed[1], scaled),  # (n,) in dB, reconstructed from as many random tokens
            "all": psnr(reconstructed[2], scaled),
            "kept": _ranked_tokens(mask).bool(),  # (n, N)
            "scores": _ranked_tokens(output.scores),
            "untrained": _ranked_tokens(untrained(scaled)),
            "change": _ranked_tokens(_change_of_pixels(scaled, mask.shape[1:])),
            "codes": output.codes.gather(1, ids),  # (n, K), including the first time index
        }
        for name, values in batch.items():
            measured[name].append(values.cpu())
        for row in range(min(len(readable), NUM_EXAMPLES - len(examples))):
            tensors = (x[row].cpu() for x in (scaled, mask, reconstructed[0], output.scores))
            examples.append(Example(clip.video_ids[readable[row]], *tensors))
    if not measured:
        return TokenizerReport(metrics={}, examples=[], skipped=skipped)
    whole = {name: torch.cat(parts) for name, parts in measured.items()}
    metrics = compute_report_metrics(
        whole, num_time_indices=model.num_time_indices - 1, quantizer=model.quantizer
    )
    metrics["warnings"] = [*scorer_warnings(metrics), *codebook_warnings(metrics)]
    return TokenizerReport(metrics=metrics, examples=examples, skipped=skipped)


def _change_of_pixels(frames: Tensor, grid: Sequence[int]) -> Tensor:
    """Return the mean absolute difference (n, *grid) of each token's pixels from the previous frame."""
    tubelet = [length // tokens for length, tokens in zip(frames.shape[2:], grid, strict=True)]
    changes = F.pad(frames.diff(dim=2).abs().mean(dim=1), (0, 0, 0, 0, 1, 0))  # (n, T, H, W), first 0
    return F.avg_pool3d(changes.unsqueeze(1), tubelet).squeeze(1)


def _ranked_tokens(by_token: Tensor) -> Tensor:
    """Remove the first time index, whose tokens are all kept: (n, t, h, w) to (n, N)."""
    return by_token[:, 1:].flatten(1)


def compute_report_metrics(
    clips: dict[str, Tensor], *, num_time_indices: int, quantizer: FSQ
) -> dict[str, Any]:
    """Compute the figures of a report from the values that `measure_tokenizer` measured on all clips.

    Args:
        time indices: number of time indices that are ranked.
    """
    kept, change = clips["kept"], clips["change"]  # (n, N) each
    rankings = {"scorer": clips["scores"], "untrained": clips["untrained"], "frame_difference": change}
    kept_by_change = highest(change, kept.float().mean().item())
    counts = kept.unflatten(1, (num_time_indices, -1)).sum(dim=(0, 2))  # (time indices,)
    codes = clips["codes"].unique(return_counts=True)[1].double()  # how often each code is used
    # The number of equally frequent codes with the same entropy; dropped tokens would count as a code.
    perplexity = torch.special.entr(codes / codes.sum()).sum().exp().item()

    def ratio(scores: Tensor) -> float:
        """Return the mean change of the highest-tokens that count over that of all tokens; 1 if random."""
        top = change[highest(scores, TOP_FRACTION)]
        return ((top.mean() + TINY_CHANGE) / (change.mean() + TINY_CHANGE)).item()

    return {
        "clips": len(kept),
        "kept": int(kept[0].sum()),
        "ranked": kept.size(1),
        "psnr": {name: clips[name].mean().item() for name in ("own", "random", "all")},
        "change": {
            name: {"ratio": ratio(scores), "rank_correlation": rank_correlation(scores, change)}
            for name, scores in rankings.items()
        },
        "overlap": {"scorer": mean_overlap(kept), "frame_difference": mean_overlap(kept_by_change)},
        "time_index_fractions": (counts / counts.sum()).tolist(),
        "codebook": {
            "tokens": clips["codes"].numel(),
            "used": len(codes),
            "perplexity": perplexity,
            "perplexity_fraction": perplexity / min(quantizer.num_codes, clips["codes"].numel()),
        },
    }


def scalar_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures that are logged in a row of metrics.jsonl."""
    return {
        **{f"psnr_{name}": value for name, value in metrics["psnr"].items()},
        "change_ratio": metrics["change"]["scorer"]["ratio"],
        "overlap": metrics["overlap"]["scorer"],
        "largest_time_index_fraction": max(metrics["time_index_fractions"]),
        "perplexity": metrics["codebook"]["perplexity"],
    }


def scorer_warnings(metrics: dict[str, Any]) -> Iterator[str]:
    """Warn, one line per sign, that the scorer ranks something other than content."""
    change, overlap, fractions = metrics["change"], metrics["overlap"], metrics["time_index_fractions"]
    most, ratio, expected = max(fractions), change["scorer"]["ratio"], change["frame_difference"]["ratio"]
    if most > MAX_AT_A_TIME_INDEX / len(fractions):
        yield (
            f"{most:.0%} of the kept tokens are at time index {fractions.index(most) + 2} of "
            f"{len(fractions) + 1}: the scorer ranks positions in time, not content"
        )
    if overlap["scorer"] > MAX_OVERLAP * overlap["frame_difference"]:
        yield (
            f"different clips keep the same positions (overlap {overlap['scorer']:.2f}, by frame difference "
            f"{overlap['frame_difference']:.2f})"
        )
    if ratio < MIN_CHANGE * expected:
        yield (
            f"the tokens with the highest scores change {ratio:.1f} times as much as all tokens, by frame "
            f"difference {expected:.1f}"
        )


def codebook_warnings(metrics: dict[str, Any]) -> Iterator[str]:
    """Warn of unused codes; a tokenizer at the start of training leaves many unused."""
    use = metrics["codebook"]
    if use["perplexity_fraction"] < MIN_PERPLEXITY:
        yield (
            f"the codes of kept tokens have a perplexity of {use['perplexity']:.0f}, "
            f"{use['perplexity_fraction']:.0%} of the highest possible one"
        )


def psnr(reconstructed: Tensor, frames: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (n,) in dB of clips (n, 3, T, H, W) in [0, 1]."""
    error = (reconstructed.float().clamp(0, 1) - frames).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def highest(scores: Tensor, fraction: float) -> Tensor:
    """Return a mask (n, N) of the given fraction of each row with the highest scores, at least one token."""
    generator = torch.Generator(scores.device).manual_seed(0)
    ids = top_k(scores, max(1, int(fraction * scores.size(1))), generator)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ids, True)


def rank_correlation(scores_a: Tensor, scores_b: Tensor) -> float:
    """Spearman's correlation of two scores (n, N) of a clip's tokens, averaged over clips."""
    ranks = (torch.from_numpy(rankdata(scores.numpy(), axis=1)) for scores in (scores_a, scores_b))
    first, second = (rank - rank.mean(dim=1, keepdim=True) for rank in ranks)
    norms = first.norm(dim=1) * second.norm(dim=1)
    return ((first * second).sum(dim=1) / norms.clamp(min=TINY_CHANGE)).mean().item()


def mean_overlap(kept: Tensor) -> float:
    """Intersection over union of the kept tokens (n, N) bool of two clips, averaged over all pairs."""
    selected = kept.double()
    both = selected @ selected.T  # (n, n)
    counts = selected.sum(dim=1)
    overlap = both / (counts + counts[:, None] - both)
    pairs = len(kept) * (len(kept) - 1)
    return ((overlap.sum() - overlap.trace()) / max(pairs, 1)).item()
