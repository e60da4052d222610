"""Self-supervised pre-training: predict the tokens that say something from a few of them."""

from __future__ import annotations

from torch import Tensor, nn

from everest.config.settings import Recipe
from everest.data.dataset import Clip
from everest.data.stages import pretrain_clips
from everest.figures.masks import view_model
from everest.figures.pictures import rows_of
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import pretrain_spec
from everest.system.events import notice
from everest.tokenizer.cache import open_token_cache
from everest.train.setup import RunContext, set_up_training
from everest.train.tracking import Tracker, picture_is_due, show
from everest.train.training import Training
from everest.video.pixels import normalize


def set_up_pretraining(recipe: Recipe, place: RunContext) -> Training:
    """Everything up to the first step. What a user may have got wrong is found here.

    Raises:
        UserError: everest.errors tells which.
    """
    clips = pretrain_clips(recipe)
    if recipe.pretrain.target.cache is not None:
        clips.tokens = open_token_cache(recipe, clips)
        place.report(notice(f"tokens of {clips.tokens.variants} clips a video from {clips.tokens.folder}"))
    return set_up_training(recipe, recipe.pretrain, pretrain_spec(recipe), clips, place)


def pretraining_loss(model: nn.Module, clip: Clip) -> Tensor:
    """The reconstruction loss of a batch of clips on the device."""
    frames = normalize(clip.frames.flatten(0, 1))  # (B * views, 3, T, H, W)
    tokens = {name: value.flatten(0, 1) for name, value in clip.tokens.items()}
    return model(frames, noise=clip.noise.flatten(0, 1), **tokens).loss


def pretrain(training: Training) -> None:
    """Train to the end of the plan.

    Raises:
        UserError: everest.errors tells which; the run can be resumed.
    """
    training.model.train()
    with training.explain_out_of_memory():
        for _ in training.steps():
            for clip in training.micro_batches():
                training.backward(pretraining_loss(training.model, clip))
            training.update()
            if training.ends_epoch and training.tracker is not None:
                _show_reconstruction(training, training.tracker)


def _show_reconstruction(training: Training, tracker: Tracker) -> None:
    """Frames, kept, seen and predicted tokens of the first clip, some times a run.

    Not for a model that is cut over the processes: the tracker is on one of them, and a pass needs all. Nor
    with a token cache: predicted codes are pictures by way of the tokenizer only.
    """
    plan, model = training.plan, training.trained_model
    epoch = training.steps_done // plan.steps_per_epoch
    if training.settings.shard == "full" or training.clips.tokens or not picture_is_due(epoch, plan.epochs):
        return
    assert isinstance(model, MaskedAutoencoder)
    clip = training.clips.read((0, 0))
    model.eval()
    view = view_model(model, clip.frames[0], noise=clip.noise[0])
    model.train()
    rows = [frames for _, frames in rows_of([view]) if frames.dim() == 4]
    show(tracker, "reconstruction", rows, training.steps_done)
