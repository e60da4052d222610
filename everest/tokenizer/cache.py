"""The token cache that `everest prepare tokens` writes: the codes and scores of pre-training clips.

A cache is a folder with `index.json`, which is written first, and a safetensors file for every part: the
clips of up to `PART_SAMPLES` samples in one variant. Variant v of a sample is the clip that epoch v of the
run would draw: the same frames, crop and flip. A part has R samples:

    codes  (R, V, N) unsigned: FSQ codes
    ranks  (R, V, N) unsigned: ranks of the scores in a view; 0 is the lowest, equal scores have equal ranks

A selection needs only the ranks of scores, which are exact in 16 bits; float16 scores would create ties.
`problems` in the header of a part lists the samples that could not be read; their rows have no meaning.
A part appears under its name only when it is complete, so a killed call resumes with the part it was writing.

A pre-training step of lvmae-128 takes 1.8 times the CPU time if it runs the tokenizer (one thread, one clip:
1.80 of 128 frames of 112 pixels, 1.75 of 32 of 224; both kinds of steps alternate, medians).

B clips, V views, T frames, H W pixels, N tokens, D code dimensions.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter
from torch import Tensor

from everest.config.settings import Recipe, TrainSettings
from everest.data.bad_videos import refuse_too_many
from everest.data.clip_dataset import ClipDataset
from everest.data.loader import choose_workers, read_batches
from everest.data.recipe_clips import clip_grid, fingerprint, pretrain_dataset
from everest.data.views import PretrainViews
from everest.errors import CheckpointError, EnvironmentProblem, RecipeError, differing, join_first
from everest.lists.sample import Sample
from everest.methods.targets import TokenTargets
from everest.system.accelerator import make_accelerator
from everest.system.events import Emit, notice
from everest.system.files import IN_USE_FIX, check_new_folder, refuse_inputs, write_table, write_text
from everest.system.locks import sole_writer
from everest.system.run_folder import BAD_COLUMNS, BAD_VIDEOS_FILE
from everest.system.storage import parse_location
from everest.system.text import damage_errors, json_text, parse_json, read_json, validate
from everest.system.weights import write_tensors
from everest.system.weights_header import open_safetensors
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.tokenizer.layers import FSQ
from everest.tokenizer.spec import TokenizerUse, tokenizer_use
from everest.video.pixels import IMAGENET
from everest.video.reader import VideoError

INDEX: Final = "index.json"
PART_FILES: Final = "variant*.safetensors"
PART_SAMPLES: Final = 256  # heuristic: samples whose work a kill can cost at most
MAX_VARIANTS: Final = 10_000  # the names of parts have four digits for the variant
MAX_DIFFERENCES: Final = 3  # maximum number of differences in a message


class CachePart(NamedTuple):
    """A part of a cache: consecutive samples in one variant."""

    variant: int
    samples: range

    @property
    def name(self) -> str:
        return f"variant{self.variant:04d}-{self.samples.start:08d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenIndex:
    """The `index.json` of a cache."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    format: Literal["everest-tokens"] = "everest-tokens"
    version: Literal[1] = 1
    tokenizer: TokenizerUse
    # Mean and std of each code dimension over the tokenizer's training set; standardized values fit float32.
    mean: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...]
    std: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...]
    videos: PositiveInt
    variants: Annotated[int, Field(ge=1, le=MAX_VARIANTS)]
    grid: tuple[PositiveInt, PositiveInt, PositiveInt]  # time indices, rows, columns
    clips: dict[str, Any]  # the values that determine the pixels (`clip_facts`)
    precision: str  # precision in which the tokenizer ran

    def parts(self) -> list[CachePart]:
        """All parts in the order in which they are written."""
        firsts = range(0, self.videos, PART_SAMPLES)
        return [self.part_of(variant, first) for variant in range(self.variants) for first in firsts]

    def part_of(self, variant: int, sample: int) -> CachePart:
        """The part that has the clip of a sample."""
        first = sample // PART_SAMPLES * PART_SAMPLES
        return CachePart(variant, range(first, min(first + PART_SAMPLES, self.videos)))

    def save(self, folder: Path) -> TokenIndex:
        """Write the index, or add its variants to the existing index; RecipeError if their tokens differ."""
        index = self
        if (folder / INDEX).is_file():
            saved = TokenIndex.read(folder)
            saved_values, values = (
                {**x.clip_values(), "train.precision": x.precision, "tokenizer": x.tokenizer.sha256}
                for x in (saved, self)
            )
            if differences := differing(saved_values, values):
                problem = f"holds other tokens: {', '.join(differences)}"
                raise RecipeError(f"--output {folder}: {problem}; {IN_USE_FIX}")
            index = replace(saved, variants=max(saved.variants, self.variants))
        write_text(folder / INDEX, json_text(_INDEX.dump_python(index, mode="json"), indent=2) + "\n")
        return index

    @staticmethod
    def read(folder: Path) -> TokenIndex:
        """Read the index of a folder."""
        path = folder / INDEX
        if not path.is_file():
            command = f"everest prepare tokens --output {shlex.quote(str(folder))}"
            raise CheckpointError(f"{path}: no such file; make it with {command}")
        with damage_errors(path, fix="make the cache again with --overwrite", error=CheckpointError):
            return validate(_INDEX, read_json(path))

    def clip_values(self) -> dict[str, Any]:
        """The values that must equal those of a run's clips."""
        return {"videos": self.videos, "grid": list(self.grid), **self.clips}


