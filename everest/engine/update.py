"""One update of the weights of all networks that a run trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Final, Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config

from everest.config.settings import TrainSettings
from everest.engine.network import Network, set_lr
from everest.engine.step_log import StepNumbers
from everest.models.block import Block
from everest.system.compute import fuse_functions
from everest.system.weights import full_tensor, set_gradient_exchange

MEMORY_BUDGET: Final = 0.5  # our choice: the share of activations that a compiled graph may save
# Our choice: all blocks of a model share their graphs, one for each kind of block (of encoder or decoder, the
# last one, frozen), batch shape and mode. Torch's limit is 8, after which it computes without compilation;
# that some versions of timm raise it is not relied on.
MOST_GRAPHS: Final = 64


def compile_model(model: nn.Module, how: Literal["auto"] | bool) -> nn.Module:
    """Compile the model as `train.compile` requires, with a graph for each batch size.

    `auto` compiles each block on a GPU, and the functions of everest.system.compute, where Triton is
    installed: that takes seconds, while a whole model takes minutes.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    if not how or (how == "auto" and not (on_gpu and find_spec("triton"))):
        return model
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)  # `train.tf32` decides
    functorch_config.activation_memory_budget = MEMORY_BUDGET
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, MOST_GRAPHS)
    # dynamic=False: when a second model is compiled, torch would make the ratios of its selection
    # symbolic where they differ, and counting tokens with a symbol breaks the graph.
    if how == "auto":
        fuse_functions()
        for module in model.modules():
            if isinstance(module, Block):
                module.compile(dynamic=False)
        return model
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
        compiled = compile_model(model, settings.compile)
        # A sharded model exchanges gradients itself: Accelerate adds the precision only.
        self.model = accelerator.prepare_model(compiled, evaluation_mode=settings.shard == "full")
        self._stops = settings.nonfinite == "stop"
        self._stopped = torch.zeros((), device=accelerator.device)  # 1 after an update that ends the run

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

    def clip_gradients(self) -> dict[str, Tensor]:
        """Scale the gradients down to the norm `train.clip_grad`, for each network separately.

        Returns:
            The norms before, () on the device and over all processes, by their names in metrics.jsonl: none
            for a network that is not active in this step.
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
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.unscale_(self._networks[0].optimizer)
        norms = {}
        for network in self._networks:
            gradients = network.gradients()
            if gradients:
                norm = torch.nn.utils.get_total_norm(gradients)
                if self._clip_grad is not None:
                    parameters = network.module.parameters()
                    torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_grad, norm)
                norms[network.grad_norm] = full_tensor(norm)
        return norms

    def step(self, numbers: StepNumbers | None = None) -> None:
        """Change the weights by their gradients, and drop the gradients.

        The device itself leaves out an update whose `numbers` are not finite, so the host need not wait for
        them. With `train.nonfinite: stop` it leaves out all later ones, too: the host learns of the first a
        step late, and ends the run. An average of the weights leaves out the same updates.
        """
        skipped = None  # () float32 on the device: 1 if this update is left out, else 0
        if numbers is not None:
            if self._stops:  # fp16 overflows while it finds its scale
                sound = numbers.finite if self._accelerator.scaler is None else numbers.losses_finite
                self._stopped = torch.maximum(self._stopped, sound.logical_not().float())
            skipped = torch.maximum(self._stopped, numbers.finite.logical_not().float())
        for network in self._networks:
            # torch's GradScaler sets the same attribute: a fused AdamW whose `found_inf` is 1 on the device
            # changes neither weights nor moments.
            setattr(network.optimizer, "found_inf", skipped)  # noqa: B010 (not declared in torch's types)
            network.optimizer.step()
            network.optimizer.zero_grad()
            network.update_average(skipped)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.update()  # fp16 halves its scale after an overflow
