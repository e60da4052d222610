"""Self-supervised pre-training: predict the tokens that say something from a few of them."""

from __future__ import annotations

from torch import Tensor, nn

from everest.assemble import Place, set_up_training
from everest.build import pretrain_spec
from everest.clips import pretrain_clips
from everest.config.settings import Recipe
from everest.data.datasets import Clip
from everest.pixels import normalise
from everest.training import Training


def set_up_pretraining(recipe: Recipe, place: Place) -> Training:
    """Everything up to the first step. What a user may have got wrong is found here.

    Raises:
        UserError: everest.errors tells which.
    """
    return set_up_training(recipe, recipe.pretrain, pretrain_spec(recipe), pretrain_clips(recipe), place)


def pretraining_loss(model: nn.Module, clip: Clip) -> Tensor:
    """The reconstruction loss of a batch of clips on the device."""
    frames = normalise(clip.frames.flatten(0, 1))  # (B * views, 3, T, H, W)
    return model(frames, noise=clip.noise.flatten(0, 1)).loss


def pretrain(training: Training) -> None:
    """Train to the end of the plan.

    Raises:
        UserError: everest.errors tells which; the run can be resumed.
    """
    training.model.train()
    for _ in training.steps():
        for clip in training.micro_batches():
            training.backward(pretraining_loss(training.model, clip))
        training.update()
