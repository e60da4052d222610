"""Makes a network ready to learn: its optimizer and averaged weights, precision, compilation."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, Final, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from everest.config.settings import TrainedSection, TrainSettings
from everest.engine.step import MicroBatchLosses, StepRecord, TrainedNetwork, UpdateGuard, update_networks
from everest.models.base import TokenModel
from everest.models.block import Block
from everest.models.partial import freeze_and_adapt
from everest.models.positions import SPATIAL, TEMPORAL
from everest.system.compute import fuse_functions
from everest.system.private_apis import keep_compiler_limits, set_compiler_limits

# A group of torch.optim: "params", "weight_decay", and "lr_scale", a factor of each step's learning rate.
ParamGroup = dict[str, Any]
# Without weight decay, as in VideoMAE, BEiT and ST-MAE; timm adds all other vectors, such as norm weights.
NO_DECAY: Final = (".bias", "mask_token", "class_token", "registers", SPATIAL, TEMPORAL)
MEMORY_BUDGET: Final = 0.5  # heuristic: the fraction of activations that a compiled graph may save
# Heuristic: all blocks of a model share their graphs, one for each kind of block (of encoder or decoder, the
# last one, frozen), batch shape and mode. Torch's limit is 8, after which it computes without compilation.
MAX_GRAPHS: Final = 64


def parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[ParamGroup]:
    """timm's parameter groups of a model without its frozen parameters, each with an `lr_scale`.

    Args:
        layer_decay: the `lr_scale` of a layer relative to the next layer's (Bao et al. 2021). The model's
            `group_matcher` defines its layers. With 1.0 all parameters have scale 1.
    """
    with keep_compiler_limits():  # timm.optim would remove one
        from timm.optim import (
            param_groups_layer_decay,  # pyright: ignore[reportPrivateImportUsage]
            param_groups_weight_decay,  # pyright: ignore[reportPrivateImportUsage]
        )

    # Full names: older releases of timm know no patterns.
    no_decay = [name for name, _ in model.named_parameters() if name.endswith(NO_DECAY)]
    if layer_decay != 1.0:
        return param_groups_layer_decay(model, weight_decay, no_decay, layer_decay=layer_decay)
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=no_decay)
    return [{**group, "lr_scale": 1.0} for group in groups]


def make_optimizer(groups: list[ParamGroup], *, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in its fused form: one kernel a group. A `Step` sets the learning rate."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8, fused=True)


def stage_optimizer(model: nn.Module, section: TrainedSection) -> torch.optim.AdamW:
    """AdamW over the parameters that a stage trains; the learning rate of its encoder may be scaled."""
    groups = parameter_groups(model, weight_decay=section.weight_decay, layer_decay=section.layer_decay)
    if section.encoder_lr_scale != 1.0:
        assert isinstance(model, TokenModel)
        encoder = {id(parameter) for parameter in model.encoder.parameters()}
        groups = [
            {**group, "params": params, "lr_scale": scale * group["lr_scale"]}
            for group in groups
            for is_inside, scale in ((True, section.encoder_lr_scale), (False, 1.0))
            if (params := [p for p in group["params"] if (id(p) in encoder) == is_inside])
        ]
    return make_optimizer(groups, betas=section.betas)


def make_network(
    model: nn.Module, section: TrainedSection, settings: TrainSettings, accelerator: Accelerator
) -> TrainedNetwork:
    """Move a new model to its device, freeze what its stage does not train, and make its optimizer."""
    freeze_and_adapt(model, section)
    model.to(accelerator.device)
    ema = None
    if settings.ema is not None:
        from timm.utils.model_ema import ModelEmaV3  # here: timm takes a second to import

        ema = ModelEmaV3(model, decay=settings.ema)
    return TrainedNetwork(module=model, optimizer=stage_optimizer(model, section), ema=ema)


def prepare_model(accelerator: Accelerator, model: nn.Module, settings: TrainSettings) -> nn.Module:
    """Compile a model, set its precision, and let the processes exchange its gradients.

    A compiled model has a graph for each batch size. Where Triton is installed, `train.compile: auto`
    compiles each block on a GPU and the functions of everest.system.compute: that takes seconds, while a
    whole model takes minutes.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    compiled = model
    if settings.compile is True or (settings.compile == "auto" and on_gpu and find_spec("triton")):
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)  # they round
        set_compiler_limits(memory_budget=MEMORY_BUDGET, graphs=MAX_GRAPHS)
        # dynamic=False: when a second model is compiled, torch would make the ratios of its selection
        # symbolic where they differ, and counting tokens with a symbol breaks the graph.
        if settings.compile == "auto":
            fuse_functions()
            for module in model.modules():
                if isinstance(module, Block):
                    module.compile(dynamic=False)
        else:
            compiled = cast(nn.Module, torch.compile(model, dynamic=False))
    return accelerator.prepare_model(compiled)


class PlainTraining:
    """Trains a model without a run, for measurements: in steps of one micro-batch, by the same updates.

    Attributes:
        model: as the caller computes its loss: compiled, in the precision of `accelerator`.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, section: TrainedSection, settings: TrainSettings
    ) -> None:
        self.network = make_network(model, section, settings, accelerator)
        self.model = prepare_model(accelerator, model, settings)
        self._accelerator, self._clip_grad = accelerator, settings.clip_grad
        self._guard = UpdateGuard(scaled=accelerator.scaler is not None)

    def step(self, loss: Tensor) -> None:
        """Compute the gradient of a loss, and update the weights."""
        accelerator, record = self._accelerator, StepRecord(index=0)
        record.add(MicroBatchLosses(loss), micro_batches=1)
        accelerator.backward(loss)
        update_networks(accelerator, [self.network], record, self._guard, clip_grad=self._clip_grad)
