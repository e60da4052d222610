"""Image weights adapted to unlabeled clips (the recipe `adapt`), measured on seven sets of real clips.

    HF_HUB_CACHE=CACHE python benchmarks/adapted_features.py FOLDER [--seeds 3] [--only VARIANT …]

For each seed the groups of every set are divided into three folds. An encoder is adapted to the clips of all
sets without the groups of a fold (`groups`), or without a whole set (`set`). A linear model of the mean and
the change of its tokens learns from the other folds of a set and is tested on the fold. FOLDER keeps clips,
tokens and features, so that a stopped call continues; the table is printed for what is there.

N clips, C channels, T frames, H W pixels, K tokens, D width, F features.
"""

from __future__ import annotations

import argparse
import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from measuring import SHARED, markdown, write_results
from numpy.typing import NDArray

from everest.checkpoints.frozen import find_frozen, open_teacher
from everest.checkpoints.init import find_init, load_init, read_init, recipe_for_init
from everest.config.heads import Head
from everest.config.run_options import RunOptions
from everest.config.settings import Recipe
from everest.data.randomness import Purpose, seed_at
from everest.models.pooling import mean_and_change
from everest.models.spec import pretrain_spec
from everest.models.student import Student, StudentSpec
from everest.probes.linear import linear
from everest.video.reader import read_frames, video_info

