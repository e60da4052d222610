"""Probes during pre-training: measures of the encoder's features, and the loss on held-out videos.

A probe does not change the training: it uses no random generator of the run, and restores the model. The
processes share the videos, in passes that do not depend on the number of processes, and the main process
computes the measures.

R videos per pass, N videos, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from everest.config.settings import Recipe
from everest.data.bad_videos import refuse_too_many
from everest.data.clip_dataset import Batch, ClipDataset
from everest.data.loader import choose_workers, copy_to_device, read_batches
from everest.data.randomness import Purpose, seed_at
from everest.data.recipe_clips import center_views, make_dataset
from everest.data.views import PretrainViews
from everest.engine.training import Training
from everest.errors import DivergedError
from everest.inference.opened_model import encode_clips
from everest.lists.classes import Classes
from everest.lists.reading import SampleList
from everest.lists.sample import choose_evenly
from everest.lists.sources import read_source
from everest.models.base import PretrainingModel
from everest.models.clip_spec import ModelSpec
from everest.models.mae import AutoencoderOutput, MaskedAutoencoder
from everest.models.partial import merged
from everest.models.view_model import ViewModel
from everest.probes.classifiers import LabeledFeatures, measure_knn_accuracy, measure_precision
from everest.probes.collapse import (
    FEWEST_HELD_OUT,
    MOST_HELD_OUT,
    MOST_VIDEOS,
    feature_std,
    find_new_warnings,
    plan_probes,
    rank_me,
    select_probe_rows,
)
from everest.probes.linear import cross_validate
from everest.system.accelerator import decide_on_main
from everest.system.run_folder import Row
from everest.system.types import Floats
from everest.system.weights import gather_tensor

VIDEOS_PER_PASS: Final = 16  # heuristic: videos per forward pass; all of their tokens are encoded
LABELED_VALUES: Final = ("probe_knn", "probe_linear", "probe_retrieval", "probe_chance")  # need labels


class _PassResult(NamedTuple):
    """The result of one pass in one process."""

    number: int
    videos: list[int]  # indices of the readable videos in the list
    value: Any  # computed from the readable videos; None without any
    failed: list[tuple[str, str]]  # path and reason of each unreadable video


class Prober:
    """Probes the model of a pre-training run as `pretrain.probe` states; each process has a Prober.

    The videos are those of `pretrain.probe.list`, else some of data.val, else some of the training videos.
    They are the same at every probe.
    """

    def __init__(self, training: Training, recipe: Recipe, spec: ModelSpec, dataset: ClipDataset) -> None:
        settings = recipe.pretrain.probe
        plan = training.plan
        self.rows: list[Row] = []  # rows of all probes so far, including earlier parts of a resumed run
        self._training = training
        self._context = training.context
        self._metric = settings.metric  # "knn", or "linear" for both probes
        self._spec = spec  # builds an unsharded copy of a sharded model
        self._steps = plan_probes(plan.steps, every=settings.every, validation_steps=plan.validation_steps)
        self._held_out: ClipDataset | None = None  # some of data.val, with masks as in training
        if recipe.data.val is not None:
            views = dataset.make_views  # views as in training; workers resize them
            assert isinstance(views, PretrainViews)
            views = views if views.are_compared else replace(views, views_per_decode=1)
            listed = read_source(recipe.data, "val", labeled=False)
            dataset = make_dataset(recipe, listed, views, num_noise=dataset.num_noise)
            self._held_out = replace(dataset, samples=choose_evenly(dataset.samples, MOST_HELD_OUT))
        self._classes: Classes | None = None  # classes of `pretrain.probe.list`
        if settings.list is None:
            samples = choose_evenly(list(dict.fromkeys(dataset.samples)), MOST_VIDEOS)
            listed = SampleList(samples=samples, class_names=None)
        else:
            data = replace(recipe.data, train=settings.list)
            listed = read_source(data, "train", labeled=True)
            self._classes = Classes.of(listed, data)
        self._dataset = make_dataset(recipe, listed, center_views(recipe))
        num_held_out = 0 if self._held_out is None else len(self._held_out)
        self._sizes = {"steps": plan.steps, "videos": len(self._dataset), "held_out": num_held_out}
        self.watches_loss = num_held_out >= FEWEST_HELD_OUT  # whether a loss that does not fall is reported

    def resume(self) -> None:
        """Read the probes that a resumed run has logged, and make a probe that is missing."""
        context = self._context
        self.rows = decide_on_main(context.accelerator, lambda: select_probe_rows(context.run_folder.rows()))
        self.probe_if_due()

    def probe_if_due(self) -> None:
        """Probe the model after the latest update, if a probe is due and not logged yet."""
        training = self._training
        step = training.steps_done
        rows = self.rows
        is_due = training.has_weights and step in self._steps
        if not is_due or any(row["step"] == step for row in rows):
            return
        if step:
            training.save()  # saved first: a probe may take long, and may fail
        row: Row = {"step": step, **self._measured_row()}
        training.step_log.write(row)
        rows.append(row)
        event = {
            "event": "probe",
            "epoch": training.plan.epoch(max(step - 1, 0)),
            "epochs": training.plan.epochs,
            "steps": training.plan.steps,
            "rank_most": min(MOST_VIDEOS, len(self._dataset), self._spec.model.backbone_size.width),
            "first": rows[0],
        }
        self._context.report({**event, **row})
        warnings = find_new_warnings(rows, **self._sizes)
        # The model predicts nothing between views, so the loss may still fall.
        ends = step < training.plan.steps and isinstance(training.trained_model, ViewModel)
        collapse = warnings.pop("collapse", None) if ends else None
        for warning in warnings.values():
            self._context.warn(warning)
        if collapse is not None:
            raise DivergedError(f"{collapse}; the same command resumes the run nevertheless")

    def _measured_row(self) -> Row:
        """Compute the values of a row of metrics.jsonl. All processes must call this at the same step."""
        training = self._training
        started = time.monotonic()
        with self._evaluation_mode() as model:

            def pooled(batch: Batch) -> Floats:
                """Pool all encoded tokens to their mean and change over time: (R, 4D)."""
                frames = model.pixels.normalize(batch.frames.flatten(0, 1))
                return encode_clips(model, frames, None).pooled.float().cpu().numpy()

            encoded = self._run_passes(self._dataset, pooled)
            loss, mean_loss = self._held_out_losses(model)
        features = np.concatenate([part.value for part in encoded])  # (N, 4D)
        if not np.isfinite(features).all():
            raise DivergedError(
                f"step {training.steps_done}: the features of the probe are not finite; lower base_lr or set "
                "train.clip_grad"
            )
        samples = [self._dataset.samples[place] for part in encoded for place in part.videos]

        def measures() -> Row:
            """Measure the readable videos; a value is None without labels, or if a probe is impossible."""
            # The thresholds for a collapse were found for the spread of mean features, so these are measured.
            spread = list(choose_evenly(range(len(features)), MOST_VIDEOS))
            spread_features = features[spread, : self._spec.model.backbone_size.width]
            row: Row = dict.fromkeys(LABELED_VALUES)
            row |= {"rank_me": rank_me(spread_features), "feature_std": feature_std(spread_features)}
            if self._classes is not None:
                known = LabeledFeatures.of(features, samples)
                count = self._classes.num_outputs
                row["probe_knn"] = measure_knn_accuracy(known, count)
                if self._metric == "linear":
                    row["probe_linear"] = cross_validate(known, count, seed=training.recipe.train.seed)
                row["probe_retrieval"] = measure_precision(known, known)
                row["probe_chance"] = 100 * float(np.bincount(known.labels).max()) / len(samples)
            return row

        row = decide_on_main(self._context.accelerator, measures)
        row |= {"heldout_loss": loss, "heldout_mean_loss": mean_loss}
        return row | {"probe_seconds": round(time.monotonic() - started, 3)}

    def _held_out_losses(self, model: PretrainingModel) -> tuple[float | None, float | None]:
        """Return the pre-training loss, and the loss of predicting the mean of all targets; None without any.

        Each process keeps only the targets of its passes, as they may take gigabytes.
        """
        targets: list[Tensor] = []  # (M, P) targets of the M tokens of each pass of this process

        def loss(batch: Batch) -> float:
            out = model(batch.frames.flatten(0, 1), noise=batch.noise.flatten(0, 1))
            if isinstance(out, AutoencoderOutput) and out.prediction.shape == out.target.shape:  # not classes
                targets.append(out.target[out.selection.scored()].float().cpu())
            return out.loss.item()

        passes = [] if self._held_out is None else self._run_passes(self._held_out, loss)
        if isinstance(model, ViewModel):
            passes = [part for part in passes if len(part.videos) > 1]  # a single video is compared with none
        if not passes:
            return None, None
        mean_loss = np.average([part.value for part in passes], weights=[len(part.videos) for part in passes])
        sums = gather_object([(values.sum(dim=0, dtype=torch.float64), len(values)) for values in targets])
        if not sums or not isinstance(model, MaskedAutoencoder):
            return float(mean_loss), None
        mean = torch.stack([total for total, _ in sums]).sum(dim=0) / sum(count for _, count in sums)  # (P,)
        losses = []
        for values in targets:
            scored = torch.ones(1, len(values), dtype=torch.bool)
            predicted = mean.float().expand_as(values)[None]
            losses.append((model.targets.loss(predicted, values[None], scored).item(), len(values)))
        of_passes, counts = zip(*gather_object(losses), strict=True)
        return float(mean_loss), float(np.average(of_passes, weights=counts))

    def _run_passes(self, dataset: ClipDataset, compute: Callable[[Batch], Any]) -> list[_PassResult]:
        """Compute the passes of a list, shared among the processes; each gets all results, in order."""
        accelerator, settings = self._context.accelerator, self._training.recipe.train
        firsts = range(0, len(dataset), VIDEOS_PER_PASS)
        passes = [range(first, min(first + VIDEOS_PER_PASS, len(dataset))) for first in firsts]
        numbers = range(len(passes))[accelerator.process_index :: accelerator.num_processes]
        results: list[_PassResult] = []
        if numbers:
            order = [[(0, place) for place in passes[number]] for number in numbers]
            workers = min(choose_workers(dataset, order, settings.workers), len(order) - 1)
            loaded = read_batches(dataset, order, workers=workers, timeout=settings.data_timeout)
            for number, batch in zip(numbers, loaded, strict=True):
                rows = [row for row, failed in enumerate(batch.failed_reads) if not failed]
                value = None
                if rows:
                    moved = copy_to_device(batch, accelerator.device)
                    value = compute(moved._replace(frames=moved.frames[rows], noise=moved.noise[rows]))
                reasons = [first for first, *_ in filter(None, batch.failed_reads)]
                results.append(_PassResult(number, [passes[number][row] for row in rows], value, reasons))
        results = sorted(gather_object(results), key=lambda part: part.number)
        skipped = [reason for part in results for reason in part.failed]
        for path, reason in skipped:
            self._context.warn_once(f"probe {path}", f"the probe skips {path}: {reason}")
        refuse_too_many(skipped, requested=len(dataset), max_bad=self._training.recipe.data.max_bad)
        return [part for part in results if part.videos]

    @contextmanager
    def _evaluation_mode(self) -> Iterator[PretrainingModel]:
        """Yield the trained model, not sharded, in evaluation mode; restore the modes afterwards."""
        training = self._training
        trained = training.trained_model
        device = self._context.accelerator.device
        modes = {module: module.training for module in trained.modules()}
        # Compiled blocks would be compiled again for each other number of tokens.
        eager = torch.compiler.set_stance("force_eager") if training.recipe.train.compile else nullcontext()
        fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with fork, torch.no_grad(), self._context.accelerator.autocast(), eager:
            torch.manual_seed(seed_at(training.recipe.train.seed, Purpose.PROBE))
            model = trained
            if training.recipe.train.shard == "full":  # shards cannot run alone
                tensors = {name: gather_tensor(tensor) for name, tensor in trained.state_dict().items()}
                model = self._spec.build()
                model.load_state_dict(merged(trained, tensors))
                model.to(device)
                if isinstance(model, MaskedAutoencoder) and isinstance(trained, MaskedAutoencoder):
                    model.targets = trained.targets  # the tensors do not include a teacher
            assert isinstance(model, PretrainingModel)
            try:
                yield model.eval()
            finally:
                for module, mode in modes.items():
                    module.training = mode
