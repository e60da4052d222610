"""One update of the weights: learning rates, passes, gradients, AdamW; its numbers are read later.

for batch in step.batches():
    step.backward([loss])
rows = step.update()
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from everest.data.clips import Batch, Tries
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.engine.network import GRAD_NORM, Network
from everest.system.compute import HostCopy
from everest.system.run_folder import Row
from everest.system.weights import full_tensor

if TYPE_CHECKING:
    from everest.engine.training import Training


class Step:
    """An update of the weights by the mean of the gradients of its passes, on all processes.

    Random choices follow from the seed, the step, the process and the pass, so that a resumed run is
    identical, and no generator is saved.

    Args:
        clips: of each pass of this process.
    Attributes:
        number: updates done before, over all resumes.
    """

    def __init__(self, training: Training, clips: Iterator[Batch]) -> None:
        self.number = training.steps_done
        self._training = training
        self._clips = clips
        self._pass = 0  # the current one
        self._record = StepRecord(number=self.number)
        # A warm-up begins at 0: its first step fills the moments of AdamW and changes no weight.
        for network in training.networks:
            set_lr(network.optimizer, training.plan.lr(self.number))

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield the clips of each pass from `first` on, on the device; forward and backward go inside.

        Processes exchange gradients in the last pass only. Raises Stopped if a signal comes while clips are
        awaited.
        """
        training, plan = self._training, self._training.plan
        seed, rank, device = training.settings.seed, training.rank, training.accelerator.device
        # Dropped paths of the whole step, (P, batch): the same on any number of processes.
        generator = torch.Generator(device).manual_seed(seed_at(seed, Purpose.DROP_PATH, self.number))
        uniform = torch.rand(len(training.drop_paths), plan.batch_size, device=device, generator=generator)
        for number in range(first, plan.accumulation):
            self._pass = number
            started = time.monotonic()
            batch = next(self._clips)
            self._record.waited += time.monotonic() - started
            self._record.failed += filter(None, batch.failed)
            self._record.videos += batch.video_ids
            batch = training.to_device(batch)
            # Dropout uses torch's global generator.
            torch.manual_seed(seed_at(seed, Purpose.STEP, self.number, rank, number))
            start = (rank * plan.accumulation + number) * plan.micro_batch
            for path, noise in zip(training.drop_paths, uniform, strict=True):
                path.noise = noise[start : start + plan.micro_batch]
            is_last, module = number == plan.accumulation - 1, training.networks[0].module
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(is_last)
            with nullcontext() if is_last else training.accelerator.no_sync(training.model):
                yield batch
        for path in training.drop_paths:
            path.noise = None

    def rng(self) -> np.random.Generator:
        """A generator to pair or perturb the clips of the current pass."""
        training = self._training
        return generator_at(training.settings.seed, Purpose.BATCH, self.number, training.rank, self._pass)

    def backward(self, losses: Sequence[Tensor], parts: Mapping[str, Tensor] | None = None) -> None:
        """Add the gradients of one pass, in float32.

        Args:
            losses: the model's, then one for each other network that is active in the step.
            parts: further scalars of the pass to log, by name.
        """
        passes = self._training.plan.accumulation
        self._record.add(losses[0], parts or {}, passes=passes)
        self._training.accelerator.backward(losses[0] / passes)
        for loss in losses[1:]:
            (loss / passes).backward()

    def apply_gradients(self) -> None:
        """Clip the gradients of each network to `train.clip_grad`, and update its weights.

        An update is left out whose losses or gradient norms are not finite: the device decides, without the
        host. With `train.nonfinite: stop` all later ones are left out, too: the host learns of the first a
        step late, and ends the run.
        """
        training, accelerator, record = self._training, self._training.accelerator, self._record
        norms = clip_gradients(accelerator, training.networks, training.settings.clip_grad)
        record.signal, record.is_save_due = training.signal.number, training.is_save_due
        losses_finite, all_finite = record.gather(accelerator, norms)
        if training.settings.nonfinite == "stop":  # fp16 overflows while it finds its scale
            counted = all_finite if accelerator.scaler is None else losses_finite
            training.broken = torch.maximum(training.broken, counted.logical_not().float())
        skipped = torch.maximum(training.broken, all_finite.logical_not().float())  # (): 1 or 0
        update_weights(accelerator, training.networks, skipped=skipped)

    def update(self, *, wait: bool = False) -> list[Row]:
        """Update the weights, and log the steps whose numbers have arrived; returns the new rows.

        On a GPU the numbers of a step are read while the next one is computed, so that it never waits for the
        host. Where the run is saved, or with `wait`, all are read.
        """
        self.apply_gradients()
        training = self._training
        training.steps_done += 1
        return training.step_log.add(self._record, all_now=wait or training.saves_here)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def clip_gradients(
    accelerator: Accelerator, networks: Sequence[Network], largest: float | None
) -> dict[str, Tensor]:
    """Unscale (fp16), average and measure gradients, and scale them down to the norm `largest`, if given.

    Args:
        networks: the model that Accelerate wraps first: it exchanges its gradients itself. Those of the
            others are averaged over the processes here, once a step.
    Returns:
        The norms before, () on the device and over all processes, by their names in metrics.jsonl: none for a
        network that is not active in this step.
    """
    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(networks[0].optimizer)
    norms = {}
    for number, network in enumerate(networks):
        gradients = [p.grad for p in network.module.parameters() if p.grad is not None]
        if not gradients:
            continue
        if number > 0:
            mean = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
            assert isinstance(mean, Tensor)
            parts = mean.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        norm = torch.nn.utils.get_total_norm(gradients)
        if largest is not None:
            torch.nn.utils.clip_grads_with_norm_(network.module.parameters(), largest, norm)
        norms[network.own_name(GRAD_NORM)] = full_tensor(norm)
    return norms