VIDEOS: Final = SHARED / "videos"
RESULTS: Final = Path(__file__).parent / "results" / "adapted_features.json"
SETS: Final = {  # folder and lists
    **{"mice": "more/mouse", "robots": "more/robot", "interactions": "actions/interaction6"},
    **{"weizmann10": "actions/weizmann10", "tennis7": "actions/tennis7"},
    **{"tabletennis2": "actions/tabletennis2", "surveillance2": "actions/surveillance2"},
}
FRAMES, SIZE, BATCH, FOLDS, DRAWS = 8, (128, 160), 8, 3, 1000
RATE, WARMUP = 1e-4, 20
VIT: Final = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An encoder: its start, the tokens that it sees, and how it is adapted."""

    weights: str = VIT
    steps: int = 200  # 0: not trained
    keep: float = 0.3
    strategy: str = "frame-difference"
    time: bool = True  # whether positions in time are learned
    frames: bool = False  # frame by frame, all tokens, not trained
    apart: str = "groups"  # what the unlabeled clips do not have: the groups of the fold, or the set


ADAPTED: Final = "adapted, 200 steps"
FROZEN: Final = "frame by frame"
VARIANTS: Final = {
    FROZEN: Variant(frames=True, steps=0),
    "joint, not trained": Variant(steps=0),
    ADAPTED: Variant(),
    "600 steps": Variant(steps=600),
    "60 % of the tokens": Variant(keep=0.6),
    "all tokens": Variant(keep=1.0),
    "random tokens": Variant(strategy="sampled, uniform: 1"),
    "without positions in time": Variant(time=False),
    "without the set": Variant(apart="set"),
    "DeiT-Ti, frame by frame": Variant(weights="deit_tiny_patch16_224.fb_in1k", frames=True, steps=0),
    "DeiT-Ti, adapted": Variant(weights="deit_tiny_patch16_224.fb_in1k"),
    "DINOv2, frame by frame": Variant(weights="vit_small_patch14_dinov2.lvd142m", frames=True, steps=0),
    "DINOv2, adapted": Variant(weights="vit_small_patch14_dinov2.lvd142m"),
}


class Row(NamedTuple):
    """A clip."""

    path: str  # below VIDEOS
    name: str  # of its set
    label: int  # -1: none
    group: str


def list_clips() -> list[Row]:
    """The clips of all lists, and those of robots without a label."""
    with (VIDEOS / "actions" / "clips.csv").open() as file:
        groups = {row["path"]: row["group"] for row in csv.DictReader(file)}
    rows = []
    for name, lists in SETS.items():
        for part in ("train", "val", "test"):
            for line in (VIDEOS / f"{lists}_{part}.csv").read_text().splitlines():
                path, label = line.rsplit(" ", 1)
                group = groups.get(path) or re.sub(r"_c\d+$", "", Path(path).stem)
                rows.append(Row(f"{Path(lists).parent}/{path}", name, int(label), f"{name}/{group}"))
    others = sorted((VIDEOS / "more" / "robot" / "other").glob("*.mp4"))
    return [*rows, *(Row(str(path.relative_to(VIDEOS)), "robots", -1, path.stem) for path in others)]


def folds_of(rows: list[Row], seed: int) -> NDArray[np.int64]:
    """The fold of each clip (N,), by its group; -1 for clips without a label."""
    rng, folds = np.random.default_rng(seed), {}
    for name in SETS:
        groups = sorted({row.group for row in rows if row.name == name and row.label >= 0})
        folds |= dict(zip(groups, rng.permutation(len(groups)) % FOLDS, strict=True))
    return np.array([folds.get(row.group, -1) for row in rows])


def read_clips(rows: list[Row], folder: Path) -> NDArray[np.uint8]:
    """The clips (N, C, T, H, W): frames at equal distances, the whole frame resized."""
    file = folder / "clips.npy"
    if not file.exists():
        clips = np.zeros((len(rows), 3, FRAMES, *SIZE), np.uint8)
        for number, row in enumerate(rows):
            video = str(VIDEOS / row.path)
            count = video_info(video).num_frames
            times = [int((index + 0.5) * count / FRAMES) for index in range(FRAMES)]
            frames = torch.as_tensor(np.asarray(read_frames(video, times))).permute(0, 3, 1, 2).float()
            frames = F.interpolate(frames, SIZE, mode="bilinear", antialias=True)
            clips[number] = frames.round().clamp(0, 255).byte().transpose(0, 1).numpy()
        np.save(file, clips)
    return np.load(file, mmap_mode="r")


def read_recipe(variant: Variant) -> Recipe:
    """The recipe `adapt` of a variant."""
    selection = f"{{strategy: {variant.strategy}, keep_ratio: {variant.keep}, visible_ratio: null}}"
    init, changes = f"timm:{variant.weights}", [f"pretrain.selection={selection}"]
    return recipe_for_init(RunOptions(stage="pretrain", recipe_file="adapt", init=init, overrides=changes))


def make_student(variant: Variant, seed: int) -> Student:
    """The student at its start."""
    recipe, name = read_recipe(variant), f"timm:{variant.weights}"
    init = read_init(find_init(name, output=None, overwrite=False), resumed=None)
    spec = init.adapt_spec(pretrain_spec(recipe, find_frozen(recipe, init=name)))
    assert isinstance(spec, StudentSpec)
    torch.manual_seed(seed_at(seed, Purpose.WEIGHTS))
    model = spec.build()
    load_init(model, spec, init, notify=lambda text: None)
    return model


def resized(clips: NDArray[np.uint8], model: Student) -> torch.Tensor:
    """Clips in the size of the model, which differs for patches of 14 pixels."""
    frames = torch.from_numpy(np.ascontiguousarray(clips))
    if frames.shape[-2:] == tuple(model.spec.size):
        return frames
    images = frames.transpose(1, 2).flatten(0, 1).float()
    images = (
        F.interpolate(images, model.spec.size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()
    )
    return images.unflatten(0, (len(clips), -1)).transpose(1, 2)


@torch.no_grad()
def read_tokens(variant: Variant, clips: NDArray[np.uint8], folder: Path) -> NDArray[np.float16]:
    """The features (2, N, K, D) of all tokens of the frozen weights, as filmed and mirrored."""
    file = folder / f"tokens-{variant.weights}.npy"
    if not file.exists():
        model, teacher = (
            make_student(variant, 0),
            open_teacher(read_recipe(variant), f"timm:{variant.weights}"),
        )
        grid, part = model.encoder.grid, file.with_suffix(".part")
        shape = (2, len(clips), grid.num_tokens, model.encoder.width)
        tokens = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
        for mirrored in (0, 1):
            for first in range(0, len(clips), 16):
                frames = resized(clips[first : first + 16], model)
                frames = frames.flip(-1) if mirrored else frames
                tokens[mirrored, first : first + 16] = teacher(frames).half().numpy()
        tokens.flush()
        part.rename(file)
    return np.load(file, mmap_mode="r")


def adapt(variant: Variant, pool: NDArray[np.int64], seed: int, clips: Any, tokens: Any) -> Student:
    """Adapt the weights to the clips of the pool, half of them mirrored."""
    model, rng = make_student(variant, seed).train(), np.random.default_rng(1000 + seed)
    model.encoder.position.temporal.requires_grad_(variant.time)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.05)
    noise, order = torch.Generator().manual_seed(seed), np.zeros(0, np.int64)
    for step in range(variant.steps):
        if len(order) < BATCH:
            order = rng.permutation(pool)
        batch, order, mirrored = order[:BATCH], order[BATCH:], rng.random(BATCH) < 0.5
        pairs = list(zip(batch, mirrored, strict=True))
        frames = np.stack([clips[number][..., ::-1] if flip else clips[number] for number, flip in pairs])
        values = np.stack([tokens[int(flip), number] for number, flip in pairs])
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP)
        draws = torch.rand(BATCH, model.noise_layout.total, generator=noise)
        loss = model(resized(frames, model), noise=draws, values=torch.from_numpy(values).float()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def compute_features(model: Student, clips: NDArray[np.uint8]) -> NDArray[np.float16]:
    """The mean and the change (N, F) of the tokens that the student keeps."""
    parts, noise = [], torch.Generator().manual_seed(0)
    for first in range(0, len(clips), 16):
        frames = resized(clips[first : first + 16], model)
        ids = model.select_tokens(
            frames, torch.rand(len(frames), model.noise_layout.total, generator=noise)
        ).visible
        parts.append(mean_and_change(model.encoder(frames, ids), ids, model.encoder.grid))
    return torch.cat(parts).half().numpy()


@torch.inference_mode()
def pool_tokens(tokens: NDArray[np.float16], model: Student) -> NDArray[np.float16]:
    """The mean and the change (N, F) of all tokens (N, K, D)."""
    parts, ids = [], torch.arange(tokens.shape[1])
    for first in range(0, len(tokens), 32):
        part = torch.from_numpy(np.asarray(tokens[first : first + 32])).float()
        parts.append(mean_and_change(part, ids.expand(len(part), -1), model.encoder.grid))
    return torch.cat(parts).half().numpy()


def features_of(
    name: str, seed: int, fold: int, left_out: str, rows: list[Row], clips: Any, folder: Path, *, new: bool
) -> NDArray[np.float32] | None:
    """The features (N, F) of a variant; None if they are not there and `new` ones are not wanted.

    `left_out`: the set whose clips are not in the pool.
    """
    variant = VARIANTS[name]
    parts = [
        name.replace(" ", "-").replace(",", ""),
        *([f"{seed}-{left_out or fold}"] if variant.steps else []),
    ]
    file = folder / f"{'-'.join(parts)}.npy"
    if not file.exists() and new:
        tokens = read_tokens(variant, clips, folder)
        if variant.frames:
            found = pool_tokens(tokens[0], make_student(variant, 0))
        else:
            names = np.array([row.name for row in rows])
            held_out = names == left_out if left_out else folds_of(rows, seed) == fold
            found = compute_features(adapt(variant, np.flatnonzero(~held_out), seed, clips, tokens), clips)
        np.save(file, found)
    return np.load(file).astype(np.float32) if file.exists() else None


def measure(
    name: str, seed: int, rows: list[Row], clips: Any, folder: Path, *, new: bool
) -> dict[str, list[bool]]:
    """Whether each clip of each set is classified correctly by a model that has not seen its group."""
    folds, names = folds_of(rows, seed), np.array([row.name for row in rows])
    labels, found = np.array([row.label for row in rows]), {}
    for set_name in SETS:
        own, right = (names == set_name) & (labels >= 0), np.zeros(len(rows), bool)
        left_out = set_name if VARIANTS[name].apart == "set" else ""
        for fold in range(FOLDS):
            features = features_of(name, seed, fold, left_out, rows, clips, folder, new=new)
            if features is None:
                break
            known, tested = own & (folds != fold), own & (folds == fold)
            head = Head(outputs=int(labels[own].max()) + 1)
            answers = linear(features[known], labels[known], features[tested], head, seed=seed)
            right[tested] = answers.argmax(axis=1) == labels[tested]
        else:
            found[set_name] = right[own].tolist()
    return found


def describe(results: dict[str, dict[str, dict[str, list[bool]]]], rows: list[Row]) -> str:
    """The percentages of right answers, with the 95 % interval over groups of the difference from FROZEN."""
    lines = []
    for name, by_seed in results.items():
        base = VARIANTS[name].weights
        frozen = next(other for other, each in VARIANTS.items() if each.frames and each.weights == base)
        line = [name, str(len(by_seed))]
        for set_name in SETS:
            seeds = [
                seed
                for seed, found in by_seed.items()
                if set_name in found and seed in results.get(frozen, {})
            ]
            if not seeds:
                line.append("not measured")
                continue
            groups = np.array([row.group for row in rows if row.name == set_name and row.label >= 0])
            own, other = (
                np.mean([results[each][seed][set_name] for seed in seeds], axis=0) for each in (name, frozen)
            )
            text = f"{100 * own.mean():.1f}"
            line.append(text if name == frozen else f"{text} ({interval(own - other, groups)})")
        lines.append(line)
    return markdown(["features", "seeds", *SETS], lines)


def interval(gain: NDArray[np.float64], groups: NDArray[np.str_]) -> str:
    """The 95 % interval of the mean gain in points, over groups."""
    _, numbers = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(numbers, gain), np.bincount(numbers)
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    low, high = np.percentile(100 * sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (2.5, 97.5))
    return f"{low:+.1f} to {high:+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--table", action="store_true", help="only of the features that are there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = list_clips()
    clips = read_clips(rows, options.folder)
    results: dict[str, dict[str, dict[str, list[bool]]]] = {}
    for seed in range(options.seeds):
        for name in options.only:
            found = measure(name, seed, rows, clips, options.folder, new=not options.table)
            if found:
                results.setdefault(name, {})[str(seed)] = found
    table = describe(results, rows)
    write_results(RESULTS, {"table": table.splitlines()})
    print(table)


if __name__ == "__main__":
    main()
