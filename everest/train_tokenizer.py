"""LVMAE's first stage: a tokenizer whose scorer learns which tokens a clip is rebuilt from best."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from everest.checkpoints.load import tokenizer_of
from everest.config.settings import Recipe, TrainSettings
from everest.config.tokenizer import TokenizerSettings
from everest.data.bad_videos import refuse_too_many
from everest.data.dataset import Clip, VideoClips
from everest.errors import RecipeError
from everest.figures.pictures import draw_examples
from everest.system.events import notice
from everest.system.files import write_text
from everest.system.randomness import Purpose, generator_at, seed_at
from everest.system.run_folder import REPORT_IMAGE
from everest.system.weights import read_weights
from everest.tokenizer.clips import first_clips, held_out_clips, held_out_key, tokenizer_clips
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.report import TokenizerReport, numbers, report_on, scorer_warnings
from everest.tokenizer.scorer import TokenScorer
from everest.tokenizer.spec import TokenizerSpec, tokenizer_settings, tokenizer_spec
from everest.train.adversary import first_step
from everest.train.setup import RunContext, set_up_training
from everest.train.tokenizer_loss import TokenizerLosses, TokenizerObjective, tokenizer_objective
from everest.train.tracking import picture_is_due
from everest.train.training import Training
from everest.video.pixels import in_unit_range

TARGET_CLIPS: Final = 1024  # ours: of the training set, for the mean and deviation of the targets
LEAST_VARIANCE: Final = 1e-6  # of a code dimension that has collapsed: targets stay finite


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What a tokenizer is judged on."""

    clips: VideoClips
    source: str  # the list's key in `data`
    held_out: bool
    untrained: TokenScorer  # as training began with it


@dataclass(frozen=True, kw_only=True)
class TokenizerStage:
    """A tokenizer's training, what it learns from and what it is judged on."""

    training: Training
    settings: TokenizerSettings
    objective: TokenizerObjective
    judge: Validation

    @property
    def adversarial(self) -> bool:
        """Whether an adversary plays in the step under way."""
        training = self.training
        begun = training.steps_done >= first_step(training.plan.steps)
        return self.objective.adversary is not None and begun


def set_up_tokenizer(recipe: Recipe, place: RunContext) -> TokenizerStage:
    """Everything up to the first step.

    Raises:
        UserError: everest.errors tells which.
    """
    settings, spec = tokenizer_settings(recipe), tokenizer_spec(recipe)
    if settings.checkpoint is not None:
        raise RecipeError(
            f"tokenizer.checkpoint: {settings.checkpoint} is trained already; set it to null to train another"
        )
    if recipe.train.shard != "none":
        place.report(notice("train.shard has no effect on a tokenizer: every process has a whole one"))
    clips = tokenizer_clips(recipe)
    objective = tokenizer_objective(recipe, spec, place.accelerator.device)
    engine = replace(recipe.train, ema=settings.ema, shard="none")
    training = set_up_training(
        replace(recipe, train=engine),
        settings,
        spec,
        clips,
        place,
        adversary=objective.adversary,
        bytes_beside=partial(objective.bytes_per_clip, spec),
    )
    key = held_out_key(recipe)
    held_out = key in ("val", "test")
    if not held_out:
        place.report(notice("no list in data.val or data.test: the report is of videos that are trained on"))
    judge = Validation(
        clips=held_out_clips(recipe), source=key, held_out=held_out, untrained=_first_scorer(recipe, spec)
    )
    judge.untrained.to(place.accelerator.device)
    return TokenizerStage(training=training, settings=settings, objective=objective, judge=judge)


