"""CPU time of a whole training step of one clip: forward, backward and update.

    python benchmarks/train_step.py                    # all of them, merged into the results
    python benchmarks/train_step.py --backbone vit-b --dtype bf16 --rounds 9
    python benchmarks/train_step.py --task finetune

Ours against the plain formulation on the same weights, and against the VideoMAE of transformers; one thread,
CPU seconds of this process, in turns. The losses of both formulations are compared first. Noise as clips: the
work does not depend on the pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from measuring import HERE, Times, alternate, markdown, publish, ratio, shown
from steps import Case, Pass, clips_for, our_pass, plain_pass, transformers_pass, transformers_videomae
from torch import Tensor, nn

from everest.models.mae import MaskedAutoencoder
from everest.optim import make_optimizer, parameter_groups, set_lr
from everest.selection import RedundancyRobust, Selector, Tube

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of what is compared: (backbone, precision) to the least ratio.
GOALS: dict[str, dict[tuple[str, str], float]] = {
    "EVEREST v plain": {("vit-s", "fp32"): 1.25, ("vit-b", "fp32"): 1.2, ("vit-s", "bf16"): 1.25}
    | {("vit-b", "bf16"): 1.2},
    "EVEREST v plain in fp32": {("vit-s", "bf16"): 2.5, ("vit-b", "bf16"): 2.7},
    "VideoMAE v transformers": {("vit-s", "fp32"): 1.07, ("vit-b", "fp32"): 1.15}
    | {("vit-s", "bf16"): 1.2, ("vit-b", "bf16"): 1.2},
    "EVEREST v transformers' VideoMAE": {("vit-b", "fp32"): 2.0, ("vit-b", "bf16"): 2.0},
    "fine-tuning v plain": {("vit-s", "fp32"): 1.15},
    "fine-tuning v plain in fp32": {("vit-s", "bf16"): 2.1},
}
Pairs = tuple[tuple[str, str, str], ...]  # what is compared: its name, the slow contender, the fast one


def step_of(run: Pass, clips: Tensor, optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
    """One step; a small learning rate, so that the weights stay those of a beginning."""

    def step(number: int) -> None:
        run(clips).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours_optimizer(model: nn.Module) -> torch.optim.AdamW:
    groups = parameter_groups(model.named_parameters(), depth=12, weight_decay=0.05)
    optimizer = make_optimizer(groups, betas=(0.9, 0.95))
    set_lr(optimizer, 1e-8)
    return optimizer


def plain_optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-8, weight_decay=0.05, foreach=False, fused=False)


def with_selector(model: MaskedAutoencoder, selector: Selector, run: Pass) -> Pass:
    def selected(clips: Tensor) -> Tensor:
        model.selector = selector
        return run(clips)

    return selected


def check_losses(ours: Pass, plain: Pass, clips: Tensor) -> None:
    with torch.no_grad():
        one, two = ours(clips).item(), plain(clips).item()
    if abs(one - two) > 1e-5 * abs(two):
        raise SystemExit(f"the losses differ: {one} and {two}")


def pretraining(backbone: str, dtype: str, rounds: int) -> tuple[dict[str, Times], Pairs]:
    """EVEREST ours and plain, VideoMAE ours and of transformers."""
    model = Case("k400", "pretrain", (f"model.backbone={backbone}",)).build()
    assert isinstance(model, MaskedAutoencoder)
    theirs, clips = transformers_videomae(backbone), clips_for(model, 1)
    fused, looped, kind = ours_optimizer(model), plain_optimizer(model), DTYPES[dtype]
    everest, tube = RedundancyRobust(), Tube()
    check_losses(our_pass(model, torch.float32), plain_pass(model, torch.float32), clips)
    contenders = {
        "EVEREST": step_of(with_selector(model, everest, our_pass(model, kind)), clips, fused),
        "plain": step_of(with_selector(model, everest, plain_pass(model, kind)), clips, looped),
        "VideoMAE": step_of(with_selector(model, tube, our_pass(model, kind)), clips, fused),
        # With our optimiser: what is compared is the model.
        "transformers": step_of(transformers_pass(theirs, kind), clips, ours_optimizer(theirs)),
    }
    pairs: Pairs = (
        ("EVEREST v plain", "plain", "EVEREST"),
        ("VideoMAE v transformers", "transformers", "VideoMAE"),
        ("EVEREST v transformers' VideoMAE", "transformers", "EVEREST"),
    )
    if dtype != "fp32":
        run = with_selector(model, everest, plain_pass(model, torch.float32))
        contenders["plain fp32"] = step_of(run, clips, looped)
        pairs += (("EVEREST v plain in fp32", "plain fp32", "EVEREST"),)
    return alternate(contenders, rounds=rounds), pairs


def finetuning(backbone: str, dtype: str, rounds: int) -> tuple[dict[str, Times], Pairs]:
    """Keeping 60 % of the tokens, ours and plain."""
    model = Case("k400", "finetune", (f"model.backbone={backbone}",)).build()
    clips, kind = clips_for(model, 1), DTYPES[dtype]
    fused, looped = ours_optimizer(model), plain_optimizer(model)
    check_losses(our_pass(model, torch.float32), plain_pass(model, torch.float32), clips)
    contenders = {
        "ours": step_of(our_pass(model, kind), clips, fused),
        "plain": step_of(plain_pass(model, kind), clips, looped),
    }
    pairs: Pairs = (("fine-tuning v plain", "plain", "ours"),)
    if dtype != "fp32":
        contenders["plain fp32"] = step_of(plain_pass(model, torch.float32), clips, looped)
        pairs += (("fine-tuning v plain in fp32", "plain fp32", "ours"),)
    return alternate(contenders, rounds=rounds), pairs


def rows_of(task: str, backbone: str, dtype: str, rounds: int) -> Iterator[dict[str, Any]]:
    times, pairs = (pretraining if task == "pretrain" else finetuning)(backbone, dtype, rounds)
    for name, slow, fast in pairs:
        goal = GOALS[name].get((backbone, dtype))
        told = ratio(times[slow], times[fast])
        yield {
            **{"compared": name, "backbone": backbone, "dtype": dtype, "rounds": rounds, **told},
            "seconds": {part: round(times[part].median, 3) for part in (slow, fast)},
            **{"goal": goal, "met": goal is None or told["ratio"] >= goal},
        }


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows beside those of earlier runs, which they replace."""
    path = HERE / "results" / "train_step.json"
    earlier = json.loads(path.read_text())["rows"] if path.is_file() else []
    by_key = {(row["compared"], row["backbone"], row["dtype"]): row for row in [*earlier, *rows]}
    names = list(GOALS)
    return sorted(
        by_key.values(), key=lambda row: (names.index(row["compared"]), row["backbone"], row["dtype"])
    )