_INDEX: Final = TypeAdapter(TokenIndex)


def clip_facts(recipe: Recipe, dataset: ClipDataset) -> dict[str, Any]:
    """The values that determine the pixels of pre-training clips: JSON values under the keys of a recipe."""
    views = dataset.views
    assert isinstance(views, PretrainViews)
    return {
        "data.fps": views.fps,
        "data.channels": recipe.data.channels,
        "train.seed": dataset.seed,
        "data.frames": views.frames,
        "data.size": list(views.size),
        "model.tubelet": list(recipe.model.tubelet),
        "pretrain.stride": views.stride,
        "pretrain.sampling": views.sampling,
        "pretrain.flip": views.flip,
        "pretrain.views_per_decode": views.views_per_decode,
        "list of videos": fingerprint(dataset.samples, parse_location(recipe.data.root), None),
    }


@contextmanager
def open_part(part: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a part; yield its file, and the reason for each unreadable sample, by sample number."""
    fix = "remove it and run the same everest prepare tokens again"
    with damage_errors(part, fix=fix, error=CheckpointError), open_safetensors(part) as file:
        yield file, parse_json(file.metadata()["problems"])


class TokenCache:
    """The cache `pretrain.target.cache` of a recipe; CheckpointError if its tokens belong to other clips.

    The pre-training data set reads it (everest.data.clip_dataset.ClipTokens).
    """

    def __init__(self, recipe: Recipe, dataset: ClipDataset) -> None:
        section = recipe.pretrain
        assert section.objective == "reconstruct", "only targets are stored"
        self.folder = Path(section.target.cache or "")
        self.index = TokenIndex.read(self.folder)
        grid = clip_grid(recipe)
        requested = {"videos": len(dataset), "grid": [grid.t, grid.h, grid.w], **clip_facts(recipe, dataset)}
        differences = differing(self.index.clip_values(), requested)
        if differences:
            shown = join_first(differences, MAX_DIFFERENCES)
            raise CheckpointError(
                f"{self.folder}: has the tokens of other clips: {shown}; set these to the earlier "
                "values, or make the cache again with everest prepare tokens --overwrite"
            )
        present = {file.name for file in self.folder.glob(PART_FILES)}
        parts = [part.name for part in self.index.parts()]
        missing = [part for part in parts if part not in present]
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} of {len(parts)} parts are missing, first {missing[0]}; run "
                "the same everest prepare tokens again to make them"
            )
        self.variants = self.index.variants
        self._samples = dataset.samples
        # The checks of the recipe have refused `soft`. Pixel targets need no values.
        self._space = section.target.space if isinstance(section.target, TokenTargets) else None
        self._needs_ranks = section.selection.needs_tokenizer
        self._quantizer = FSQ(self.index.tokenizer.settings.config.levels)

    def read(self, variant: int, index: int) -> dict[str, Tensor]:
        """Read the model's additional inputs for the clip of sample `index` in epoch `variant`.

        Returns:
            `importance`: (V, N) float32, the rank of each token's score, if the selection needs it.
            `values`: (V, N, D) as TokenTargets.values: standardized values in float32, or int64 levels with
            space `codes`. Absent if the targets are pixels.
        """
        part = self.index.part_of(variant, index)
        path, row = self.folder / part.name, index - part.samples.start
        with open_part(path) as (file, problems):
            if str(index) in problems:
                reason = f"{problems[str(index)]} (recorded in {path})"
                raise VideoError(self._samples[index].video, reason)
            codes, ranks = (file.get_slice(name)[row] for name in ("codes", "ranks"))  # (V, N)
        tokens = {"importance": torch.from_numpy(ranks.astype(np.float32))} if self._needs_ranks else {}
        codes = torch.from_numpy(codes.astype(np.int64))
        if self._space == "codes":
            tokens["values"] = self._quantizer.digits(codes)
        elif self._space is not None:
            values = self._quantizer.decode(codes)
            tokens["values"] = (values - torch.tensor(self.index.mean)) / torch.tensor(self.index.std)
        return tokens


def write_tokens(
    recipe: Recipe,
    output: Path,
    *,
    variants: int,
    batch: int = 8,
    overwrite: bool = False,
    cpu: bool = False,
    emit: Emit,
) -> dict[str, Any]:
    """Write the tokens of all pre-training clips of a recipe; parts that an earlier call finished are kept.

    Args:
        variants: clips per video; missing variants are added to a folder, surplus variants are kept.
        batch: clips per forward pass.
        overwrite: start again, whatever `output` holds.
        cpu: do not use other devices.
    Returns:
        `{"output", "videos", "variants", "parts", "kept", "bytes", "bad"}`; `kept` counts the parts that
        earlier calls wrote.
    """
    accelerator = make_accelerator(recipe.train.precision, cpu=cpu)
    use = tokenizer_use(recipe)
    if use.path is None:
        raise RecipeError(
            "tokenizer.checkpoint: names no tokenizer; everest train-tokenizer makes one, --set "
            "tokenizer.checkpoint=RUN names it"
        )
    tokenizer = use.load().to(accelerator.device)
    dataset = replace(pretrain_dataset(recipe), replace_bad=False)
    inputs = [Path(use.path), *(sample.video for sample in dataset.samples)]
    refuse_inputs(output, inputs, fix="choose a folder of its own")
    check_new_folder(output, overwrite=overwrite, is_output=lambda name: name == INDEX)
    with sole_writer(output / INDEX):
        if overwrite:
            for path in (output / INDEX, output / BAD_VIDEOS_FILE, *output.glob(PART_FILES)):
                path.unlink(missing_ok=True)
        grid = clip_grid(recipe)
        index = TokenIndex(
            tokenizer=use,
            mean=tuple(tokenizer.target_mean.tolist()),
            std=tuple(tokenizer.target_std.tolist()),
            videos=len(dataset),
            variants=variants,
            grid=(grid.t, grid.h, grid.w),
            clips=clip_facts(recipe, dataset),
            precision=accelerator.mixed_precision,
        ).save(output)
        encode = partial(_encode, dataset, tokenizer, accelerator, recipe.train, batch=batch)
        kept, bad = _write_parts(index, output, dataset.samples, encode, recipe.data.max_bad, emit)
        if bad:
            write_table(output / BAD_VIDEOS_FILE, [BAD_COLUMNS, *bad.items()])
    parts = index.parts()
    document = {"output": str(output), "videos": index.videos, "variants": index.variants}
    document |= {"parts": len(parts), "kept": kept}
    document["bytes"] = sum((output / part.name).stat().st_size for part in parts)
    return {**document, "bad": [{"path": path, "reason": reason} for path, reason in bad.items()]}


def _write_parts(
    index: TokenIndex,
    output: Path,
    samples: Sequence[Sample],
    encode: Callable[[CachePart], tuple[dict[str, Tensor], dict[int, str]]],
    max_bad: float,
    emit: Emit,
) -> tuple[int, dict[str, str]]:
    """Write the missing parts; return the number of kept parts, and the reason for each unreadable video."""
    finished, missing = list[CachePart](), list[CachePart]()
    for part in index.parts():
        (finished if (output / part.name).is_file() else missing).append(part)
    bad: list[tuple[str, str]] = []  # path and reason of each unreadable clip
    for part in finished:
        with open_part(output / part.name) as (_, problems):
            bad += [(samples[int(number)].path, reason) for number, reason in problems.items()]
    done = sum(len(part.samples) for part in finished)  # number of finished clips
    for part in missing:
        tensors, problems = encode(part)
        for number, reason in problems.items():
            path = samples[number].path
            bad.append((path, reason))
            emit(notice(f"cannot read {path}: {reason}; left out"))
        done += len(part.samples)
        # A part with too many unreadable samples is not written, so that a later call tries it again.
        refuse_too_many(bad, requested=done, max_bad=max_bad)
        write_tensors(output / part.name, tensors, metadata={"problems": json.dumps(problems)})
        emit({"event": "video", "done": done, "videos": index.videos * index.variants})
    return len(finished), dict(sorted(bad))


@torch.inference_mode()
def _encode(
    dataset: ClipDataset,
    tokenizer: AdaptiveTokenizer,
    accelerator: Accelerator,
    settings: TrainSettings,
    part: CachePart,
    *,
    batch: int,
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Return the tensors of a part, and the reason for each unreadable sample, whose rows are meaningless."""
    samples = [(part.variant, number) for number in part.samples]
    order = [samples[first : first + batch] for first in range(0, len(samples), batch)]
    workers = min(choose_workers(dataset, order, settings.workers), len(order))
    rows: dict[str, list[NDArray[Any]]] = {"codes": [], "ranks": []}  # (B, V, N) each
    failed: list[list[tuple[str, str]]] = []  # per sample: paths that cannot be read, with reasons
    for clip in read_batches(dataset, order, workers=workers, timeout=settings.data_timeout):
        failed += clip.failed_reads
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
        most = {"codes": tokenizer.quantizer.num_codes - 1, "ranks": scores.shape[1] - 1}
        for name, values in (("codes", codes), ("ranks", ranks)):
            values = values.astype(np.min_scalar_type(most[name]))
            rows[name].append(values.reshape(*clip.frames.shape[:2], -1))
    tensors = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in rows.items()}
    tries = zip(part.samples, failed, strict=True)
    return tensors, {number: tried[0][1] for number, tried in tries if tried}
