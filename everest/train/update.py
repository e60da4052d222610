"""One update of the weights of all networks that a run trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from everest.config.settings import TrainSettings
from everest.system.sharding import full_tensor, set_gradient_exchange
from everest.train.optim import set_lr
from everest.train.state import Network


def compile_model(model: nn.Module) -> nn.Module:
    """Returns the model with torch.compile, which makes one graph for each batch size."""
    # dynamic=False: when a second model is compiled, torch would make the ratios of its selection
    # symbolic where they differ, and counting tokens with a symbol breaks the graph.
    return cast(nn.Module, torch.compile(model, dynamic=False))


class Updater:
    """Adds up the gradients of a step's passes, and applies them to all networks or to none.

    Args:
        networks: the run's model first. Accelerate wraps it: it sets the precision and exchanges gradients.
            The others compute in float32, and their gradients are averaged once a step.
    """

    def __init__(
        self, accelerator: Accelerator, networks: Sequence[Network], settings: TrainSettings
    ) -> None:
        self._accelerator = accelerator
        self._networks = networks
        self._clip_grad = settings.clip_grad
        model = networks[0].module
        compiled = compile_model(model) if settings.compile else model
        # A sharded model exchanges gradients itself: Accelerate adds the precision only.
        self.model = accelerator.prepare_model(compiled, evaluation_mode=settings.shard == "full")
        self._optimizer = accelerator.prepare_optimizer(networks[0].optimizer)

    def set_lr(self, lr: float) -> None:
        for network in self._networks:
            set_lr(network.optimizer, lr)

    @contextmanager
    def one_pass(self, *, last: bool) -> Iterator[None]:
        """Around a pass: processes exchange the model's gradients in the last one of a step only."""
        set_gradient_exchange(self._networks[0].module, on=last)
        with nullcontext() if last else self._accelerator.no_sync(self.model):
            yield

    def backward(self, losses: Sequence[Tensor]) -> None:
        """Add the gradients of a pass.

        Args:
            losses: the model's, then one for each other active network: float32, and in no need of a scale.
        """
        loss, *others = losses
        self._accelerator.backward(loss)
        for other in others:
            other.backward()

    def clip_gradients(self) -> dict[str, float]:
        """Scale the gradients down to the norm `train.clip_grad`, for each network separately.

        Returns:
            The norms before, over all processes, by their names in metrics.jsonl: none for a network that is
            not active in this step.
        """
        # The gradients of the other networks are averaged over all processes first, each in one exchange.
        for network in self._networks[1:]:
            gradients = network.gradients()
            if not gradients:  # it is not active in this step
                continue
            mean = self._accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
            assert isinstance(mean, Tensor)
            parts = mean.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        self._accelerator.unscale_gradients(self._optimizer)
        norms = {}
        for network in self._networks:
            gradients = network.gradients()
            if gradients:
                norm = torch.nn.utils.get_total_norm(gradients)
                if self._clip_grad is not None:
                    parameters = network.module.parameters()
                    torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_grad, norm)
                norms[network.grad_norm] = full_tensor(norm).item()
        return norms

    def step(self, *, skip: bool = False) -> None:
        """Change the weights by their gradients unless `skip`, and drop the gradients."""
        if not skip:
            self._optimizer.step()
            for network in self._networks[1:]:
                network.optimizer.step()
            for network in self._networks:
                if network.ema is not None:
                    network.ema.update(network.module)
        elif self._accelerator.scaler is not None:
            self._accelerator.scaler.update()  # fp16 halves its scale after an overflow
        for network in self._networks:
            network.optimizer.zero_grad()
