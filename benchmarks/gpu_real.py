"""Does pre-training pay on real clips? Five arms in one call of less than ten minutes on one GPU.

    python benchmarks/gpu_real.py CLIPS [--seed 0] [--limit 500]

CLIPS is the folder that `gpu_clips.py` writes. EVEREST's pixels, views with the task of the camera, and
VideoMAE are pre-trained for equal seconds, on clips of groups that are not tested. Short trials choose the
batch and the learning rate of each by its training loss. Each encoder, and two with random weights, are then
fine-tuned on four sets, with all labels and with two a class, and their frozen features are probed. One call
is one seed, and tests the third `seed % 3` of the groups. Rows are written at once, to gpu_real.jsonl in the
folder OUT; `gpu_real_page.py` makes a page from the rows of all calls.

Models, selections, losses, optimizer and schedules are the library's. Settings are those of docs/evidence.md,
with a larger model.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from gpu_clips import PARTITION, Frames, Lists
from gpu_rows import Row, Rows
from gpu_training import IMAGE, LEAST, PEAK, UNTIMED, WARM_UP, Job, Pretraining, run_job, save_clips
from held_out_clips import FOLDS
from measuring import machine

from everest.config.recipe import load_recipe
from everest.config.settings import Recipe


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to get an encoder.

    Args:
        input: frames or their differences.
        pretraining: its settings.
        trials: batches and base learning rates to choose from; none: random weights.
    """

    input: str
    pretraining: tuple[str, ...] = ()
    trials: tuple[tuple[int, float], ...] = ()