def _first_scorer(recipe: Recipe, spec: TokenizerSpec) -> TokenScorer:
    """The scorer that training begins with, from the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_at(recipe.train.seed, Purpose.WEIGHTS))
        return spec.build().scorer


def tokenizer_losses(stage: TokenizerStage, clip: Clip, *, adversarial: bool) -> TokenizerLosses:
    """The losses of clips on the device that are rebuilt from the tokens the step allows."""
    training, rng = stage.training, stage.training.rng()
    frames = in_unit_range(clip.frames.flatten(0, 1))  # (B, 3, T, H, W)
    generator = torch.Generator(frames.device).manual_seed(int(rng.integers(2**63)))
    rebuilt = training.model(frames, generator=generator, all_tokens=_sees_all(training, stage.settings))
    with training.accelerator.autocast():
        return stage.objective(rebuilt, adversarial=adversarial, rng=rng)


def trial_losses(stage: TokenizerStage, clip: Clip) -> tuple[Tensor, Tensor | None]:
    """The tokenizer's and its adversary's loss as late steps have them: it plays, if there is one."""
    losses = tokenizer_losses(stage, clip, adversarial=stage.objective.adversary is not None)
    return losses.loss, losses.adversary_loss


def _sees_all(training: Training, settings: TokenizerSettings) -> bool:
    """Whether the step under way rebuilds from all tokens: those seldom kept would be trained poorly."""
    step = training.steps_done
    chance = generator_at(training.settings.seed, Purpose.ALL_TOKENS, step).random()
    return step < settings.warmup * training.plan.steps or bool(chance < settings.full_batches)


def train_tokenizer(stage: TokenizerStage) -> dict[str, Any]:
    """Train to the end of the plan, measure the targets, judge; returns what report.json says.

    Raises:
        UserError: everest.errors tells which; the run can be resumed.
    """
    training, judge = stage.training, stage.judge
    judged = {row["step"] for row in training.run.rows() if "psnr_own" in row}
    training.model.train()
    with training.explain_out_of_memory():
        if _is_due(training) and training.steps_done not in judged:
            _judge(training, judge)  # the run was ended between save and judgement
        for step in training.steps():
            if stage.adversarial and step == first_step(training.plan.steps):
                training.change_loss(f"the discriminator begins after step {step}: its term joins the loss")
            for clip in training.micro_batches():
                losses = tokenizer_losses(stage, clip, adversarial=stage.adversarial)
                training.backward(losses.loss, losses.adversary_loss, losses.parts)
            training.update()
            if _is_due(training):
                training.save()  # first: judging may take long, and may fail
                _judge(training, judge)
        return _finish(training, judge) if training.accelerator.is_main_process else {}


def _is_due(training: Training) -> bool:
    """Whether to judge now: after some epochs. The last one is judged by `_finish`."""
    done, plan = training.steps_done, training.plan
    epochs = done // plan.steps_per_epoch
    return 0 < done < plan.steps and training.ends_epoch and picture_is_due(epochs, plan.epochs)


def _judge(training: Training, judge: Validation) -> None:
    """Log the figures of the weights as they are, and warn of a collapse."""
    if not training.accelerator.is_main_process:
        return
    model = training.trained_model
    assert isinstance(model, AdaptiveTokenizer)
    figures = _report(training, model, judge).figures
    training.model.train()
    row = {"step": training.steps_done, **numbers(figures)}
    training.log(row)
    psnr = figures["psnr"]
    training.notice(
        f"step {training.steps_done}: {psnr['own']:.2f} dB from the tokens chosen, {psnr['random']:.2f} from "
        f"random ones, {psnr['all']:.2f} from all"
    )
    for text in scorer_warnings(figures):
        training.notice(f"step {training.steps_done}: {text}")


def _report(training: Training, model: AdaptiveTokenizer, judge: Validation) -> TokenizerReport:
    found = report_on(model, judge.clips, judge.untrained, settings=training.settings)
    for path, reason in found.skipped:
        training.notice(f"data.{judge.source} skips {path}: {reason}")
    read = found.figures.get("clips", 0)
    asked = len(found.skipped) + read
    refuse_too_many(found.skipped, requested=asked, max_bad=training.bad_videos.max_bad)
    return found


def _finish(training: Training, judge: Validation) -> dict[str, Any]:
    """The targets' mean and deviation into the weights, then report.json and its picture.

    The weights are those on the disk: a finished run whose states were removed can be judged again.
    """
    run = training.run
    weights = read_weights(run.weights)
    model = tokenizer_of(weights, source=run.weights).to(training.accelerator.device)
    measured = bool((model.target_std != 1).any())
    if measured and run.report.is_file():
        return json.loads(run.report.read_text())
    if not measured:
        measure_targets(model, training.clips, settings=training.settings)
        replace(weights, tensors=model.state_dict()).save(run.weights)
    found = _report(training, model, judge)
    told = {
        "step": weights.step,
        "videos": judge.source,
        "held_out": judge.held_out,
        "skipped": len(found.skipped),
        **found.figures,
        "target_mean": model.target_mean.tolist(),
        "target_std": model.target_std.tolist(),
    }
    draw_examples(run.path / REPORT_IMAGE, found.examples)
    training.log({"step": weights.step, **numbers(found.figures)})
    write_text(run.report, json.dumps(told, indent=2))
    return told


@torch.inference_mode()
def measure_targets(model: AdaptiveTokenizer, clips: VideoClips, *, settings: TrainSettings) -> None:
    """Set the mean and the deviation of every code dimension, over all tokens of training clips.

    All tokens, because any can be a target of the autoencoder; an even number of levels is not symmetric, so
    the mean is not 0.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for clip in first_clips(clips, TARGET_CLIPS, settings=settings):
        frames = in_unit_range(clip.frames.flatten(0, 1).to(model.target_mean.device))
        values = model.encode(frames).values.flatten(0, 1).double().cpu()  # (tokens, D)
        count += len(values)
        total = total + values.sum(dim=0)
        squares = squares + values.square().sum(dim=0)
    mean = total / count
    model.target_mean.copy_(mean)
    model.target_std.copy_((squares / count - mean.square()).clamp(min=LEAST_VARIANCE).sqrt())
