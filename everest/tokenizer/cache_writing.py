"""Run a tokenizer or a teacher once over all pre-training clips; everest.tokenizer.cache describes the files.

The tokens are written in parts. A part appears under its name only when it is complete, so a killed call is
resumed with the part that it was writing.

B clips, V views, T frames, H W pixels, N tokens, R samples of a part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from everest.config.settings import Recipe, TrainSettings
from everest.data.bad_videos import refuse_too_many
from everest.data.dataset import Clip, VideoClips
from everest.data.loader import batches, choose_workers, make_loader
from everest.data.stages import clip_grid, pretrain_clips
from everest.errors import EnvironmentProblem, RecipeError, differing
from everest.system.accelerator import make_accelerator
from everest.system.events import Report, notice
from everest.system.files import refuse_inputs, write_table
from everest.system.locks import refuse_foreign, sole_writer
from everest.system.run_folder import BAD_VIDEOS
from everest.system.weights import write_tensors
from everest.tokenizer.cache import clip_facts, read_problems
from everest.tokenizer.cache_index import INDEX, MOST_VARIANTS, PARTS, CachePart, TokenIndex
from everest.tokenizer.feature_targets import Teacher, standardized
from everest.tokenizer.spec import tokenizer_use
from everest.video.pixels import IMAGENET

Rows = dict[str, NDArray[Any]]  # codes and ranks, (B or R, V, N) each, or features (B or R, V, N, D)
Problems = dict[str, str]  # the number of each unreadable sample, and why


def write_tokens(
    recipe: Recipe,
    output: Path,
    *,
    teacher: Teacher | None = None,
    variants: int,
    batch: int = 8,
    overwrite: bool = False,
    cpu: bool = False,
    report: Report,
) -> dict[str, Any]:
    """Write the tokens of all pre-training clips of a recipe; parts that an earlier call finished are kept.

    Args:
        teacher: of the recipe (everest.checkpoints.teacher); None: its tokenizer makes the tokens.
        variants: clips of each video; missing variants are added to a folder, surplus ones are kept.
        batch: clips in one forward pass.
        overwrite: start again, whatever `output` has.
        cpu: do not use other devices.
    Returns:
        `{"output", "videos", "variants", "parts", "kept", "bytes", "bad"}`; `kept` counts parts of an earlier
        call.
    Raises:
        RecipeError: too many variants, the recipe names no tokenizer, or `output` holds other files or other
            tokens, or another process writes there now.
        CheckpointError: the tokenizer cannot be read, or has other tokens than the recipe's model.
        DataError: more videos than `data.max_bad` cannot be read.
        EnvironmentProblem: the disk or the device's memory is full.
    """
    if variants > MOST_VARIANTS:
        raise RecipeError(f"--variants {variants}: at most {MOST_VARIANTS} are possible; use fewer")
    accelerator = make_accelerator(recipe.train.precision, tf32=recipe.train.tf32, cpu=cpu)
    maker = TokenMaker(recipe, accelerator.device) if teacher is None else FeatureMaker(teacher)
    encoder = _ClipEncoder(
        clips=pretrain_clips(recipe, replace_bad=False),
        maker=maker,
        accelerator=accelerator,
        settings=recipe.train,
        batch=batch,
        report=report,
    )
    inputs = [*maker.files, *(sample.video for sample in encoder.clips.samples)]
    refuse_inputs(output, inputs, option="--output", fix="choose a folder of its own")
    if not overwrite:
        refuse_foreign(output, lambda name: name == INDEX)
    with sole_writer(output / INDEX):
        index = _save_index(recipe, encoder, output, variants=variants, overwrite=overwrite)
        parts = list(index.parts())
        problems = {
            part: read_problems(output / part.name) for part in parts if (output / part.name).is_file()
        }
        num_kept = len(problems)
        done = sum(len(part.samples) for part in problems)
        for part in parts:
            if part not in problems:
                rows, problems[part] = encoder.encode(part)
                done += len(part.samples)
                # A part with too many unreadable samples is not written, so that it is tried again.
                refuse_too_many(encoder.name(problems), requested=done, max_bad=recipe.data.max_bad)
                header = {"problems": json.dumps(problems[part])}
                tensors = {name: torch.from_numpy(values) for name, values in rows.items()}
                write_tensors(output / part.name, tensors, metadata=header)
                report({"event": "video", "done": done, "videos": index.videos * index.variants})
        bad = dict(sorted(encoder.name(problems)))
        if bad:
            write_table(output / BAD_VIDEOS, [("path", "reason"), *bad.items()])
    return {
        "output": str(output),
        "videos": index.videos,
        "variants": index.variants,
        "parts": len(parts),
        "kept": num_kept,
        "bytes": sum((output / part.name).stat().st_size for part in parts),
        "bad": [{"path": path, "reason": reason} for path, reason in bad.items()],
    }


def dense_ranks(scores: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
    """(B, N) scores to their dense ranks in each row: 0 for the lowest, equal ranks for equal scores."""
    ranks = np.stack([np.unique(row, return_inverse=True)[1] for row in scores])
    return ranks.astype(np.min_scalar_type(scores.shape[1] - 1))


def _save_index(
    recipe: Recipe, encoder: _ClipEncoder, output: Path, *, variants: int, overwrite: bool
) -> TokenIndex:
    """Save the index: a new one, or that of an earlier call with more variants.

    Raises:
        RecipeError: the earlier call made other tokens.
    """
    grid = clip_grid(recipe)
    index = TokenIndex(
        **encoder.maker.facts(),
        videos=len(encoder.clips),
        variants=variants,
        grid=(grid.t, grid.h, grid.w),
        clips=clip_facts(recipe, encoder.clips),
        precision=encoder.accelerator.mixed_precision,
    )
    if overwrite:
        for path in (output / INDEX, output / BAD_VIDEOS, *output.glob(PARTS)):
            path.unlink(missing_ok=True)
    if (output / INDEX).is_file():
        saved = TokenIndex.read(output)
        differences = differing(saved.to_dict(), index.to_dict())
        if differences:
            raise RecipeError(
                f"--output {output}: holds other tokens: {', '.join(differences)}; choose another folder, or "
                "use --overwrite"
            )
        index = replace(saved, variants=max(saved.variants, variants))
    index.save(output)
    return index


class TokenMaker:
    """Makes codes and ranks by the tokenizer of a recipe.

    Raises:
        RecipeError: the recipe names no tokenizer.
        CheckpointError: it cannot be read, or its token grid is not that of the recipe's model.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._use = tokenizer_use(recipe)
        if self._use.path is None:
            raise RecipeError(
                "tokenizer.checkpoint: names no tokenizer; everest train-tokenizer makes one, --set "
                "tokenizer.checkpoint=RUN names it"
            )
        self.files = [Path(self._use.path)]
        self._tokenizer = self._use.load().to(device)

    def facts(self) -> dict[str, Any]:
        """The fields of the index that describe the tokenizer."""
        mean, std = self._tokenizer.target_mean, self._tokenizer.target_std
        return {"tokenizer": self._use, "mean": tuple(mean.tolist()), "std": tuple(std.tolist())}

    def rows(self, frames: Tensor) -> Rows:
        """Codes and ranks (B, N) of clips (B, 3, T, H, W) uint8, prepared as in a training step."""
        encoded = self._tokenizer.encode(IMAGENET.unnormalize(IMAGENET.normalize(frames)))
        codes = encoded.codes.cpu().numpy()
        codes = codes.astype(np.min_scalar_type(self._tokenizer.quantizer.num_codes - 1))
        return {"codes": codes, "ranks": dense_ranks(encoded.scores.flatten(1).cpu().numpy())}


