"""Validates LVMAE's tokenizer during and after training: its report, and the statistics of its targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import torch

from everest.checkpoints.load import open_model
from everest.config.settings import Recipe, TrainSettings
from everest.data.bad_videos import refuse_too_many
from everest.data.clip_dataset import ClipDataset
from everest.data.randomness import Purpose, seed_at
from everest.engine.training import Training
from everest.errors import RecipeError
from everest.figures.rows import draw_examples
from everest.system.files import write_text
from everest.system.run_folder import REPORT_IMAGE
from everest.system.text import json_text, load_json, nonfinite_as_null
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.tokenizer.clips import held_out_dataset, spaced_clips
from everest.tokenizer.report import TokenizerReport, measure_tokenizer, scalar_metrics, scorer_warnings
from everest.tokenizer.spec import tokenizer_spec
from everest.video.pixels import in_unit_range

TARGET_CLIPS: Final = 1024  # heuristic: training clips for the mean and std of the targets
HELD_OUT_LISTS: Final = ("val", "test")  # keys of `data`


class TokenizerValidator:
    """Measures a run's tokenizer on held-out videos at some validation steps and at the end."""

    def __init__(self, training: Training, recipe: Recipe, dataset: ClipDataset) -> None:
        self._training = training
        self._context = training.context
        self._training_dataset = dataset  # workers resize its frames
        self._key, self._dataset = held_out_dataset(recipe)  # _key: key of the held-out list in `data`
        if self._key not in HELD_OUT_LISTS:
            text = "no list in data.val or data.test: the report is of videos that are trained on"
            self._context.notice(text)
        with torch.random.fork_rng():
            torch.manual_seed(seed_at(recipe.train.seed, Purpose.WEIGHTS))
            # The scorer with its initial weights, for comparison.
            self.untrained = tokenizer_spec(recipe).build().scorer.to(self._context.accelerator.device)

    def resume(self) -> None:
        """Validate a resumed run if it stopped before its validation."""
        training = self._training
        validated = {row["step"] for row in self._context.run_folder.rows() if "psnr_own" in row}
        if self.is_due(training.steps_done) and training.steps_done not in validated:
            self.validate()

    def is_due(self, step: int) -> bool:
        """Whether the weights are validated after `step` updates: at some of the validation steps."""
        plan = self._training.plan
        validation, validations = step // plan.validation_steps, plan.steps // plan.validation_steps
        is_due = validation % max(1, validations // 20) == 0  # heuristic: about 20 in a run
        return 0 < step < plan.steps and plan.is_validated(step) and is_due

    def validate(self) -> None:
        """Log the measures of the current weights, and warn of a collapse."""
        training = self._training
        model = training.trained_model
        if not self._context.accelerator.is_main_process:
            return
        assert isinstance(model, AdaptiveTokenizer)
        metrics = self._measure(model).metrics
        training.model.train()
        training.step_log.write({"step": training.steps_done, **scalar_metrics(metrics)})
        self._show(training.steps_done, metrics["psnr"], scorer_warnings(metrics))

    def _measure(self, model: AdaptiveTokenizer) -> TokenizerReport:
        training = self._training
        report = measure_tokenizer(model, self._dataset, self.untrained, settings=training.recipe.train)
        for path, reason in report.skipped:
            self._context.notice(f"data.{self._key} skips {path}: {reason}")
        total = len(report.skipped) + report.metrics.get("clips", 0)
        refuse_too_many(report.skipped, requested=total, max_bad=training.recipe.data.max_bad)
        return report

    def _show(self, step: int, psnr: dict[str, float], warnings: Iterable[str]) -> None:
        self._context.notice(
            f"step {step}: PSNR {psnr['own']:.2f} dB from the kept tokens, {psnr['random']:.2f} from as many "
            f"random ones, {psnr['all']:.2f} from all"
        )
        for text in warnings:
            self._context.warn(text)

    def finish(self) -> None:
        """Add the mean and std of the targets to the weights, then write report.json and its image.

        The weights are read from disk: a finished run whose states were removed can be validated again.
        """
        training = self._training
        run = self._context.run_folder
        if not self._context.accelerator.is_main_process:
            return
        loaded = open_model(run.weights, kind="tokenizer")
        weights = loaded.weights
        model = loaded.module.to(self._context.accelerator.device)
        assert isinstance(model, AdaptiveTokenizer)
        document = None
        if (model.target_std == 1).all():  # the value of new weights
            set_target_statistics(model, self._training_dataset, train=training.recipe.train)
            replace(weights, tensors=model.state_dict()).save(run.weights)
        elif run.report.is_file():
            try:
                document = load_json(run.report, fix="validating again")
            except RecipeError as error:
                self._context.notice(str(error))
        if not document:
            report = self._measure(model)
            document = {
                "step": weights.step,
                "videos": self._key,
                "held_out": self._key in HELD_OUT_LISTS,
                "skipped": len(report.skipped),
                **report.metrics,
                "target_mean": model.target_mean.tolist(),
                "target_std": model.target_std.tolist(),
            }
            draw_examples(run.path / REPORT_IMAGE, report.examples)
            training.step_log.write({"step": weights.step, **scalar_metrics(report.metrics)})
            write_text(run.report, json_text(nonfinite_as_null(document), indent=2))
        self._show(document["step"], document["psnr"], document["warnings"])


@torch.inference_mode()
def set_target_statistics(model: AdaptiveTokenizer, dataset: ClipDataset, *, train: TrainSettings) -> None:
    """Set the mean and std of every code dimension, over all tokens of up to `TARGET_CLIPS` training clips.

    All tokens count, because each can be a target of the autoencoder. The mean is not 0, because an even
    number of levels is not symmetric.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in spaced_clips(dataset, TARGET_CLIPS, settings=train):
        frames = in_unit_range(batch.frames.flatten(0, 1).to(model.target_mean.device))
        values = model.encode(frames).values.flatten(0, 1).double().cpu()  # (tokens, D)
        count += len(values)
        total = total + values.sum(dim=0)
        squares = squares + values.square().sum(dim=0)
    mean = total / count
    model.target_mean.copy_(mean)
    # The minimum variance keeps targets finite if a code dimension has collapsed.
    model.target_std.copy_((squares / count - mean.square()).clamp(min=1e-6).sqrt())
