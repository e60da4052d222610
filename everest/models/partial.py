"""Partial training: the weights of a model that a stage trains.

A frozen weight gets no gradient and is in no group of the optimizer.
"""

from __future__ import annotations

from torch import nn

from everest.config.stage_settings import FinetuneSettings, PretrainSettings
from everest.config.tokenizer import TokenizerSettings
from everest.errors import RecipeError
from everest.models.classifier import VideoClassifier
from everest.models.lora import add_adapters
from everest.models.video_model import PretrainingModel
from everest.models.vit import Encoder

Stage = PretrainSettings | FinetuneSettings | TokenizerSettings


def require_start(stage: Stage) -> None:
    """Check a stage that starts from new weights."""
    if not isinstance(stage, TokenizerSettings) and stage.lora.rank:
        section = "finetune" if isinstance(stage, FinetuneSettings) else "pretrain"
        raise RecipeError(
            f"{section}.lora: adapts trained weights, and the encoder starts from new ones; name a "
            f"checkpoint with --init, or set {section}.lora.rank=0"
        )
    if isinstance(stage, FinetuneSettings) and stage.freeze not in ("none", "embedding"):
        raise RecipeError(
            f"finetune.freeze: {stage.freeze} keeps trained weights, and the encoder starts from new ones; "
            "name a checkpoint with --init, or set finetune.freeze=none"
        )


def choose_trained(model: nn.Module, stage: Stage) -> None:
    """Freeze the weights of a model that a stage does not train, and add the stage's adapters.

    Weights outside of the encoder are always trained.
    """
    if isinstance(stage, TokenizerSettings):
        return
    assert isinstance(model, PretrainingModel | VideoClassifier)
    encoder = model.encoder
    if stage.lora.rank:
        encoder.requires_grad_(False)
        add_adapters(encoder.blocks, stage.lora)
    elif isinstance(stage, FinetuneSettings) and stage.freeze == "encoder":
        encoder.requires_grad_(False)
    else:
        freeze_layers(encoder, frozen_layers(stage, len(encoder.blocks)))


def freeze_layers(encoder: Encoder, layers: int) -> None:
    """Freeze the first layers of an encoder: the embedding, with all that is added to it, then each block."""
    if layers:
        later = (*encoder.blocks[layers - 1 :], encoder.norm)
        trained = {id(parameter) for module in later for parameter in module.parameters()}
        for parameter in encoder.parameters():
            parameter.requires_grad_(id(parameter) in trained)


def frozen_layers(stage: Stage | None, depth: int) -> int:
    """The first layers of an encoder that need no backward pass: the embedding, then each of `depth` blocks.

    A stage that is None trains nothing, and has no frozen layers.
    """
    if stage is None or isinstance(stage, TokenizerSettings):
        return 0
    if stage.lora.rank:
        return 1  # all blocks have adapters
    return stage.frozen_layers(depth) if isinstance(stage, FinetuneSettings) else 0
