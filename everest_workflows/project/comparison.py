"""The comparison of a project's candidates on its lists, or on folds, and the model that is selected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from everest import stages
from everest.checkpoints.describe import save_classifier
from everest.checkpoints.init import find_init, read_init
from everest.config.heads import Alarm, Head
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.lists.sources import read_source
from everest.metrics.predictions import label_array
from everest.models.classifier import Classifier
from everest.models.clip_spec import ModelSpec
from everest.models.mean import MeanClassifier
from everest.probes.classifiers import Labels
from everest.system.events import Emit, heading, notice
from everest.system.run_folder import RECIPE_FILE, RunFolder
from everest.system.text import plural
from everest.system.types import Floats
from everest_workflows.project.alarm_rates import choose_alarm
from everest_workflows.project.candidates import (
    MEAN,
    NETWORK,
    Candidate,
    FeatureTable,
    fill_table,
    make_linear_candidates,
    make_network_candidate,
)
from everest_workflows.project.choice import BestCandidate, average, choose
from everest_workflows.project.feature_kinds import LINEAR, Starts
from everest_workflows.project.request import FEATURES_FOLDER, Project
from everest_workflows.project.result import TestOutputs
from everest_workflows.recordings.project_folder import FINETUNE_FOLDER, MODEL_FOLDER, SELECTED


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The candidates of a project on the lists of its recipe, or of a fold."""

    project: Project
    folder: Path  # of the project
    output: Path  # of the results: the folder of the project, or of the fold
    starts: Starts  # weights that the candidates with an encoder start from
    emit: Emit
    fold: Mapping[str, str] | None = None  # the lists of a fold, by their keys; None: those of the recipe

    @property
    def overrides(self) -> list[str]:
        paths = [f"data.{key}={json.dumps(path)}" for key, path in (self.fold or {}).items()]
        return [*self.project.request.overrides, *paths]

    @property
    def forced(self) -> str | None:
        """The candidate to select by --model; None: the best."""
        return NETWORK if self.project.request.model == NETWORK else None

    @cached_property
    def recipe(self) -> Recipe:
        return load_recipe(self.folder / RECIPE_FILE, overrides=self.overrides)

    @cached_property
    def classes(self) -> Classes:
        data = self.recipe.data
        return Classes.of(read_source(data, "train", labeled=True), data)

    @property
    def head(self) -> Head:
        (head,) = self.classes.heads
        return head

    @cached_property
    def samples(self) -> Mapping[str, Sequence[Sample]]:
        """The samples of each list; empty if the recipe does not name the list."""
        data = self.recipe.data
        listed: dict[str, Sequence[Sample]] = {"train": (), "val": (), "test": ()}
        for key in filter(partial(getattr, data), listed):
            listed[key] = read_source(data, key, labeled=True, classes=self.classes).samples
        return listed

    def train_stage(self, stage: Callable[..., Path], output: Path) -> Path:
        """Run `stages.pretrain` or `stages.finetune` on the lists in a run folder, or resume it there."""
        return stage(
            self.folder / RECIPE_FILE,
            output=output,
            init=self.starts.init,
            overrides=self.overrides,
            overwrite=not RunFolder(output).is_run(),  # a folder without a run may hold a user's files
            emit=self.emit,
        )

    def reading_features(self) -> AbstractContextManager[FeatureTable]:
        """The features of all samples for a block, and for all folds; see `fill_table`."""
        self.emit(heading("features of the linear candidates"))
        samples = {each.video_id: each for listed in self.samples.values() for each in listed}
        folder, all_samples = self.folder / FEATURES_FOLDER, list(samples.values())
        return fill_table(folder, self.recipe, self.classes, self.starts, all_samples, self.emit)

    def compare(self, table: FeatureTable) -> tuple[Classifier, list[Candidate], BestCandidate]:
        """Train the candidates on the training list; returns the model of the best by the validation list.

        Linear candidates also learn from the validation list.
        """
        val = table.readable(self.samples["val"])
        learned = [*table.readable(self.samples["train"]), *val]
        candidates = make_linear_candidates(table, learned, self.head, seed=self.recipe.train.seed)
        if self.project.trains_network and (val or self.forced):
            self.emit(heading("fine-tuning"))
            run = self.train_stage(stages.finetune, self.output / FINETUNE_FOLDER)
            candidates.append(make_network_candidate(run, learned, val))
        labels = label_array([sample.labels[0] for sample in learned], self.head)
        groups = [sample.group_or_path for sample in learned]
        outputs = {candidate.name: candidate.outputs for candidate in candidates}
        choice = choose(outputs, labels, groups, self.head, forced=self.forced)
        alarm = self._choose_alarm(average(outputs, choice.members), labels)
        return self._make_selected(candidates, choice, alarm), candidates, choice

    def compare_folds(
        self, table: FeatureTable, outputs: TestOutputs, chosen_in_folds: Sequence[str]
    ) -> tuple[Classifier, BestCandidate]:
        """Choose a candidate by its outputs for the tests of all folds; returns its model of all videos."""
        by_name = {
            name: np.array(rows, np.float32)
            for name, rows in outputs.outputs.items()
            if name not in (MEAN, SELECTED)
        }
        (head_predictions,) = outputs.predictions(SELECTED, self.head).by_head().values()
        choice = choose(by_name, head_predictions.labels, outputs.groups, self.head, forced=self.forced)
        learned = table.readable(self.samples["train"])
        candidates = make_linear_candidates(table, learned, self.head, seed=self.recipe.train.seed)
        if NETWORK in choice.members:
            self.emit(heading("fine-tuning on all videos"))
            run = self.train_stage(stages.finetune, self.output / FINETUNE_FOLDER)
            candidates.append(make_network_candidate(run, learned, ()))
        alarm = self._choose_alarm(average(by_name, choice.members), head_predictions.labels)
        model = self._make_selected(candidates, choice, alarm)
        if self.forced:
            return model, choice
        times = Counter(chosen_in_folds).items()
        choices = ", ".join(f"{name} {plural(number, 'time')}" for name, number in times)
        reason = f"lowest loss over all folds (the test is of each fold's own choice: {choices})"
        return model, replace(choice, reason=reason)

    def _choose_alarm(self, outputs: Floats, labels: Labels) -> Alarm | None:
        """The alarm of --normal, by outputs (N, C) for samples that the model has not learned from."""
        normal = self.project.request.normal
        if normal is None:
            return None
        return choose_alarm(outputs, labels, self.head, self.classes.names_of_head(self.head), normal)

    def _make_selected(
        self, candidates: Sequence[Candidate], choice: BestCandidate, alarm: Alarm | None
    ) -> Classifier:
        """The model of the chosen candidate; writes it, its recipe and what its encoders started from.

        It knows the recipe with the views that it was made for.
        """
        self.emit(notice(f"best candidate by validation: {choice.name} ({choice.explanation})"))
        members = [candidate for candidate in candidates if candidate.name in choice.members]
        modules = [member.make() for member in members if member.make is not None]
        model = modules[0] if len(modules) == 1 else MeanClassifier.of(modules)
        if alarm is not None:
            model.heads = tuple(replace(head, alarm=alarm) for head in model.heads)
            spec: Any = model.spec  # a dataclass
            model.spec = replace(spec, heads=model.heads)
        recipe = self.recipe
        if not any(member.reads_views for member in members):
            recipe = replace(recipe, eval=replace(recipe.eval, clips=1, crops=1))
        model.recipe, model.class_names = recipe, self.classes.names
        kinds = {kind for name in choice.members for kind in LINEAR.get(name, ())}
        init = self.starts.adapted if "adapted" in kinds else self.starts.init
        origin = None
        if init is not None and any(isinstance(part, ModelSpec) for part in model.spec.parts.values()):
            origin = read_init(find_init(init, output=None, overwrite=False), resumed=None).origin
        model.eval()
        model.file = save_classifier(
            self.output / MODEL_FOLDER, model, recipe, class_names=model.class_names, origin=origin
        )
        return model
