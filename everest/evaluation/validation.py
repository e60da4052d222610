"""Validates a classifier during fine-tuning on data.val; keeps the best weights and may end the run early."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from statistics import fmean

import numpy as np

from everest.config.heads import METRIC_OF_TASK, MULTI_LABEL, best_metric
from everest.data.clip_dataset import ClipDataset
from everest.engine.health import ValidationHistory, has_diverged
from everest.engine.training import Training
from everest.errors import SMALLER_UPDATES, DivergedError
from everest.evaluation.evaluation import evaluate_views
from everest.lists.sample import ListSize
from everest.metrics.head_metrics import choose_thresholds, compute_metrics, find_chance, mean_loss
from everest.metrics.names import LOGGED_METRICS, METRICS, value_text
from everest.metrics.predictions import refuse_too_many_skipped
from everest.models.classifier import VideoClassifier
from everest.system.accelerator import make_runtime
from everest.system.events import ignore_event
from everest.system.run_folder import METRICS_FILE, RESTORE_FIX, Row
from everest.system.text import damage_errors, plural


class Validator:
    """Validates the model of a fine-tuning run at its validation steps; each process has a Validator.

    It keeps the weights with the best metric (`finetune.best`), and ends the run by `finetune.patience`.

    Args:
        dataset: one center view of each video of data.val.
        class_names: the classes of a single head, if they are known.
        guessing_loss: the training loss of guessing.
    """

    def __init__(
        self,
        training: Training,
        dataset: ClipDataset,
        class_names: Sequence[str] | None,
        *,
        guessing_loss: float,
    ) -> None:
        model, settings = training.trained_model, training.recipe.finetune
        assert isinstance(model, VideoClassifier)
        self._training = training
        self._context = training.context
        self._model = model
        self._dataset = dataset
        self._patience = settings.patience
        self._guessing_loss = guessing_loss
        self._validations = ValidationHistory([], best_metric(model.heads, settings.best, class_names))

    def resume(self) -> None:
        """Read the validations of a resumed run, and validate if the run stopped before it did."""
        training = self._training
        with damage_errors(self._context.run_folder.path / METRICS_FILE, fix=RESTORE_FIX):
            self._validations = ValidationHistory(self._context.run_folder.rows(), self._validations.metric)
        validated = {0, *(row["step"] for row in self._validations.rows)}
        done = training.steps_done
        if training.plan.is_validated(done) and training.has_weights and done not in validated:
            self._validate()
        self._end_early()

    def validate_if_due(self, rows: Iterable[Row]) -> None:
        """Add new rows of metrics.jsonl, and validate the model if a validation is due."""
        for row in rows:
            self._validations.add(row)
        if self._training.plan.is_validated(self._training.steps_done):
            self._validate()
            self._end_early()

    def _end_early(self) -> None:
        """End the run if its last `finetune.patience` validations brought no improvement."""
        training = self._training
        patience = self._patience
        if training.has_weights and patience is not None and self._validations.since_best >= patience:
            training.end(f"step {training.steps_done}: no improvement in the last {patience} validations")

    def _validate(self) -> None:
        """Measure all validation videos, log the metrics, and keep new best weights."""
        training = self._training
        validations = self._validations
        step = training.steps_done
        runtime = make_runtime(self._context.accelerator)
        predictions = evaluate_views(
            self._model, self._dataset, runtime, train=training.recipe.train, emit=ignore_event
        )
        training.model.train()
        for path, reason in predictions.skipped:
            self._context.notice(f"validation skips {path}: {reason}")
        refuse_too_many_skipped(predictions, training.recipe.data.max_bad)
        if not np.isfinite(predictions.outputs).all():
            raise DivergedError(
                f"step {step}: the outputs for the validation videos are not finite; {SMALLER_UPDATES}"
            )
        row: Row = {"step": step}
        metrics = compute_metrics(predictions)
        if "action_top1" in metrics:
            row["val_top1"] = metrics["action_top1"]  # fraction of videos whose heads are all right
        for name, values in metrics.get("heads", {}).items():
            row |= {f"val_{name}_{key}": values[key] for key in METRIC_OF_TASK.values() if key in values}
        row |= {f"val_{name}": metrics[name] for name in LOGGED_METRICS if metrics.get(name) is not None}
        row["val_loss"] = mean_loss(predictions)
        if validations.add(row):  # kept before the log: a row without weights cannot be repaired
            heads = []
            for predicted in predictions.by_head().values():
                head = predicted.head
                if head.task == MULTI_LABEL:
                    chosen = tuple(choose_thresholds(predicted.means, predicted.labels))
                    head = replace(head, chosen_thresholds=chosen)
                heads.append(asdict(head))
            training.state.save_weights(self._context.run_folder.best, step, {"heads": heads})
        training.step_log.write(row)
        event = {
            "event": "validation",
            "epoch": training.plan.epoch(step - 1),
            "epochs": training.plan.epochs,
            "steps": training.plan.steps,
            "train_loss": validations.train_losses[-1],
            "metric": validations.metric,
            "chance": find_chance(validations.metric, self._model.heads, predictions.labels),
            "majority": find_chance("majority_top1", self._model.heads, predictions.labels),
            "best": validations.best_value,
            "best_step": (validations.best or row)["step"],
        }
        self._context.emit({**event, **row})
        self._context.warn_once("overfitting", validations.overfitting_warning(self._guessing_loss))

    def summary(self) -> str | None:
        """Describe the best metric, its weights, and what to try; None without a best validation."""
        training = self._training
        validations = self._validations
        if validations.best is None:
            return None
        name = validations.metric
        metric = METRICS[name]
        best = validations.best_value
        labels = [sample.labels for sample in self._dataset.samples]
        chance, majority = (find_chance(key, self._model.heads, labels) for key in (name, "majority_top1"))
        reference = "chance"
        if name == "top1" and majority is not None and chance is not None and majority > chance:
            reference, chance = "most frequent class", majority
        shown = "" if chance is None else f"; {reference} {value_text(name, chance)}"
        size = ListSize.of(self._dataset.samples)
        count = plural(size.num_samples, size.noun)
        text = (
            f"best validation {metric.title} {value_text(name, best)} on {count} "
            f"(one center view each{shown}) after step {validations.best['step']} of {training.plan.steps}; "
            f"eval, predict, extract and export use these weights, {self._context.run_folder.best}"
        )
        if best is None or chance is None:
            return text
        # Heuristic: a model in the first tenth of the way from chance to a perfect metric has learned little.
        limit = chance + 0.1 * ((100 if metric.is_percent else 0) - chance)
        if (best < limit) if metric.is_percent else (best > limit):
            losses = training.step_log.losses
            diverged = bool(losses) and has_diverged(fmean(losses), self._guessing_loss)
            advice = SMALLER_UPDATES if diverged else "check the labels, or try more steps"
            text += f". That is hardly better than chance: {advice}"
        return text
