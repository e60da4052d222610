"""The training steps that are measured on a GPU, by method, model, batch and kind of compilation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import plain_step
import torch
from gpu_rows import Row, Rows, joules, peak_tflops, timed
from steps import transformers_videomae
from torch import Tensor, nn
from torch._dynamo.utils import counters
from training_step import Loss, TrainingStep, peak_bytes

from everest.data.clip_dataset import Batch
from everest.models.mae import MaskedAutoencoder
from everest.video.pixels import normalize

WARM_UP = 3  # steps: compilation, choice of kernels, moments of AdamW
EVEREST, VIDEOMAE, VIEWS = "k400", "videomae-k400", "views"

# Forward and backward pass of one clip, counted on shapes (benchmarks/steps.py, PyTorch 2.15); for ViT-S and
# ViT-B also in benchmarks/performance.md.
GFLOP = {
    (EVEREST, "vit-s"): 30.9,
    (EVEREST, "vit-b"): 110.9,
    (EVEREST, "vit-l"): 337.1,
    (VIDEOMAE, "vit-s"): 67.0,
    (VIDEOMAE, "vit-b"): 207.6,
    (VIDEOMAE, "vit-l"): 491.4,
    (VIEWS, "vit-b"): 332.2,  # a view of a quarter of the tokens, and the still frame of the camera task
}


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """A model, how its step runs, and its batches in ascending order.

    Args:
        code: whose model it is; the update is everest's for all.
        compiled: `train.compile`.
        needs: seconds for all batches, as far as they can be estimated.
    """

    name: str
    recipe: str
    backbone: str
    batches: tuple[int, ...]
    code: Literal["everest", "plain", "transformers"] = "everest"
    compiled: Literal["no", "blocks", "whole"] = "no"
    overrides: tuple[str, ...] = ()
    needs: float = 30.0

    def build(self) -> TrainingStep:
        train_compile = {"blocks": "auto", "whole": "true"}.get(self.compiled, "false")
        overrides = [f"model.backbone={self.backbone}", f"train.compile={train_compile}", *self.overrides]
        model = transformers_videomae(self.backbone) if self.code == "transformers" else None
        step = TrainingStep(self.recipe, overrides, model=model)
        if self.code == "plain":
            step.loss = _plain_loss(step)
        elif self.code == "transformers":
            step.loss = _transformers_loss(step)
        return step


def _plain_loss(step: TrainingStep) -> Loss:
    def loss(clips: Batch) -> Tensor:
        assert isinstance(step.model, MaskedAutoencoder)
        with step.accelerator.autocast():
            frames = normalize(clips.frames.flatten(0, 1))
            return plain_step.pretraining_loss(step.model, frames, clips.noise.flatten(0, 1))

    return loss


def _transformers_loss(step: TrainingStep) -> Loss:
    """With VideoMAE's tube of 90 %."""
    masked = torch.ones(196, dtype=torch.bool)
    masked[torch.randperm(196)[:20]] = False
    masked = masked.repeat(8).to(step.device)

    def loss(clips: Batch) -> Tensor:
        frames = normalize(clips.frames.flatten(0, 1)).transpose(1, 2)  # (B, T, 3, H, W)
        with step.accelerator.autocast():
            return step.model(frames, bool_masked_pos=masked.expand(frames.size(0), -1)).loss

    return loss