def table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        goal = "" if row["goal"] is None else f"{row['goal']}: {'met' if row['met'] else 'missed'}"
        slow, fast = row["seconds"].values()
        name = f"{row['compared']}, {row['backbone'].upper().replace('VIT', 'ViT')} {row['dtype']}"
        cells.append([name, shown(row), goal, f"{slow:.2f} / {fast:.2f}"])
    return markdown(["a step of one clip", "faster", "goal", "CPU seconds"], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=("pretrain", "finetune"))
    parser.add_argument("--backbone", choices=("vit-s", "vit-b"))
    parser.add_argument("--dtype", choices=tuple(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [asked.task] if asked.task else ["pretrain", "finetune"]
    dtypes = [asked.dtype] if asked.dtype else list(DTYPES)
    if not torch.cpu._is_avx512_bf16_supported() and "bf16" in dtypes:
        print("this CPU does not compute bf16: left out", file=sys.stderr)
        dtypes.remove("bf16")
    rows: list[dict[str, Any]] = []
    for task, dtype in product(tasks, dtypes):
        sizes = ["vit-s"] if task == "finetune" else ["vit-s", "vit-b"]
        for backbone in [asked.backbone] if asked.backbone else sizes:
            rows += rows_of(task, backbone, dtype, asked.rounds)
            print(rows[-1], file=sys.stderr)
    rows = merged(rows)
    publish("train_step", rows, table(rows))


if __name__ == "__main__":
    main()
