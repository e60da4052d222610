"""LVMAE's first stage: train a tokenizer whose scorer learns which tokens rebuild a clip best."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from everest.checkpoints.load import open_model
from everest.config.settings import Recipe, TrainSettings
from everest.config.tokenizer import TokenizerSettings
from everest.data.bad_videos import refuse_too_many
from everest.data.dataset import Batch, VideoClips
from everest.data.randomness import Purpose, generator_at, seed_at
from everest.engine.context import RunContext
from everest.engine.network import Network, make_optimizer
from everest.engine.setup import set_up_training
from everest.engine.training import Training
from everest.errors import RecipeError
from everest.figures.pictures import draw_examples
from everest.foreign.timm_images import load_network
from everest.system.files import write_text
from everest.system.run_folder import REPORT_IMAGE
from everest.system.text import json_text, nonfinite_as_null, read_own_json
from everest.tokenizer.clips import held_out_clips, held_out_key, spaced_clips, tokenizer_clips
from everest.tokenizer.loss import (
    ADVERSARY_START,
    BETAS,
    TokenizerLosses,
    TokenizerObjective,
    tokenizer_objective,
)
from everest.tokenizer.network import AdaptiveTokenizer
from everest.tokenizer.report import TokenizerReport, measure_tokenizer, scalar_figures, scorer_warnings
from everest.tokenizer.scorer import TokenScorer
from everest.tokenizer.spec import tokenizer_settings, tokenizer_spec
from everest.video.pixels import in_unit_range

TARGET_CLIPS: Final = 1024  # our choice: of the training set, for the mean and std of the targets
HELD_OUT: Final = ("val", "test")  # lists of videos that are not trained on
LEAST_VARIANCE: Final = 1e-6  # of a code dimension; keeps targets finite if it has collapsed


@dataclass(frozen=True, kw_only=True)
class TokenizerStage:
    """The training of a tokenizer, its loss, and the clips that it is validated on."""

    training: Training
    settings: TokenizerSettings
    objective: TokenizerObjective
    validation: VideoClips
    validation_key: str  # of their list in `data`
    untrained: TokenScorer  # with the weights that training starts from, for comparison

    def losses(self, batch: Batch) -> list[Tensor]:
        """The losses of all networks, as in late steps: with the adversary, if there is one."""
        return tokenizer_losses(self, batch, adversarial=self.objective.adversary is not None).losses

    def train(self) -> dict[str, Any]:
        """Train to the end of the plan, measure the targets and validate.

        Returns:
            The contents of report.json in the main process.
        """
        training, adversary = self.training, self.objective.adversary
        validated = {row["step"] for row in training.run.rows() if "psnr_own" in row}
        adversary_start = int(ADVERSARY_START * training.plan.steps)
        training.model.train()
        if _is_due(training) and training.steps_done not in validated:
            _validate(self)  # the run was stopped between save and validation
        with training.running():
            while training.has_steps:
                training.begin_step()
                adversarial = adversary is not None and training.steps_done >= adversary_start
                if adversarial and training.steps_done == adversary_start:
                    training.notice(
                        f"the discriminator starts after step {adversary_start}: its term joins the loss"
                    )
                for number in range(training.plan.accumulation):
                    batch = training.next_batch()
                    training.seed(number)
                    with training.accumulate(number):
                        losses, parts = tokenizer_losses(self, batch, adversarial=adversarial)
                        training.backward(losses, parts)
                training.update()
                training.log_step()
                if _is_due(training):
                    training.save()  # first: a validation may take long, and may fail
                    _validate(self)
                training.save_if_due()
                training.stop_if_asked()
        if not training.accelerator.is_main_process:
            return {}
        report = _finish(self)
        _show(training, report["step"], report["psnr"], report["warnings"])
        return report


def set_up_tokenizer(recipe: Recipe, context: RunContext) -> TokenizerStage:
    """Prepare everything up to the first step."""
    settings, spec = tokenizer_settings(recipe), tokenizer_spec(recipe)
    if settings.checkpoint is not None:
        raise RecipeError(
            f"tokenizer.checkpoint: {settings.checkpoint} is trained already; set it to null to train another"
        )
    if recipe.train.shard != "none":
        context.notice("train.shard has no effect on a tokenizer: every process has a full copy")
    device = context.accelerator.device
    objective = tokenizer_objective(recipe, spec, device, load=load_network)  # may read weights
    adversaries = []
    if objective.adversary is not None:
        optimizer = make_optimizer([objective.adversary.group], betas=BETAS)
        adversaries = [
            Network(
                module=objective.adversary.discriminator,
                optimizer=optimizer,
                name="adversary",
                grad_norm="discriminator_grad_norm",
            )
        ]
    clips = tokenizer_clips(recipe)
    training = set_up_training(
        replace(recipe, train=replace(recipe.train, ema=settings.ema, shard="none")),
        settings,
        spec,
        clips,
        context,
        other_networks=adversaries,
        other_bytes=partial(objective.bytes_per_clip, spec),
    )
    key = held_out_key(recipe)
    if key not in HELD_OUT:
        context.notice("no list in data.val or data.test: the report is of videos that are trained on")
    with torch.random.fork_rng():  # the scorer that training starts with, from the same seed
        torch.manual_seed(seed_at(recipe.train.seed, Purpose.WEIGHTS))
        untrained = spec.build().scorer.to(device)
    return TokenizerStage(
        training=training,
        settings=settings,
        objective=objective,
        validation=held_out_clips(recipe),
        validation_key=key,
        untrained=untrained,
    )


def tokenizer_losses(stage: TokenizerStage, batch: Batch, *, adversarial: bool) -> TokenizerLosses:
    """The losses of clips on the device, rebuilt from the tokens that the step allows.

    Args:
        adversarial: whether the adversary is active.
    """
    training, settings, step = stage.training, stage.settings, stage.training.steps_done
    rng = training.rng()
    # Some steps rebuild from all tokens: tokens that are rarely kept would be trained poorly.
    chance = generator_at(training.settings.seed, Purpose.ALL_TOKENS, step).random()
    all_tokens = step < settings.warmup * training.plan.steps or bool(chance < settings.full_batches)
    frames = in_unit_range(batch.frames.flatten(0, 1))  # (B, 3, T, H, W)
    generator = torch.Generator(frames.device).manual_seed(int(rng.integers(2**63)))
    rebuilt = training.model(frames, generator=generator, all_tokens=all_tokens)
    with training.accelerator.autocast():
        return stage.objective(rebuilt, adversarial=adversarial, rng=rng)


def _is_due(training: Training) -> bool:
    """Whether to validate now: at some of the checkpoints. `_finish` validates after the last step."""
    done, plan = training.steps_done, training.plan
    return 0 < done < plan.steps and training.at_checkpoint and plan.shows_image(done)


def _validate(stage: TokenizerStage) -> None:
    """Log the measures of the current weights, and warn of a collapse."""
    training = stage.training
    if not training.accelerator.is_main_process:
        return
    figures = _report(stage, training.state.trained_model).figures
    training.model.train()
    training.log({"step": training.steps_done, **scalar_figures(figures)})
    _show(training, training.steps_done, figures["psnr"], scorer_warnings(figures))


def _show(training: Training, step: int, psnr: dict[str, float], warnings: Iterable[str]) -> None:
    training.notice(
        f"step {step}: PSNR {psnr['own']:.2f} dB from the kept tokens, {psnr['random']:.2f} from as many "
        f"random ones, {psnr['all']:.2f} from all"
    )
    for text in warnings:
        training.notice(f"warning: {text}")


def _report(stage: TokenizerStage, model: nn.Module) -> TokenizerReport:
    training = stage.training
    assert isinstance(model, AdaptiveTokenizer)
    report = measure_tokenizer(model, stage.validation, stage.untrained, settings=training.settings)
    for path, reason in report.skipped:
        training.notice(f"data.{stage.validation_key} skips {path}: {reason}")
    total = len(report.skipped) + report.figures.get("clips", 0)
    refuse_too_many(report.skipped, requested=total, max_bad=training.bad_videos.max_bad)
    return report


def _finish(stage: TokenizerStage) -> dict[str, Any]:
    """Add the mean and std of the targets to the weights, then write report.json and its image.

    The weights are read from disk: a finished run whose states were removed can be validated again.
    """
    training, run = stage.training, stage.training.run
    opened = open_model(run.weights, kind="tokenizer")
    weights, model = opened.weights, opened.module.to(training.accelerator.device)
    assert isinstance(model, AdaptiveTokenizer)
    if not (model.target_std != 1).any():
        measure_targets(model, training.clips, settings=training.settings)
        replace(weights, tensors=model.state_dict()).save(run.weights)
    elif run.report.is_file():
        try:
            return read_own_json(run.report, fix="validating again")
        except RecipeError as error:
            training.notice(str(error))
    report = _report(stage, model)
    document = {
        "step": weights.step,
        "videos": stage.validation_key,
        "held_out": stage.validation_key in HELD_OUT,
        "skipped": len(report.skipped),
        **report.figures,
        "target_mean": model.target_mean.tolist(),
        "target_std": model.target_std.tolist(),
    }
    draw_examples(run.path / REPORT_IMAGE, report.examples)
    training.log({"step": weights.step, **scalar_figures(report.figures)})
    write_text(run.report, json_text(nonfinite_as_null(document), indent=2))
    return document


@torch.inference_mode()
def measure_targets(model: AdaptiveTokenizer, clips: VideoClips, *, settings: TrainSettings) -> None:
    """Set the mean and std of every code dimension, over all tokens of up to `TARGET_CLIPS` training clips.

    All tokens count, because each can be a target of the autoencoder. The mean is not 0, because an even
    number of levels is not symmetric.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in spaced_clips(clips, TARGET_CLIPS, settings=settings):
        frames = in_unit_range(batch.frames.flatten(0, 1).to(model.target_mean.device))
        values = model.encode(frames).values.flatten(0, 1).double().cpu()  # (tokens, D)
        count += len(values)
        total = total + values.sum(dim=0)
        squares = squares + values.square().sum(dim=0)
    mean = total / count
    model.target_mean.copy_(mean)
    model.target_std.copy_((squares / count - mean.square()).clamp(min=LEAST_VARIANCE).sqrt())
