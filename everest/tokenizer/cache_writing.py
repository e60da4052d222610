"""Run a tokenizer once over all pre-training clips; everest.tokenizer.cache describes the files.

A part appears under its name only when it is complete, so a killed call resumes with the part it was writing.

B clips, V views, T frames, H W pixels, N tokens, R samples of a part.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from everest.config.settings import Recipe, TrainSettings
from everest.data.bad_videos import refuse_too_many
from everest.data.clips import VideoClips
from everest.data.loader import batches, choose_workers
from everest.data.recipe_clips import clip_grid, pretrain_clips
from everest.errors import EnvironmentProblem, RecipeError, differing
from everest.system.accelerator import make_accelerator
from everest.system.events import Report, notice
from everest.system.files import IN_USE_FIX, check_new_folder, refuse_inputs, write_table
from everest.system.locks import sole_writer
from everest.system.run_folder import BAD_VIDEOS
from everest.system.weights import write_tensors
from everest.tokenizer.cache import INDEX, PARTS, CachePart, TokenIndex, clip_facts, open_part
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.spec import TokenizerUse, tokenizer_use
from everest.video.pixels import IMAGENET


def write_tokens(
    recipe: Recipe,
    output: Path,
    *,
    variants: int,
    batch: int = 8,
    overwrite: bool = False,
    cpu: bool = False,
    report: Report,
) -> dict[str, Any]:
    """Write the tokens of all pre-training clips of a recipe; parts that an earlier call finished are kept.

    Args:
        variants: clips of each video; missing variants are added to a folder, surplus ones are kept.
        batch: clips in one forward pass.
        overwrite: start again, whatever `output` has.
        cpu: do not use other devices.
    Returns:
        `{"output", "videos", "variants", "parts", "kept", "bytes", "bad"}`; `kept` counts parts of an earlier
        call.
    """
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=cpu)
    use = tokenizer_use(recipe)
    if use.path is None:
        raise RecipeError(
            "tokenizer.checkpoint: names no tokenizer; everest train-tokenizer makes one, --set "
            "tokenizer.checkpoint=RUN names it"
        )
    tokenizer = use.load().to(accelerator.device)
    clips = pretrain_clips(recipe, replace_bad=False)
    inputs = [Path(use.path), *(sample.video for sample in clips.samples)]
    refuse_inputs(output, inputs, fix="choose a folder of its own")
    check_new_folder(output, overwrite=overwrite, is_own=lambda name: name == INDEX)
    with sole_writer(output / INDEX):
        if overwrite:
            for path in (output / INDEX, output / BAD_VIDEOS, *output.glob(PARTS)):
                path.unlink(missing_ok=True)
        precision = accelerator.mixed_precision
        index = _write_index(output, recipe, clips, use, tokenizer, variants=variants, precision=precision)
        kept, bad = _write_parts(
            index, output, recipe, clips, tokenizer, accelerator, batch=batch, report=report
        )
        if bad:
            write_table(output / BAD_VIDEOS, [("path", "reason"), *bad.items()])
    parts = index.parts()
    return {
        "output": str(output),
        "videos": index.videos,
        "variants": index.variants,
        "parts": len(parts),
        "kept": kept,
        "bytes": sum((output / part.name).stat().st_size for part in parts),
        "bad": [{"path": path, "reason": reason} for path, reason in bad.items()],
    }


def _write_parts(
    index: TokenIndex,
    output: Path,
    recipe: Recipe,
    clips: VideoClips,
    tokenizer: AdaptiveTokenizer,
    accelerator: Accelerator,
    *,
    batch: int,
    report: Report,
) -> tuple[int, dict[str, str]]:
    """Write the missing parts; return the number of the others, and the reason of each unreadable video."""
    finished, missing = list[CachePart](), list[CachePart]()
    for part in index.parts():
        (finished if (output / part.name).is_file() else missing).append(part)
    bad: list[tuple[str, str]] = []  # path and reason of each unreadable clip
    for part in finished:
        with open_part(output / part.name) as (_, problems):
            bad += [(clips.samples[int(number)].path, reason) for number, reason in problems.items()]
    done = sum(len(part.samples) for part in finished)  # clips
    for part in missing:
        tensors, problems = _encode(part, clips, tokenizer, accelerator, recipe.train, batch=batch)
        for number, reason in problems.items():
            path = clips.samples[number].path
            bad.append((path, reason))
            report(notice(f"cannot read {path}: {reason}; left out"))
        done += len(part.samples)
        # A part with too many unreadable samples is not written, so that it is tried again.
        refuse_too_many(bad, requested=done, max_bad=recipe.data.max_bad)
        write_tensors(output / part.name, tensors, metadata={"problems": json.dumps(problems)})
        report({"event": "video", "done": done, "videos": index.videos * index.variants})
    return len(finished), dict(sorted(bad))


def _write_index(
    output: Path,
    recipe: Recipe,
    clips: VideoClips,
    use: TokenizerUse,
    tokenizer: AdaptiveTokenizer,
    *,
    variants: int,
    precision: str,
) -> TokenIndex:
    """Write the index, or add variants to the one that is there; RecipeError if it is of other tokens."""
    grid = clip_grid(recipe)
    index = TokenIndex(
        tokenizer=use,
        mean=tuple(tokenizer.target_mean.tolist()),
        std=tuple(tokenizer.target_std.tolist()),
        videos=len(clips),
        variants=variants,
        grid=(grid.t, grid.h, grid.w),
        clips=clip_facts(recipe, clips),
        precision=precision,
    )
    if (output / INDEX).is_file():
        saved = TokenIndex.read(output)
        differences = differing(saved.token_values(), index.token_values())
        if differences:
            problem = f"holds other tokens: {', '.join(differences)}"
            raise RecipeError(f"--output {output}: {problem}; {IN_USE_FIX}")
        index = replace(saved, variants=max(saved.variants, index.variants))
    index.save(output)
    return index


@torch.inference_mode()
def _encode(
    part: CachePart,
    clips: VideoClips,
    tokenizer: AdaptiveTokenizer,
    accelerator: Accelerator,
    settings: TrainSettings,
    *,
    batch: int,
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """The tensors of a part, and the reason of each unreadable sample, whose rows are meaningless."""
    samples = [(part.variant, number) for number in part.samples]
    order = [samples[first : first + batch] for first in range(0, len(samples), batch)]
    workers = min(choose_workers(clips, order, settings.workers), len(order))
    rows: dict[str, list[NDArray[Any]]] = {"codes": [], "ranks": []}  # (B, V, N) each
    failed: list[list[tuple[str, str]]] = []  # of each sample the path and reason of what cannot be read
    for clip in batches(clips, order, workers=workers, timeout=settings.data_timeout):
        failed += clip.failed
        frames = clip.frames.flatten(0, 1).to(accelerator.device)  # (B * V, C, T, H, W)
        try:
            with accelerator.autocast():  # pixels as in a training step
                tokens = tokenizer.encode(IMAGENET.unnormalize(IMAGENET.normalize(frames)))
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(
                f"out of memory with {batch} clips in one forward pass; the same command with a smaller "
                "--batch resumes"
            ) from error
        codes, scores = tokens.codes.cpu().numpy(), tokens.scores.flatten(1).cpu().numpy()  # (B * V, N)
        ranks = np.stack([np.unique(row, return_inverse=True)[1] for row in scores])  # 0 for the lowest score
        for name, values, most in (
            ("codes", codes, tokenizer.quantizer.num_codes - 1),
            ("ranks", ranks, scores.shape[1] - 1),
        ):
            values = values.astype(np.min_scalar_type(most))
            rows[name].append(values.reshape(*clip.frames.shape[:2], -1))
    tensors = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in rows.items()}
    tries = zip(part.samples, failed, strict=True)
    return tensors, {number: tried[0][1] for number, tried in tries if tried}