class FeatureMaker:
    """Makes features by a teacher."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        path = Path(teacher.use.name)
        self.files = [path] if path.exists() else []  # others are in the cache of the hub

    def facts(self) -> dict[str, Any]:
        """The field of the index that describes the teacher."""
        return {"teacher": self._teacher.use}

    def rows(self, frames: Tensor) -> Rows:
        """Features (B, N, D) float16 of clips (B, C, T, H, W) uint8."""
        return {"features": standardized(self._teacher(frames)).half().cpu().numpy()}


@dataclass(frozen=True, kw_only=True)
class _ClipEncoder:
    """The clips of a recipe, and what makes their tokens."""

    clips: VideoClips
    maker: TokenMaker | FeatureMaker
    accelerator: Accelerator
    settings: TrainSettings
    batch: int
    report: Report

    def encode(self, part: CachePart) -> tuple[Rows, Problems]:
        """The tokens of a part; the rows of unreadable samples are meaningless."""
        starts = range(0, len(part.samples), self.batch)
        order = [[(part.variant, i) for i in part.samples[at : at + self.batch]] for at in starts]
        workers = min(choose_workers(self.clips, order, self.settings.workers), len(order))
        loader = make_loader(self.clips, order, workers=workers, timeout=self.settings.data_timeout)
        rows, failed = [], []
        for clip in batches(loader):
            rows.append(self._rows(clip))
            failed += [json.loads(text) for text in clip.failed]
        problems = {str(i): tries[0][1] for i, tries in zip(part.samples, failed, strict=True) if tries}
        for path, reason in self.name({part: problems}):
            self.report(notice(f"cannot read {path}: {reason}; left out"))
        return {name: np.concatenate([some[name] for some in rows]) for name in rows[0]}, problems

    @torch.inference_mode()
    def _rows(self, clip: Clip) -> Rows:
        """The tokens of (B, V, C, T, H, W) frames."""
        frames = clip.frames.flatten(0, 1).to(self.accelerator.device)
        try:
            with self.accelerator.autocast():
                rows = self.maker.rows(frames)
        except torch.OutOfMemoryError as error:
            raise EnvironmentProblem(
                f"out of memory with {self.batch} clips in one forward pass; the same command with a smaller "
                "--batch resumes"
            ) from error
        lead = clip.frames.shape[:2]
        return {name: values.reshape(*lead, *values.shape[1:]) for name, values in rows.items()}

    def name(self, problems: Mapping[CachePart, Problems]) -> list[tuple[str, str]]:
        """The path and reason of each unreadable sample."""
        samples = self.clips.samples
        return [(samples[int(i)].path, reason) for part in problems.values() for i, reason in part.items()]
