"""CPU time of a training step of one clip: forward, backward and AdamW.

    python benchmarks/train_step.py                    # all of them, merged into the results
    python benchmarks/train_step.py --backbone vit-b --dtype bf16 --rounds 9
    python benchmarks/train_step.py --task finetune

everest against the plain implementation on the same weights, and against the VideoMAE of transformers; one
thread, CPU seconds, in turns. The losses of everest and the plain implementation are compared first, in the
timed configuration. Clips are noise: the work does not depend on the pixels.

Each contender has its default settings: everest its CPU settings (`system.compute`), the others
PyTorch defaults. "On equal terms": all have the settings of everest; the plain one still updates in a loop.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any, Literal

import torch
from measuring import Times, by_machine, in_turns, markdown, publish, ratio, with_earlier
from steps import Case, Pass, clips_for, our_pass, plain_pass, transformers_pass, transformers_videomae
from torch import Tensor, nn

from everest.engine.network import make_optimizer, parameter_groups
from everest.engine.step import set_lr
from everest.profiling.profile import ProfiledStage
from everest.system.processes import TRAINER_KEPT_BYTES, keep_freed_memory

# For each comparison: (backbone, precision) to the minimum ratio, which is our choice.
S, B = "vit-s", "vit-b"
GOALS: dict[str, dict[tuple[str, str], float]] = {
    "EVEREST v plain": {(S, "fp32"): 1.25, (B, "fp32"): 1.2, (S, "bf16"): 1.25, (B, "bf16"): 1.2},
    "EVEREST v plain, plain in fp32": {(S, "bf16"): 2.5, (B, "bf16"): 2.7},
    "VideoMAE v transformers": {(S, "fp32"): 1.07, (B, "fp32"): 1.15, (S, "bf16"): 1.2, (B, "bf16"): 1.2},
    "EVEREST v transformers' VideoMAE": {(B, "fp32"): 2.0, (B, "bf16"): 2.0},
    "fine-tuning v plain": {(S, "fp32"): 1.15},
    "fine-tuning v plain, plain in fp32": {(S, "bf16"): 2.1},
    "EVEREST v plain, on equal terms": {},
    "VideoMAE v transformers, on equal terms": {},
    "EVEREST v transformers' VideoMAE, on equal terms": {},
    "fine-tuning v plain, on equal terms": {},
}
# What is compared, by task: its name, the slow contender, the fast one.
PAIRS = {
    "pretrain": (
        ("EVEREST v plain", "plain", "everest"),
        ("VideoMAE v transformers", "transformers", "VideoMAE"),
        ("EVEREST v transformers' VideoMAE", "transformers", "everest"),
        ("EVEREST v plain, on equal terms", "plain, tuned", "everest"),
        ("VideoMAE v transformers, on equal terms", "transformers, tuned", "VideoMAE"),
        ("EVEREST v transformers' VideoMAE, on equal terms", "transformers, tuned", "everest"),
        ("EVEREST v plain, plain in fp32", "plain fp32", "everest"),
    ),
    "finetune": (
        ("fine-tuning v plain", "plain", "everest"),
        ("fine-tuning v plain, on equal terms", "plain, tuned", "everest"),
        ("fine-tuning v plain, plain in fp32", "plain fp32", "everest"),
    ),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """The implementation and the model of a step.

    Args:
        recipe: k400 is EVEREST, videomae-k400 VideoMAE; transformers has the latter only.
        tuned: with the CPU settings of everest; otherwise with PyTorch defaults.
    """

    code: Literal["ours", "plain", "transformers"]
    backbone: str
    dtype: str
    recipe: str = "k400"
    stage: ProfiledStage = "pretrain"
    tuned: bool = False

    def prepare(self) -> tuple[float, Callable[[], None]]:
        """The loss of fresh weights and a step of one clip: forward, backward, AdamW.

        The learning rate is small, so that the weights remain close to their initialization. The model of
        transformers has the fused optimizer of everest, so that only models are compared. The optimizer of
        the plain implementation is a loop.
        """
        if self.tuned:
            keep_freed_memory(TRAINER_KEPT_BYTES)
        model, clips = self._model()
        run = self._micro_batch(model)
        optimizer = _looped(model) if self.code == "plain" else _fused(model)

        def step() -> None:
            run(clips).backward()
            optimizer.step()
            optimizer.zero_grad()

        with torch.no_grad():
            return run(clips).item(), step

    def _model(self) -> tuple[nn.Module, Tensor]:
        everest_model = Case(self.recipe, self.stage, (f"model.backbone={self.backbone}",)).build()
        model = transformers_videomae(self.backbone) if self.code == "transformers" else everest_model
        return model, clips_for(everest_model, 1)

    def _micro_batch(self, model: nn.Module) -> Pass:
        passes = {"ours": our_pass, "plain": plain_pass, "transformers": transformers_pass}
        return passes[self.code](model, DTYPES[self.dtype])


def _fused(model: nn.Module) -> torch.optim.AdamW:
    groups = parameter_groups(model, weight_decay=0.05)
    optimizer = make_optimizer(groups, betas=(0.9, 0.95))
    set_lr(optimizer, 1e-8)
    return optimizer


def _looped(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-8, weight_decay=0.05, foreach=False, fused=False)


def step_times(contenders: Mapping[str, Contender], *, rounds: int) -> dict[str, Times]:
    """CPU seconds of one thread for a step of each, in turns.

    Raises:
        SystemExit: everest and the plain implementation have different losses, so a step is wrong.
    """
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            for name in contenders
        }
        prepared = {name: pools[name].submit(_prepare, one) for name, one in contenders.items()}
        _check(contenders, {name: loss.result() for name, loss in prepared.items()})
        return in_turns({name: partial(_seconds_in, pool) for name, pool in pools.items()}, rounds=rounds)


_step: list[Callable[[], None]] = []  # of the contender of this process


def _prepare(contender: Contender) -> float:
    """Make the step of this process. Returns its first loss."""
    torch.set_num_threads(1)
    loss, step = contender.prepare()
    _step.append(step)
    return loss


def _seconds() -> float:
    began = time.process_time()
    _step[0]()
    return time.process_time() - began


def _seconds_in(pool: ProcessPoolExecutor, number: int) -> float:
    return pool.submit(_seconds).result()


def _check(contenders: Mapping[str, Contender], losses: Mapping[str, float]) -> None:
    """The everest and plain contenders of one recipe have the same loss, within their precision."""
    by_recipe: dict[str, list[str]] = {}
    for name, one in contenders.items():
        if one.code != "transformers":
            by_recipe.setdefault(one.recipe, []).append(name)
    for first, *others in by_recipe.values():
        for name in others:
            lower = "bf16" in (contenders[first].dtype, contenders[name].dtype)
            if abs(losses[name] - losses[first]) > (1e-2 if lower else 1e-5) * abs(losses[first]):
                raise SystemExit(f"the losses differ: {first} {losses[first]}, {name} {losses[name]}")


def contender(name: str, task: ProfiledStage, backbone: str, dtype: str) -> Contender:
    """The implementation that a name of `PAIRS` stands for."""
    code = name.partition(",")[0].partition(" ")[0]
    return Contender(
        code="ours" if code in ("everest", "VideoMAE") else "plain" if code == "plain" else "transformers",
        recipe="videomae-k400" if code in ("VideoMAE", "transformers") else "k400",
        tuned=code in ("everest", "VideoMAE") or name.endswith("tuned"),
        **{"stage": task, "backbone": backbone, "dtype": "fp32" if name.endswith("fp32") else dtype},
    )


def rows_of(task: ProfiledStage, backbone: str, dtype: str, rounds: int) -> Iterator[dict[str, Any]]:
    pairs = [pair for pair in PAIRS[task] if pair[1] != "plain fp32" or dtype != "fp32"]
    used = dict.fromkeys(name for _, *both in pairs for name in both)
    times = step_times({name: contender(name, task, backbone, dtype) for name in used}, rounds=rounds)
    for name, slow, fast in pairs:
        goal = GOALS[name].get((backbone, dtype))
        speedup = ratio(times[slow], times[fast])
        print(name, backbone, dtype, speedup, file=sys.stderr)
        yield {
            **{"compared": name, "backbone": backbone, "dtype": dtype, "rounds": rounds, **speedup},
            "seconds": {part: round(times[part].median, 3) for part in (slow, fast)},
            **{"goal": goal, "met": None if goal is None else speedup["ratio"] >= goal},
        }


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows and the rows of earlier runs, in the order of GOALS; obsolete comparisons are dropped."""
    names = list(GOALS)
    together = with_earlier("train_step", rows, key=("compared", "backbone", "dtype"))
    return sorted(
        (row for row in together if row["compared"] in names),
        key=lambda row: (row["machine"]["cpu"], names.index(row["compared"]), row["backbone"], row["dtype"]),
    )