def measure(case: StepCase, *, seconds: float) -> Iterator[Row]:
    """A row for each batch: times, the fraction of the peak, memory, energy, and what torch compiled.

    The memory of a clip is the growth of the peak since the batch before: weights and gradients drop out.
    """
    counters.clear()
    began = time.perf_counter()
    step = case.build()
    less: tuple[int, int] | None = None  # the batch before, and its peak without what rests
    for batch in case.batches:
        clips = step.clips(batch, random=True)
        loss = step.run(clips).item()
        first = time.perf_counter() - began
        for _ in range(WARM_UP):
            step.run(clips)
        peak, moving = peak_bytes(step, clips)
        waits = _waits(step, clips)
        torch.cuda.synchronize()
        before = joules()
        stance = "default" if case.compiled == "no" else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            times = timed(lambda clips=clips: step.run(clips), seconds=seconds, warm_up=0)
        after = joules()
        used = None if before is None or after is None else (after - before) / times["calls"] / batch
        tflops = batch * GFLOP[case.recipe, case.backbone] / times["ms"]
        yield {
            **{"case": case.name, "batch": batch, "compiled": case.compiled, "loss": loss, "waits": waits},
            **{"first_seconds": first, **times, "clips_per_second": batch / times["ms"] * 1e3},
            **{"tflops": tflops, "mfu": tflops / peak_tflops(), "joules_per_clip": used},
            **{"peak_memory_bytes": peak, "reserved_bytes": torch.cuda.memory_reserved()},
            "memory_bytes_per_clip": (moving - less[1]) / (batch - less[0]) if less else None,
            "graphs": counters["stats"]["unique_graphs"],
            "graph_breaks": sum(counters["graph_break"].values()),
        }
        less = (batch, moving)
        del clips
        began = time.perf_counter()


def _waits(step: TrainingStep, clips: Batch) -> str | None:
    """Why the host waits for the device in a step, or None."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run(clips)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        step.model.zero_grad()
        return str(error)[:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def gradients(step: TrainingStep, clips: Batch) -> tuple[float, Tensor]:
    """The loss of a batch, and all gradients in one vector."""
    loss = step.loss(clips)
    step.accelerator.backward(loss)
    found = [p.grad.flatten() for p in nn.Module.parameters(step.model) if p.grad is not None]
    return loss.item(), torch.cat(found)


def _case(name: str, recipe: str, size: str, *batches: int, **options: Any) -> StepCase:
    return StepCase(name=name, recipe=recipe, backbone=f"vit-{size}", batches=batches, **options)


EAGER = (
    _case("everest-b", EVEREST, "b", 64, 128, 256, 512, needs=40),
    _case("everest-s", EVEREST, "s", 128, 256),
    _case("everest-l", EVEREST, "l", 64, 128),
    _case("videomae-b", VIDEOMAE, "b", 64, 128, 256),
    _case("videomae-s", VIDEOMAE, "s", 128, 256),
    _case("views-b", VIEWS, "b", 64, 128, 256),
    _case("videomae-l", VIDEOMAE, "l", 64, 128),
    _case("everest-b-checkpointing", EVEREST, "b", 128, 256, overrides=("train.checkpointing=true",)),
    _case("plain-everest-b", EVEREST, "b", 64, 128, code="plain"),
    _case("plain-videomae-b", VIDEOMAE, "b", 32, 64, code="plain"),
    _case("plain-videomae-l", VIDEOMAE, "l", 32, 64, code="plain"),
    _case("transformers-videomae-b", VIDEOMAE, "b", 32, 64, code="transformers"),
)
COMPILED = (
    _case("blocks-everest-b", EVEREST, "b", 128, 256, 1024, compiled="blocks", needs=110),
    _case("whole-everest-b", EVEREST, "b", 256, compiled="whole", needs=150),
    _case("blocks-everest-s", EVEREST, "s", 256, compiled="blocks", needs=50),
    _case("blocks-views-b", VIEWS, "b", 256, compiled="blocks", needs=60),
    _case("blocks-videomae-b", VIDEOMAE, "b", 256, compiled="blocks", needs=50),
    _case("blocks-everest-l", EVEREST, "l", 256, compiled="blocks", needs=60),
)


def measure_steps(rows: Rows, cases: tuple[StepCase, ...], seconds: float) -> None:
    """Write the rows of the cases; an error, such as too little memory, ends the batches of its case."""
    for case in cases:
        rows.run(f"step {case.name}", partial(measure, case, seconds=seconds), needs=case.needs)
