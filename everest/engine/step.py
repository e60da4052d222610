"""The update of the weights at the end of a step: the networks, the numbers of the step, the gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from everest.data.clip_dataset import FailedReads
from everest.engine.context import RunContext
from everest.errors import SMALLER_UPDATES, DivergedError
from everest.system.compute import HostCopy
from everest.system.files import write_text
from everest.system.private_apis import skip_update
from everest.system.run_folder import NONFINITE_FILE
from everest.system.text import json_text

if TYPE_CHECKING:  # timm takes a second to import
    from timm.utils.model_ema import ModelEmaV3

MODEL_PART: Final = "model"  # the name of a run's first network
GRAD_NORM: Final = "grad_norm"  # the key in metrics.jsonl of the norm of the model's gradient
SCALER_LIMIT: Final = (
    100  # heuristic: overflows in a row of fp16, whose scale starts too high and halves each time
)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetwork:
    """A network that learns, with its optimizer and the average of its weights."""

    module: nn.Module  # as built: not yet compiled or wrapped
    optimizer: torch.optim.Optimizer
    name: str = MODEL_PART  # begins the names of its tensors in a state
    ema: ModelEmaV3 | None = None  # with `train.ema`: averages the weights over the steps

    @property
    def evaluated(self) -> nn.Module:
        """The module that is evaluated: the average, if there is one."""
        return self.module if self.ema is None else self.ema.module

    def prefixed(self, kind: str) -> str:
        """`kind`, such as `grad_norm`, after the name of the network; for the model `kind` alone."""
        return kind if self.name == MODEL_PART else f"{self.name}_{kind}"


class MicroBatchLosses(NamedTuple):
    """The losses of one micro-batch, () each, and further scalars to log."""

    model: Tensor
    others: Sequence[Tensor] = ()  # one for each other network that is active in the step
    metrics: Mapping[str, Tensor] = {}  # by name


class StepNumbers(NamedTuple):
    """The numbers of one step, combined over all processes, on the host."""

    metrics: dict[str, float]  # means, by their names in metrics.jsonl
    any_failed: bool  # whether any process met an unreadable video
    signal: int  # a stop signal that a process received; 0: none
    is_save_due: bool  # whether the time to the next save has passed in any process


@dataclass(eq=False)
class StepRecord:
    """The numbers of one process about one step: collected on the device, sent to the host, read there."""

    index: int  # updates done before
    losses: dict[str, Tensor] = field(default_factory=dict)  # means over the micro-batches, by name
    failed: list[FailedReads] = field(default_factory=list)  # for each unreadable sample
    videos: list[str] = field(default_factory=list)
    waited: float = 0.0  # seconds of waiting for batches
    signal: int = 0  # the stop signal that this process received; 0: none
    is_save_due: bool = False  # whether the time to the next save has passed in this process
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None  # duration of the step; None: it has not ended
    names: list[str] = field(init=False)  # of the losses, the metrics and the norms
    losses_finite: Tensor = field(init=False)  # () bool on the device: whether all losses are finite
    all_finite: Tensor = field(init=False)  # () bool on the device: whether all losses and norms are finite
    _copy: HostCopy = field(init=False)  # (processes, values): the named values and three flags

    def add(self, losses: MicroBatchLosses, *, micro_batches: int) -> None:
        """Add one of the step's `micro_batches`."""
        for name, value in {"loss": losses.model, **losses.metrics}.items():
            self.losses[name] = self.losses.get(name, 0) + value.detach().float() / micro_batches

    def send(self, accelerator: Accelerator, norms: Mapping[str, Tensor]) -> None:
        """Gather the numbers of all processes, and start their copy to the host.

        Args:
            norms: of the gradients, by their names in metrics.jsonl.
        """
        self.names = [*self.losses, *norms]
        # Filled on the device: a copy of host memory would wait for it.
        flags = (len(self.failed), self.signal, self.is_save_due)
        filled = (self.losses["loss"].new_full((), float(flag)) for flag in flags)
        values = torch.stack([*self.losses.values(), *norms.values(), *filled])
        gathered = accelerator.gather(values)
        assert isinstance(gathered, Tensor)
        by_process = gathered.view(-1, len(values))  # (processes, values)
        finite = by_process.isfinite()
        self._copy = HostCopy({"numbers": by_process})
        self.losses_finite = finite[:, : len(self.losses)].all()
        self.all_finite = finite[:, : len(self.names)].all()

    def read(self) -> StepNumbers:
        """Wait for the numbers, and combine those of all processes."""
        *metrics, failed, signals, due = self._copy.read()["numbers"].double().T.tolist()
        means = {name: sum(values) / len(values) for name, values in zip(self.names, metrics, strict=True)}
        return StepNumbers(means, any(failed), int(max(signals)), any(due))