def table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']}: {'met' if row['met'] else 'missed'}"
        slow, fast = row["seconds"].values()
        compared = row["compared"].replace(" v ", " vs. ")
        name = f"{compared}, {row['backbone'].upper().replace('VIT', 'ViT')} {row['dtype']}"
        faster = f"**{row['ratio']:.2f}x** ({row['low']:.2f}-{row['high']:.2f})"
        cells.append([name, faster, goal, f"{slow:.2f} / {fast:.2f}"])
    head = ["step of one clip", "speedup, median (quartiles)", "goal", "CPU seconds, baseline / everest"]
    return markdown(head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=("pretrain", "finetune"))
    parser.add_argument("--backbone", choices=("vit-s", "vit-b"))
    parser.add_argument("--dtype", choices=tuple(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks: list[ProfiledStage] = [options.task] if options.task else ["pretrain", "finetune"]
    dtypes = [options.dtype] if options.dtype else list(DTYPES)
    if not torch.cpu._is_avx512_bf16_supported() and "bf16" in dtypes:
        print("this CPU does not compute bf16: left out", file=sys.stderr)
        dtypes.remove("bf16")
    rows: list[dict[str, Any]] = []
    for task, dtype in product(tasks, dtypes):
        sizes = ["vit-s"] if task == "finetune" else ["vit-s", "vit-b"]
        for backbone in [options.backbone] if options.backbone else sizes:
            rows += rows_of(task, backbone, dtype, options.rounds)
    rows = merged(rows)
    publish("train_step", rows, by_machine(rows, table))


if __name__ == "__main__":
    main()
