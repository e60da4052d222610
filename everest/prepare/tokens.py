"""A frozen tokenizer run once over the clips of pre-training; everest.token_index says what is written.

A part is in its place only when it is whole, so a call after a kill goes on with the part that was under way.

B clips, V views, T frames, H W pixels, N tokens, R samples of a part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.numpy import save_file

from everest.config.settings import Recipe, TrainSettings
from everest.data.bad_videos import refuse_too_many
from everest.data.dataset import Clip, VideoClips
from everest.data.loader import batches, make_loader
from everest.data.stages import clip_grid, pretrain_clips
from everest.errors import EnvironmentProblem, RecipeError
from everest.system.accelerator import make_accelerator
from everest.system.events import Report, notice
from everest.system.files import write_atomically, write_table
from everest.system.locks import refuse_foreign, sole_writer
from everest.system.run_folder import BAD_VIDEOS
from everest.tokenizer.cache import INDEX, PARTS, CachePart, TokenIndex, clip_facts, differing, read_problems
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.spec import TokenizerUse, tokenizer_use
from everest.video.pixels import normalize, unnormalize

LOCK: Final = ".lock"

Rows = dict[str, NDArray[Any]]  # codes and ranks, (B or R, V, N) each
Problems = dict[str, str]  # why a sample could not be read, by its number


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
    """Write the tokens of all pre-training clips of a recipe; what an earlier call has finished is kept.

    Args:
        variants: clips of each video; a folder that has fewer gets the others, one that has more keeps them.
        batch: clips in one pass.
        overwrite: begin again, whatever `output` has.
        cpu: leave other devices alone.
    Returns:
        `{"output", "videos", "variants", "parts", "kept", "bytes", "bad"}`: `kept` parts were there.
    Raises:
        RecipeError: the recipe names no tokenizer, or `output` holds something else.
        CheckpointError: the tokenizer cannot be read, or it has other tokens than the recipe's model.
        DataError: more videos than `data.max_bad` cannot be read.
        EnvironmentProblem: no room on the disk or on the device.
    """
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=cpu)
    use = _named_tokenizer(recipe)
    work = _Work(
        clips=pretrain_clips(recipe, replace_bad=False),
        tokenizer=use.load().to(accelerator.device),
        accelerator=accelerator,
        settings=recipe.train,
        batch=batch,
        report=report,
    )
    if not overwrite:
        refuse_foreign(output, lambda name: name in (INDEX, LOCK))
    with sole_writer(output / LOCK):
        index = _begin(_index(recipe, use, work, variants), output, anew=overwrite)
        parts = list(index.parts())
        kept = [part for part in parts if (output / part.name).is_file()]
        skipped = _write_missing(index, output, kept, work, max_bad=recipe.data.max_bad)
        bad = dict(sorted(skipped))
        if bad:
            write_table(output / BAD_VIDEOS, [("path", "reason"), *bad.items()])
    return {
        "output": str(output),
        "videos": index.videos,
        "variants": index.variants,
        "parts": len(parts),
        "kept": len(kept),
        "bytes": sum((output / part.name).stat().st_size for part in parts),
        "bad": [{"path": path, "reason": reason} for path, reason in bad.items()],
    }


def dense_ranks(scores: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
    """(B, N) scores to the place of each among the different ones of its row, the lowest first."""
    ranks = np.stack([np.unique(row, return_inverse=True)[1] for row in scores])
    return ranks.astype(np.min_scalar_type(scores.shape[1] - 1))


def _named_tokenizer(recipe: Recipe) -> TokenizerUse:
    use = tokenizer_use(recipe)
    if use.path is None:
        raise RecipeError(
            "tokenizer.checkpoint: names no tokenizer; everest train-tokenizer makes one, --set "
            "tokenizer.checkpoint=RUN names it"
        )
    return use


def _index(recipe: Recipe, use: TokenizerUse, work: _Work, variants: int) -> TokenIndex:
    grid = clip_grid(recipe)
    return TokenIndex(
        tokenizer=use,
        mean=tuple(work.tokenizer.target_mean.tolist()),
        std=tuple(work.tokenizer.target_std.tolist()),
        videos=len(work.clips),
        variants=variants,
        grid=(grid.t, grid.h, grid.w),
        clips=clip_facts(recipe, work.clips),
        precision=work.accelerator.mixed_precision,
    )


def _begin(index: TokenIndex, output: Path, *, anew: bool) -> TokenIndex:
    """Put the index in its place: that of an earlier call, with the variants that are new.

    Raises:
        RecipeError: the earlier call made other tokens.
    """
    if anew:
        for path in (output / INDEX, output / BAD_VIDEOS, *output.glob(PARTS)):
            path.unlink(missing_ok=True)
    if (output / INDEX).is_file():
        before = TokenIndex.read(output)
        others = differing(before.to_dict(), index.to_dict())
        if others:
            raise RecipeError(
                f"--output {output}: holds other tokens: {', '.join(others)}; choose another folder, or use "
                "--overwrite"
            )
        index = before.with_variants(index.variants)
    index.save(output)
    return index


def _write_missing(
    index: TokenIndex, output: Path, kept: Sequence[CachePart], work: _Work, *, max_bad: float
) -> list[tuple[str, str]]:
    """Write all parts but those kept.

    Returns:
        Path and reason of all that could not be read, in the kept parts, too.
    Raises:
        DataError: that is too much. The part that it shows in is not written: it is tried again.
    """
    problems = {part: read_problems(output / part.name) for part in kept}
    done, total = sum(len(part.samples) for part in kept), index.videos * index.variants
    for part in index.parts():
        if part not in problems:
            rows, problems[part] = work.tokens(part)
            done += len(part.samples)
            refuse_too_many(work.named(problems), requested=done, max_bad=max_bad)
            header = {"problems": json.dumps(problems[part])}
            write_atomically(output / part.name, partial(save_file, rows, metadata=header))
            work.report({"event": "video", "done": done, "videos": total})
    return work.named(problems)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A tokenizer and the clips that it is run over."""

    clips: VideoClips
    tokenizer: AdaptiveTokenizer
    accelerator: Accelerator
    settings: TrainSettings
    batch: int
    report: Report

    def tokens(self, part: CachePart) -> tuple[Rows, Problems]:
        """The tokens of a part; rows of what cannot be read mean nothing."""
        starts = range(0, len(part.samples), self.batch)
        order = [[(part.variant, i) for i in part.samples[at : at + self.batch]] for at in starts]
        workers = min(self.settings.workers, len(order))
        loader = make_loader(self.clips, order, workers=workers, timeout=self.settings.data_timeout)
        rows, failed = [], []
        for clip in batches(loader):
            rows.append(self._rows(clip))
            failed += [json.loads(text) for text in clip.failed]
        problems = {str(i): tries[0][1] for i, tries in zip(part.samples, failed, strict=True) if tries}
        for number, reason in problems.items():
            self.report(notice(f"cannot read {self.clips.samples[int(number)].path}: {reason}; left out"))
        return {name: np.concatenate([some[name] for some in rows]) for name in rows[0]}, problems

    @torch.inference_mode()
    def _rows(self, clip: Clip) -> Rows:
        """From (B, V, 3, T, H, W) frames, seen as a training step shows them to a tokenizer."""
        frames = normalize(clip.frames.flatten(0, 1).to(self.accelerator.device))
        try:
            with self.accelerator.autocast():
                told = self.tokenizer.encode(unnormalize(frames))
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(
                f"out of memory with {self.batch} clips in one pass; the same command with a smaller --batch "
                "goes on"
            ) from error
        codes = told.codes.cpu().numpy()  # (B * V, N)
        codes = codes.astype(np.min_scalar_type(self.tokenizer.quantiser.num_codes - 1))
        ranks = dense_ranks(told.scores.flatten(1).cpu().numpy())
        shape = (*clip.frames.shape[:2], -1)
        return {"codes": codes.reshape(shape), "ranks": ranks.reshape(shape)}

    def named(self, problems: Mapping[CachePart, Problems]) -> list[tuple[str, str]]:
        """Path and reason of each problem."""
        samples = self.clips.samples
        return [(samples[int(i)].path, reason) for of in problems.values() for i, reason in of.items()]
