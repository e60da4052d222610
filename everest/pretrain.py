"""Self-supervised pre-training: predict the tokens that say something from a few of them."""

from __future__ import annotations

from torch import Tensor, nn

from everest.build import pretrain_spec
from everest.checkpoint import Weights
from everest.clips import pretrain_clips
from everest.data.datasets import Clip
from everest.pixels import normalise
from everest.run_folder import RunFolder
from everest.settings import Recipe
from everest.setup import set_up_training
from everest.training import Report, Training


def set_up_pretraining(recipe: Recipe, run: RunFolder, *, cpu: bool, report: Report) -> Training:
    """Everything up to the first step. What a user may have got wrong is found here.

    Raises:
        UserError: everest.errors tells which.
    """
    spec = pretrain_spec(recipe)
    weights = Weights(kind=spec.kind, settings=spec.dump(), classes=None, recipe=recipe.name, step=0)
    return set_up_training(
        recipe, recipe.pretrain, spec, weights, pretrain_clips(recipe), run, cpu=cpu, report=report
    )


def pretraining_loss(model: nn.Module, clip: Clip) -> Tensor:
    """The reconstruction loss of a batch of clips on the device."""
    frames = normalise(clip.frames.flatten(0, 1))  # (B * views, 3, T, H, W)
    return model(frames, noise=clip.noise.flatten(0, 1)).loss


def pretrain(training: Training) -> None:
    """Train to the end of the plan, going on from the newest state of the run if it has one.

    Raises:
        UserError: everest.errors tells which; the run can be resumed.
    """
    training.resume()
    training.model.train()
    for _ in training.steps():
        for clip in training.micro_batches():
            training.backward(pretraining_loss(training.model, clip))
        training.update()