@torch.no_grad()
def update_weights(accelerator: Accelerator, networks: Sequence[Network], *, skipped: Tensor) -> None:
    """Change the weights of all networks by their gradients, then drop the gradients.

    The device itself leaves out an update, so the host need not wait for the numbers that decide about it.

    Args:
        skipped: () float32 on the device: 1 leaves the update out, also for the averages of weights; else 0.
    """
    for network in networks:
        # torch's GradScaler sets the same attribute: a fused AdamW whose `found_inf` is 1 on the device
        # changes neither weights nor moments. `clip_gradients` has unscaled the gradients.
        setattr(network.optimizer, "found_inf", skipped)  # noqa: B010 (not declared in torch's types)
        network.optimizer.step()
        network.optimizer.zero_grad()
        if network.ema is not None:  # timm's own update cannot be skipped without a wait
            # Buffers are constants.
            share = (1 - network.ema.decay) * (1 - skipped)
            for average, weight in zip(
                network.ema.module.parameters(), network.module.parameters(), strict=True
            ):
                average.lerp_(weight, share)
    if accelerator.scaler is not None:
        accelerator.scaler.update()  # fp16 halves its scale after an overflow


@dataclass(eq=False)
class StepRecord:
    """The numbers of one process about one step, on the device.

    `gather` copies those of all processes to the host without waiting, and `read` waits for them.
    """

    number: int = 0  # updates done before
    losses: dict[str, Tensor] = field(default_factory=dict)  # means over the passes, by name
    failed: list[Tries] = field(default_factory=list)  # of each unreadable sample
    videos: list[str] = field(default_factory=list)
    waited: float = 0.0  # seconds, for batches
    signal: int = 0  # that this process received, else 0
    is_save_due: bool = False  # by this process's clock
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None  # of the whole step; None: it is not over

    def add(self, loss: Tensor, parts: Mapping[str, Tensor], *, passes: int) -> None:
        """Add one of the step's `passes` passes."""
        for name, value in {"loss": loss, **parts}.items():
            self.losses[name] = self.losses.get(name, 0) + value.detach() / passes

    def gather(self, accelerator: Accelerator, norms: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Gather the numbers of all processes, the gradients' `norms` included, and copy them to the host.

        Returns:
            () bool each, on the device: whether all losses are finite, and whether losses and norms are.
        """
        self._names = [*self.losses, *norms]
        flags = (len(self.failed), self.signal, self.is_save_due)
        # Filled on the device: a copy of host memory would wait for it.
        filled = (self.losses["loss"].new_full((), float(flag)) for flag in flags)
        values = torch.stack([*self.losses.values(), *norms.values(), *filled])
        gathered = accelerator.gather(values)
        assert isinstance(gathered, Tensor)
        by_process = gathered.view(-1, len(values))  # (processes, values)
        self._copy = HostCopy({"numbers": by_process})
        finite = by_process.isfinite()
        return finite[:, : len(self.losses)].all(), finite[:, : len(self._names)].all()

    def read(self) -> tuple[dict[str, float], bool, int, bool]:
        """Wait for the numbers that `gather` has copied; returns those of all processes.

        Returns:
            Figures by their names in metrics.jsonl, losses as means; whether any process met an unreadable
            video; a signal that any received, else 0; whether a save is due by the clock of any.
        """
        *figures, failed, signals, due = self._copy.read()["numbers"].double().T.tolist()
        means = {name: sum(of) / len(of) for name, of in zip(self._names, figures, strict=True)}
        return means, any(failed), int(max(signals)), any(due)