PIXEL_TRIALS: Final = ((256, 5e-4), (256, 1.5e-3), (1024, 5e-4))
SCRATCH: Final = "from scratch"
# Pixels predict frames: the loss of predicting differences, most of them noise, stays where it begins.
ARMS: Final = {
    SCRATCH: Arm(input="differences"),
    "from scratch, frames": Arm(input="frames"),
    "everest": Arm(input="frames", trials=PIXEL_TRIALS),
    "views and camera": Arm(
        input="differences",
        pretraining=(
            "pretrain.objective=views",
            "pretrain.selection={strategy: drawn, keep_ratio: 0.25, visible_ratio: null, uniform: 1.0}",
            "pretrain.camera_motion=1",
        ),
        trials=((1024, 1.5e-4), (1024, 5e-4)),  # one batch: the loss depends on the clips that it compares
    ),
    "videomae": Arm(
        input="frames",
        pretraining=("pretrain.selection={strategy: tube, mask_ratio: 0.9}",),
        trials=PIXEL_TRIALS,
    ),
}
TESTED: Final = ("interaction6", "surveillance2", "tennis7", "letters26")
LABELS: Final = (None, 2)  # a class; None: all
LAYER_DECAY: Final = 1.0
BASE: Final = (
    *("data.frames=16", "model.positions=separable", "train.clip_grad=1.0", "train.nonfinite=skip"),
    *("pretrain.stride=2", "finetune.stride=2", "finetune.selection.keep_ratio=0.5"),
    *("finetune.rand_augment=null", "finetune.crop_area=[0.5,1.0]", "finetune.erasing=0"),
    *("finetune.drop_path=0", f"finetune.layer_decay={LAYER_DECAY}"),
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is.

    Args:
        seconds: of pre-training, for each arm.
        trial_seconds: of each trial.
        divisor: of the batches of pre-training.
        batch: of fine-tuning.
        steps: of fine-tuning, by the labels a class (0: all).
    """

    settings: tuple[str, ...]
    seconds: float
    trial_seconds: float
    divisor: int
    batch: int
    steps: dict[int, int]
    sets: tuple[str, ...]
    most_clips: int | None = None
    processes: int


FULL: Final = Size(
    settings=("model.backbone=vit-s", "data.size=112"),
    seconds=48.0,
    trial_seconds=7.0,
    divisor=1,
    batch=64,
    steps={2: 100, 0: 180},
    sets=TESTED,
    processes=16,  # each waits for the device most of the time
)
MINIATURE: Final = Size(
    settings=(
        *("model.backbone=vit-tiny", "model.width=32", "model.depth=2", "model.heads=2", "data.size=32"),
        *("model.decoder_depth=1", "model.decoder_width=32", "model.decoder_heads=2"),
    ),
    seconds=2.0,
    trial_seconds=0.2,
    divisor=64,
    batch=8,
    steps={2: 4, 0: 6},
    sets=("interaction6",),
    most_clips=24,
    processes=2,
)


def recover_recipe(size: Size, seed: int, arm: Arm, *, flip: bool) -> Recipe:
    settings = [f"train.seed={seed}", f"model.input={arm.input}", f"data.flip={str(flip).lower()}"]
    return load_recipe("custom", overrides=[*BASE, *size.settings, *settings, *arm.pretraining])


def settings_of(size: Size) -> dict[str, Any]:
    """All that has to be the same in calls whose rows are compared."""
    return {
        **{"size": asdict(size), "base": BASE, "arms": {name: asdict(arm) for name, arm in ARMS.items()}},
        **{"finetune_lr": PEAK, "least_lr": LEAST, "warm_up": WARM_UP, "untimed": UNTIMED},
        **{"partition": PARTITION, "folds": FOLDS},
    }


def prepare(rows: Rows, clips: Path, size: Size, seed: int, executor: Executor, folder: Path) -> Frames:
    """Decode all clips, write what jobs read, and return the frames of those of pre-training."""
    lists = Lists(clips, load_recipe("custom"), fold=seed % FOLDS)
    if size.most_clips:
        few = {
            name: lists.sets[name][:: max(1, len(lists.sets[name]) // size.most_clips)] for name in size.sets
        }
        lists.sets, lists.unlabeled = few, lists.unlabeled[:4]
    began = time.perf_counter()
    frames = Frames.read(lists.all, executor, folder / "pixels")
    save_clips(folder, frames, {name: lists.sets[name] for name in size.sets})
    numbers = {"clips": len(frames.index), "bytes": len(frames.pixels)}
    rows.put("decoded", {**numbers, "seconds": time.perf_counter() - began})
    draws: Counter[str] = Counter()  # frames by source: each is equally likely
    for path in lists.for_pretraining:
        draws[Path(path).relative_to(clips).parts[1]] += int(frames.sizes[frames.index[path], 0])
    shares = {name: count / draws.total() for name, count in draws.items()}
    rows.put("draws", {"seed": seed, "shares": shares})
    for name in size.sets:
        tested = [clip for clip in lists.sets[name] if not clip.is_known]
        columns = {"labels": [clip.label for clip in tested], "groups": [clip.group for clip in tested]}
        known = len(lists.sets[name]) - len(tested)
        rows.put("tested", {"seed": seed, "unit": seed % FOLDS, "set": name, "known": known, **columns})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return frames.on(device, lists.for_pretraining)


def pretrain(
    name: str, size: Size, seed: int, frames: Frames, executor: Executor, weights: Path
) -> Iterator[Row]:
    """Yields the rows of the trials of an arm and of its run, and writes the weights of its encoder."""
    training = Pretraining(recover_recipe(size, seed, ARMS[name], flip=True), frames, executor)
    tried: list[Row] = []
    for batch, base_lr in ARMS[name].trials:
        tried.append(training.train(batch // size.divisor, base_lr, size.trial_seconds))
        yield {"arm": name, "seed": seed, "part": "trial", **tried[-1]}
    best = min(tried, key=lambda row: (math.isnan(row["losses"][-1]), row["losses"][-1]))
    row = training.train(best["batch"], best["base_lr"], size.seconds)
    torch.save(training.model.encoder.state_dict(), weights)
    yield {"arm": name, "seed": seed, "part": "run", **row}


def jobs_of(size: Size, seed: int, folder: Path) -> list[Job]:
    """Probes first; then the fine-tunings, so that those of one kind are complete for all arms."""
    files = {name: folder / f"{name}.pt" for name, arm in ARMS.items() if arm.trials}
    arms = [name for name in ARMS if name not in files or files[name].exists()]

    def job(name: str, arm: str, labels: int | None, steps: int) -> Job:
        # Interactions, strokes and letters have a left and a right, as in docs/evidence.md.
        recipe = recover_recipe(size, seed, ARMS.get(arm, ARMS[SCRATCH]), flip=name == "surveillance2")
        weights = str(files[arm]) if arm in files else None
        return Job(
            arm=arm, set=name, recipe=recipe, weights=weights, labels=labels, steps=steps, batch=size.batch
        )

    probes = [job(name, arm, None, 0) for name, arm in product(reversed(size.sets), (*arms, IMAGE))]
    tunings = [
        job(name, arm, labels, size.steps[labels or 0])
        for labels, name, arm in product(LABELS, size.sets, arms)
    ]
    return [*probes, *tunings]


def run_jobs(rows: Rows, jobs: list[Job], executor: Executor, folder: Path) -> Iterator[Row]:
    futures = {executor.submit(run_job, job, folder): job for job in jobs}
    for future in as_completed(futures):
        if future.cancelled():
            yield {**futures[future].row, "skipped": "the limit has passed"}
        elif error := future.exception():
            yield {**futures[future].row, "error": repr(error)[:400]}
        else:
            yield future.result()
        if rows.is_over:  # running jobs end, the others are rows
            for waiting in futures:
                waiting.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of gpu_clips.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=500.0, help="seconds after which nothing begins")
    parser.add_argument("--miniature", action="store_true", help="everything in seconds, for a test")
    options = parser.parse_args()
    size, seed = MINIATURE if options.miniature else FULL, options.seed
    rows = Rows(Path(os.environ.get("OUT", ".")) / "gpu_real.jsonl", limit=options.limit)
    rows.put("machine", {**machine(), "seed": seed, "settings": settings_of(size)})
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(size.processes, mp_context=spawn) as executor,
    ):
        folder = Path(name)
        frames = prepare(rows, options.clips.absolute(), size, seed, executor, folder)
        for name, arm in ARMS.items():
            if arm.trials:
                needs = size.seconds + len(arm.trials) * size.trial_seconds + 30
                work = partial(pretrain, name, size, seed, frames, executor, folder / f"{name}.pt")
                rows.run(f"pretrain {name}", work, needs=needs)
        rows.run("job", partial(run_jobs, rows, jobs_of(size, seed, folder), executor, folder))


if __name__ == "__main__":
    main()
