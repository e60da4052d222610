"""Steps on one GPU: clips/s, fraction of its peak, memory; against everest's VideoMAE and the plain step.

    python benchmarks/gpu_step.py [--seconds 5] [--peak 790] [--only NAME,…]

A batch of random clips, bf16, forward, backward and fused AdamW. Before anything is timed it is checked that
the step is one graph, waits nowhere for the device, and takes flash attention; a step that is compiled again
while it is timed ends the benchmark. `--device cpu` runs tiny models once, to see that the script works.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from measuring import markdown, publish
from plain_step import pretraining_loss
from saved import gflop, without_numbers
from steps import Case, clips_for, our_pass
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from everest.models.mae import MaskedAutoencoder
from everest.train.optim import make_optimizer, parameter_groups
from everest.video.pixels import normalize

WARM_UP = 5  # steps: compilation, choice of kernels
GOALS = {  # ratio of one row to another, at least
    "EVEREST ViT-S against our VideoMAE": ("everest-s", "videomae-s", 2.0),
    "EVEREST ViT-B against our VideoMAE": ("everest-b", "videomae-b", 1.8),
    "EVEREST ViT-L against our VideoMAE": ("everest-l", "videomae-l", 1.4),
    "EVEREST ViT-B against the plain VideoMAE": ("everest-b", "plain-videomae-b", 2.2),
}
MFU_GOALS = {"everest-s": 0.20, "everest-b": 0.40}
MEMORY_GOALS = {  # per clip, at most: without weights and optimizer, with bf16 copies of the weights (5 MB)
    "memory of EVEREST ViT-L against our VideoMAE": ("everest-l", "videomae-l", 0.66),
    "memory of EVEREST ViT-L against the plain VideoMAE": ("everest-l", "plain-videomae-l", 0.30),
}


@dataclass(frozen=True)
class Step:
    """A model and how its step is run."""

    name: str
    recipe: str
    backbone: str
    batch: int
    plain: bool = False
    mode: str | None = "default"  # of torch.compile; None: not compiled


def steps() -> Iterator[Step]:
    for letter, batch in (("s", 256), ("b", 128), ("l", 128)):
        for method, recipe in (("everest", "k400"), ("videomae", "videomae-k400")):
            yield Step(f"{method}-{letter}", recipe, f"vit-{letter}", batch)
    yield Step("everest-s-graphs", "k400", "vit-s", 256, mode="reduce-overhead")
    yield Step("everest-b-eager", "k400", "vit-b", 128, mode=None)
    yield Step("everest-b-1024", "k400", "vit-b", 1024)
    for letter, batch in (("b", 128), ("l", 128)):
        yield Step(f"plain-videomae-{letter}", "videomae-k400", f"vit-{letter}", batch, plain=True, mode=None)


def build(step: Step, device: torch.device) -> MaskedAutoencoder:
    small = () if device.type == "cuda" else ("data.size=64", "data.frames=4", "model.depth=2")
    model = Case(step.recipe, "pretrain", (f"model.backbone={step.backbone}", *small)).build()
    assert isinstance(model, MaskedAutoencoder)
    return model.to(device)


def loss_of(step: Step, model: MaskedAutoencoder) -> Callable[[Tensor, Tensor], Tensor]:
    """Bytes (B, 3, T, H, W) and noise (B, N) to the loss."""
    if step.plain:
        return lambda clips, noise: pretraining_loss(model, normalize(clips), noise)

    def run(clips: Tensor, noise: Tensor) -> Tensor:
        return model(normalize(clips), noise=noise).loss

    return run if step.mode is None else torch.compile(run, fullgraph=True, dynamic=False, mode=step.mode)


def measure(step: Step, device: torch.device, seconds: float, peak: float) -> dict[str, Any]:
    """Clips/s, TFLOP/s, fraction of the peak, memory."""
    torch.manual_seed(0)
    model = build(step, device)
    batch = step.batch if device.type == "cuda" else 2
    shape = (batch, *clips_for(model, 1).shape[1:])
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    noise = torch.rand(batch, model.encoder.grid.num_tokens, device=device)
    groups = parameter_groups(model, weight_decay=0.05)
    optimizer, loss = make_optimizer(groups, betas=(0.9, 0.95)), loss_of(step, model)

    def one() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(clips, noise)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(WARM_UP):
        one()
    _wait(device)
    resting = 0
    if device.type == "cuda":
        resting = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    if not step.plain:
        _without_waiting(device, one)
    with torch.compiler.set_stance("default" if step.mode is None else "fail_on_recompile"):
        speed = batch * _steps_per_second(one, device, seconds)
    peak_memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    with without_numbers(model.cpu()):  # where the clips are that are counted
        flop = gflop(our_pass(model, torch.float32), clips_for(model, 1))
    return {
        **{"case": step.name, "batch": batch, "mode": step.mode, "clips_per_second": speed},
        **{"gflop_per_clip": flop, "tflops": speed * flop / 1e3, "mfu": speed * flop / 1e3 / peak},
        **{"peak_memory_bytes": peak_memory, "memory_bytes_per_clip": (peak_memory - resting) / batch},
    }


def _steps_per_second(one: Callable[[], None], device: torch.device, seconds: float) -> float:
    done, began = 0, time.perf_counter()
    while done < 3 or time.perf_counter() - began < seconds:
        one()
        done += 1
        if done % 10 == 0:  # otherwise only the time for submitting work is measured
            _wait(device)
    _wait(device)
    return done / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _without_waiting(device: torch.device, one: Callable[[], None]) -> None:
    """A step that would wait for the device ends the benchmark with torch's error."""
    if device.type != "cuda":
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        one()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_flash(device: torch.device) -> None:
    """Attention with the shapes of a step and the flash kernel only; raises if it is not available."""
    q = torch.randn(2, 12, 470, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()


@torch.no_grad()
def overlap_of_selections(device: torch.device) -> float:
    """Share of the kept tokens that are the same under bf16 as in float32."""
    model = build(Step("", "k400", "vit-b", 8), device)
    clips = torch.rand(8, *clips_for(model, 1).shape[1:], device=device)
    noise = torch.rand(8, model.encoder.grid.num_tokens, device=device)
    chosen = []
    for enabled in (False, True):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            found = model.select(normalize((clips * 255).byte()), noise)
        chosen.append([set(torch.cat(ids).tolist()) for ids in zip(found.visible, found.target, strict=True)])
    return sum(len(a & b) / len(a) for a, b in zip(*chosen, strict=True)) / len(chosen[0])


def goals(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    checks = []
    for goals_of, key, better in (
        (GOALS, "clips_per_second", lambda share, goal: share >= goal),
        (MEMORY_GOALS, "memory_bytes_per_clip", lambda share, goal: share <= goal),
    ):
        for case, (one, other, goal) in goals_of.items():
            if one in rows and other in rows and rows[other][key]:
                share = rows[one][key] / rows[other][key]
                checks.append({"case": case, "share": share, "goal": goal, "met": better(share, goal)})
    for name, goal in MFU_GOALS.items():
        if name in rows:
            mfu = rows[name]["mfu"]
            checks.append(
                {"case": f"share of the peak, {name}", "share": mfu, "goal": goal, "met": mfu >= goal}
            )
    return checks


def table(rows: list[dict[str, Any]], checks: list[dict[str, Any]]) -> str:
    head = ["step in bf16", "batch", "compile mode", "clips/s", "TFLOP/s", "fraction of peak"]
    head += ["peak memory (GB)", "memory per clip (MB)"]
    cells = [
        [
            *(row["case"], str(row["batch"]), str(row["mode"]), f"{row['clips_per_second']:.0f}"),
            *(f"{row['tflops']:.0f}", f"{row['mfu']:.1%}"),
            *(f"{row['peak_memory_bytes'] / 1e9:.1f}", f"{row['memory_bytes_per_clip'] / 1e6:.0f}"),
        ]
        for row in rows
    ]
    lines = []
    for check in checks:
        met = "met" if check["met"] else "missed"
        lines.append(f"- {check['case']}: {check['share']:.2f}, goal {check['goal']}: {met}")
    return "\n".join([markdown(head, cells), "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s that large bf16 products reach")
    parser.add_argument("--only", help="names of steps, with commas")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        check_flash(device)
    wanted = options.only.split(",") if options.only else [step.name for step in steps()]
    rows = []
    for step in steps():
        if step.name in wanted:
            rows.append(measure(step, device, options.seconds, options.peak))
            print(rows[-1], file=sys.stderr, flush=True)
            torch._dynamo.reset()
    same = overlap_of_selections(device)
    checks = goals({row["case"]: row for row in rows})
    checks.append({"case": "kept tokens equal in bf16", "share": same, "goal": 0.99, "met": same >= 0.99})
    if device.type == "cuda":
        publish("gpu_step", [*rows, *checks], table(rows, checks))
    else:
        print(table(rows, checks))


if __name__ == "__main__":
    main()
