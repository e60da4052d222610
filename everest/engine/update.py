"""One update of the weights of all networks that a run trains, by functions that a loop calls in order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final, Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from everest.config.settings import TrainSettings
from everest.engine.network import Network
from everest.models.block import Block
from everest.system.compute import fuse_functions
from everest.system.weights import full_tensor

MEMORY_BUDGET: Final = 0.5  # our choice: the share of activations that a compiled graph may save
# Our choice: all blocks of a model share their graphs, one for each kind of block (of encoder or decoder, the
# last one, frozen), batch shape and mode. Torch's limit is 8, after which it computes without compilation.
MOST_GRAPHS: Final = 64


def prepare_model(accelerator: Accelerator, model: nn.Module, settings: TrainSettings) -> nn.Module:
    """The model as a loop calls it: compiled, in the run's precision, gradients exchanged by processes."""
    # A sharded model exchanges gradients itself: Accelerate adds the precision only.
    return accelerator.prepare_model(
        compile_model(model, settings.compile), evaluation_mode=settings.shard == "full"
    )


def compile_model(model: nn.Module, how: Literal["auto"] | bool) -> nn.Module:
    """Compile the model as `train.compile` requires, with a graph for each batch size.

    `auto` compiles each block on a GPU, and the functions of everest.system.compute, where Triton is
    installed: that takes seconds, while a whole model takes minutes.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    if not how or (how == "auto" and not (on_gpu and find_spec("triton"))):
        return model
    from torch._dynamo import config as dynamo_config  # here: it imports the compiler, for a second

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


def clip_gradients(
    accelerator: Accelerator, networks: Sequence[Network], largest: float | None
) -> dict[str, Tensor]:
    """Scale the gradients of each network down to the norm `largest` (None: leave them).

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
        norms[network.grad_norm] = full_tensor(norm)
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
        # changes neither weights nor moments.
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
