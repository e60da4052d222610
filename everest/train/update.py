"""One update of the weights: a model's, and those of an adversary that learns against it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from everest.config.settings import TrainSettings
from everest.system.sharding import full_tensor, set_gradient_exchange
from everest.train.optim import set_lr
from everest.train.state import TrainState

ADVERSARY_NORM: Final = "discriminator_grad_norm"  # in metrics.jsonl


def compile_model(model: nn.Module) -> nn.Module:
    """The model as torch.compile makes it, one graph for each size of a batch."""
    # dynamic=False: when a second model is compiled, torch would make the ratios of its selection
    # symbolic where they differ, and counting tokens with a symbol breaks the graph.
    return cast(nn.Module, torch.compile(model, dynamic=False))


class Updater:
    """Adds up gradients over the passes of a step, and applies them: all of them, or none.

    Args:
        state: what an update changes.
    """

    def __init__(self, accelerator: Accelerator, state: TrainState, settings: TrainSettings) -> None:
        self._accelerator = accelerator
        self._state = state
        self._clip_grad = settings.clip_grad
        model = state.model
        compiled = compile_model(model) if settings.compile else model
        # A model that is cut exchanges gradients itself: Accelerate adds the precision only.
        self.model = accelerator.prepare_model(compiled, evaluation_mode=settings.shard == "full")
        self._optimizer = accelerator.prepare_optimizer(state.optimizer)

    def set_lr(self, lr: float) -> None:
        for optimizer in self._state.optimizers:
            set_lr(optimizer, lr)

    @contextmanager
    def one_pass(self, *, last: bool) -> Iterator[None]:
        """Around a pass: processes exchange the model's gradients in the last one of a step only."""
        set_gradient_exchange(self._state.model, on=last)
        with nullcontext() if last else self._accelerator.no_sync(self.model):
            yield

    def backward(self, loss: Tensor, adversary_loss: Tensor | None) -> None:
        """Add the gradients of a pass; the adversary's loss is float32 and needs no scale."""
        self._accelerator.backward(loss)
        if adversary_loss is not None:
            adversary_loss.backward()

    def average_adversary(self) -> None:
        """Make the adversary's gradient the mean over all processes, in one exchange: nothing wraps it."""
        gradients = self._adversary_gradients
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        mean = self._accelerator.reduce(flat, reduction="mean")
        assert isinstance(mean, Tensor)
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def clip_gradients(self) -> tuple[float, dict[str, float]]:
        """Scale the gradients down to the norm `train.clip_grad`, each network's by itself.

        Returns:
            The norms before, over all processes: the model's, and the adversary's by its name in the log
            where it plays in the step.
        """
        self._accelerator.unscale_gradients(self._optimizer)
        norm = self._clip(self.model)
        adversary = self._state.adversary
        if adversary is None or not self._adversary_gradients:
            return norm, {}
        return norm, {ADVERSARY_NORM: self._clip(adversary.discriminator)}

    @property
    def _adversary_gradients(self) -> list[Tensor]:
        """Empty where it does not play in the step."""
        adversary = self._state.adversary
        return _gradients(adversary.discriminator) if adversary is not None else []

    def _clip(self, network: nn.Module) -> float:
        norm = torch.nn.utils.get_total_norm(_gradients(network))
        if self._clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(network.parameters(), self._clip_grad, norm)
        return full_tensor(norm).item()

    def step(self) -> None:
        """Change the weights by their gradients."""
        self._optimizer.step()
        if self._state.adversary is not None:
            self._state.adversary.optimizer.step()
        if self._state.ema is not None:
            self._state.ema.update(self._state.model)

    def skip_step(self) -> None:
        """In the place of `step`: fp16 halves its scale after an overflow."""
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.update()

    def zero_grad(self) -> None:
        for optimizer in self._state.optimizers:
            optimizer.zero_grad()


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