@dataclass(eq=False)
class UpdateGuard:
    """Leaves out updates whose losses or gradients are not finite, and ends the run.

    The device decides whether to leave out an update (`skips`), and the host judges the same numbers a step
    later (`check`); until then the device leaves out all updates. With fp16, an overflow of the gradient is
    part of finding the scale: only that update is left out.
    """

    scaled: bool  # fp16
    skipped: int = 0  # updates left out in a row
    ended: Tensor | bool = False  # () bool on the device: whether an update has ended the run

    def skips(self, record: StepRecord) -> Tensor:
        """Whether the update with these numbers is left out: 0 or 1, () float32 on the device."""
        self.ended = ~(record.losses_finite if self.scaled else record.all_finite) | self.ended
        return (~record.all_finite | self.ended).float()

    def goes_on(self, metrics: Mapping[str, float]) -> bool:
        """Whether the run goes on after an update with these numbers, by their names in metrics.jsonl."""
        broken = {name for name, value in metrics.items() if not math.isfinite(value)}
        self.skipped = self.skipped + 1 if broken else 0
        is_overflow = self.scaled and broken == {GRAD_NORM}
        return not broken or (is_overflow and self.skipped <= SCALER_LIMIT)

    def check(
        self, record: StepRecord, metrics: Mapping[str, float], context: RunContext, *, steps: int
    ) -> None:
        """Raise DivergedError if an update ends the run, which has `steps`; a file names its videos."""
        if self.goes_on(metrics) and self.skipped < steps:  # else no update of the run was applied
            return
        shown = {name for name, value in metrics.items() if not math.isfinite(value)} | {"loss", GRAD_NORM}
        text = ", ".join(f"{name} {value}" for name, value in metrics.items() if name in shown)
        text += f", {self.skipped} times in a row" if self.skipped > 1 else ""
        step, file = record.index + 1, context.run_folder.path / NONFINITE_FILE
        videos = sorted(gather_object(record.videos))
        if context.accelerator.is_main_process:
            as_text = {name: str(value) for name, value in metrics.items()}
            write_text(file, json_text({"step": step, **as_text, "videos": videos}, indent=2))
        raise DivergedError(f"step {step}: {text}; see {file} for its videos; {SMALLER_UPDATES}")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times the `lr_scale` of the group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def update_networks(
    accelerator: Accelerator,
    networks: Sequence[TrainedNetwork],
    record: StepRecord,
    guard: UpdateGuard,
    *,
    clip_grad: float | None,
) -> None:
    """Clip the gradients, send the numbers of the step, and update the weights of all networks.

    The numbers, of all processes, decide on the device whether the update is skipped.
    """
    norms = clip_gradients(accelerator, networks, clip_grad)
    record.send(accelerator, norms)
    step_optimizers(accelerator, networks, skipped=guard.skips(record))


def clip_gradients(
    accelerator: Accelerator, networks: Sequence[TrainedNetwork], max_norm: float | None
) -> dict[str, Tensor]:
    """Unscale (fp16), average and measure gradients, and scale them down to the norm `max_norm`, if given.

    Args:
        networks: the model first, whose gradients Accelerate averages over the processes; those of the
            others are averaged here, once a step.
    Returns:
        The norms before clipping, () on the device and over all processes, by their names in metrics.jsonl;
        a network that is not active in this step has none.
    """
    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(networks[0].optimizer)
    norms = {}
    for index, network in enumerate(networks):
        gradients = [p.grad for p in network.module.parameters() if p.grad is not None]
        if not gradients:
            continue
        if index > 0:
            mean = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
            assert isinstance(mean, Tensor)
            means = mean.split([gradient.numel() for gradient in gradients])
            for gradient, own_mean in zip(gradients, means, strict=True):
                gradient.copy_(own_mean.view_as(gradient))
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(network.module.parameters(), max_norm, norm)
        norms[network.prefixed(GRAD_NORM)] = norm
    return norms


@torch.no_grad()
def step_optimizers(accelerator: Accelerator, networks: Sequence[TrainedNetwork], *, skipped: Tensor) -> None:
    """Update the weights of all networks by their gradients, then drop the gradients.

    The device itself skips an update, so the host need not wait for the numbers that decide about it.

    Args:
        skipped: () float32 on the device: 1 skips the update, also of the averaged weights; else 0.
    """
    for network in networks:
        skip_update(network.optimizer, skipped)  # `clip_gradients` has unscaled the gradients
        network.optimizer.step()
        network.optimizer.zero_grad()
        if network.ema is not None:  # timm's own update cannot be skipped without a wait
            # Buffers are constants.
            fraction = (1 - network.ema.decay) * (1 - skipped)
            for average, weight in zip(
                network.ema.module.parameters(), network.module.parameters(), strict=True
            ):
                average.lerp_(weight, fraction)
    if accelerator.scaler is not None:
        accelerator.scaler.update()  # fp16 halves its scale after an overflow
