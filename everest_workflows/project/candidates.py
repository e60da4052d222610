"""What could classify the videos of a project: simple models beside the fine-tuned network, and the best.

A linear candidate is a linear layer on features that are not trained, of a kind or of several (see
`feature_kinds.py`). The features are of the center view of each video, read once for all candidates, lists
and folds. Candidates are compared on videos whose groups they have not seen; the best one becomes the model
of the project.

N videos, F features of a candidate, C outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from statistics import mean
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everest.checkpoints.describe import load_model
from everest.config.heads import MULTI_LABEL, Head
from everest.config.settings import Recipe
from everest.errors import DataError
from everest.inference.jobs import add_rows
from everest.inference.opened_model import OpenedModel
from everest.inference.pieces import PieceModel
from everest.inference.videos import Batching, compute_over_videos
from everest.inference.windows import Unreadable
from everest.lists.classes import Classes
from everest.lists.sample import Sample
from everest.metrics.head_metrics import choose_thresholds
from everest.metrics.predictions import label_array
from everest.models.classifier import Classifier, VideoClassifier
from everest.models.clip_spec import ModelSpec
from everest.models.mean import MeanClassifier
from everest.probes.linear import (
    DEFAULT_STRENGTH,
    STRENGTHS,
    LinearModel,
    cross_predict,
    fit_linear,
    make_group_splits,
)
from everest.profiling.timing import measure_reading, open_stage_dataset
from everest.system.compute import time_calls
from everest.system.events import Emit, ignore_event
from everest.system.parts import open_parts
from everest.system.types import Floats
from everest.video.reader import video_info
from everest_workflows.project.feature_kinds import FEATURES, LINEAR, SIZE_RATE, LinearModule, Starts
from everest_workflows.project.result import NETWORK

MEAN: Final = "mean"  # the mean of two candidates
MAX_SIZES: Final = 64  # heuristic: the most frequent pairs of frame size and rate are told apart
FEATURE_PASSES: Final = 4  # default: timed passes; the first is slower and does not count
READ_BATCH: Final = 8  # videos in a forward pass; heuristic: small on a CPU, enough for a GPU


def _choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


Predict = Callable[[Sequence[Sample]], dict[str, NDArray[np.float32]]]  # outputs (C,) of readable samples


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model, and its outputs for samples of groups that it has not seen."""

    name: str
    make: Callable[[], Classifier] | None  # None: never selected
    outputs: Floats  # (N, C); nan for samples that it has learned from
    predict: Predict  # of other samples
    reads_views: bool = False  # whether it was made for the views of an evaluation, not the center view alone


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """The features of all readable samples of a project, of each kind."""

    modules: Mapping[str, LinearModule]
    rows: Mapping[str, int]  # of the readable samples, by their ids
    features: Mapping[str, Floats]  # (rows, F) of each kind, and of SIZE_RATE if videos differ in them
    unreadable: Mapping[str, str] = field(default_factory=dict)  # reasons, by the ids of the other samples

    def readable(self, samples: Sequence[Sample]) -> list[Sample]:
        return [sample for sample in samples if sample.video_id in self.rows]

    @property
    def candidates(self) -> dict[str, tuple[str, ...]]:
        """The rows of LINEAR whose kinds of features there are."""
        return {name: kinds for name, kinds in LINEAR.items() if all(kind in self.modules for kind in kinds)}

    def of(self, name: str, samples: Sequence[Sample]) -> Floats:
        """The features (N, F) of a row of LINEAR, or of SIZE_RATE, for readable samples."""
        rows = [self.rows[sample.video_id] for sample in samples]
        return np.concatenate([self.features[kind][rows] for kind in LINEAR.get(name, (name,))], axis=1)

    def model(self, name: str, layer: LinearModel) -> Classifier:
        """The model of a candidate with a fitted layer; of several kinds, the mean of their logits."""
        modules = [deepcopy(self.modules[kind]) for kind in LINEAR[name]]  # each with a head of its own
        weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
        heads = [cast("nn.Linear", module.head) for module in modules]
        parts = weight.split([head.in_features for head in heads], dim=1)
        with torch.no_grad():
            for head, part in zip(heads, parts, strict=True):
                head.weight.copy_(part * len(modules))
                head.bias.copy_(bias)
        return modules[0] if len(modules) == 1 else MeanClassifier.of(modules, mean_of="logits")


@contextmanager
def fill_table(
    folder: Path, recipe: Recipe, classes: Classes, starts: Starts, samples: Sequence[Sample], emit: Emit
) -> Iterator[FeatureTable]:
    """Read the features of samples, for a block.

    The folder keeps them until the block ends, so that a killed call continues where it was.
    """
    made = {name: kind.make(recipe, classes, starts) for name, kind in FEATURES.items()}
    modules = {name: module for name, module in made.items() if module is not None}
    device = _choose_device()
    for module in modules.values():
        module.recipe, module.class_names = recipe, classes.names
        module.to(device)
    opened = {name: OpenedModel.of(module, clips=1, crops=1) for name, module in modules.items()}
    first = next(iter(opened.values()))

    @torch.inference_mode()
    def compute(clips: Tensor) -> dict[str, Tensor]:
        with first.runtime.autocast():
            frames = recipe.data.pixels.normalize(clips.to(device))
            return {name: module.features(frames).float().cpu() for name, module in modules.items()}

    def row_of(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x[0] for name, x in views.items()}

    with open_parts(folder, {"features": [*modules]}) as store:
        pieces = PieceModel.of_feature_vectors(opened) if share_frames(samples) else None
        batching = Batching(batch=READ_BATCH, emit=emit)
        joined = add_rows(store, first, samples, compute, row_of, batching, pieces=pieces)
        assert joined is not None  # this is the only process
        problems = [result.reason if result else None for (result,) in joined.results]
        readable = [sample for sample, text in zip(samples, problems, strict=True) if text is None]
        unreadable = {s.video_id: text for s, text in zip(samples, problems, strict=True) if text is not None}
        if not readable:
            raise DataError(f"none of {len(samples)} videos can be read")
        rows = {sample.video_id: row for row, sample in enumerate(readable)}
        features = {name: np.array(x) for name, x in joined.arrays.items()}
        flags = flag_sizes(readable)
        features |= {SIZE_RATE: flags} if flags.shape[1] > 1 else {}
        yield FeatureTable(modules=modules, rows=rows, features=features, unreadable=unreadable)
        store.remove()


def share_frames(samples: Sequence[Sample]) -> bool:
    """Whether some sample is a part of a video that begins before the sample listed before it ends."""
    return any(
        sample.video == before.video
        and sample.start is not None
        and before.end is not None
        and (before.start or 0.0) < sample.start < before.end
        for before, sample in pairwise(samples)
    )


def flag_sizes(samples: Sequence[Sample]) -> Floats:
    """Whether each video has each of the frequent pairs of frame size and rate: (N, pairs) of 0 and 1."""
    infos = [video_info(sample.video) for sample in samples]
    pairs = [(info.width, info.height, round(info.fps or 0)) for info in infos]
    frequent = [pair for pair, _ in Counter(pairs).most_common(MAX_SIZES)]
    return np.array([[pair == other for other in frequent] for pair in pairs], np.float32)


def measure_clip_seconds(recipe: Recipe, classes: Classes) -> float:
    """The time to read a clip and to compute its features, measured under the present load.

    New weights stand for those that the project starts from.
    """
    device = _choose_device()
    made = [kind.make(recipe, classes, Starts()) for kind in FEATURES.values()]
    modules = [module.to(device).eval() for module in made if module is not None]
    data = recipe.data
    clips = torch.zeros(1, data.channels, data.frames, *data.frame_size, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        _, seconds = time_calls(
            lambda: [module.features(clips).cpu() for module in modules], most=FEATURE_PASSES
        )
    return mean(seconds[1:]) + measure_reading(open_stage_dataset(recipe, "finetune"), workers=1)


def make_linear_candidates(
    table: FeatureTable, samples: Sequence[Sample], head: Head, *, seed: int
) -> list[Candidate]:
    """Fit the head of each linear candidate on samples; its outputs are cross-validated over their groups.

    A model of the size and rate of frames comes last, if videos differ in them.
    """
    labels = label_array([sample.labels[0] for sample in samples], head)
    splits = make_group_splits(labels, [sample.group_or_path for sample in samples], head, seed=seed)
    candidates = []
    for name in (*table.candidates, *({SIZE_RATE} & table.features.keys())):
        features = table.of(name, samples)  # (N, F)
        strength, outputs = DEFAULT_STRENGTH, np.full((len(samples), head.outputs), np.nan, np.float32)
        if splits:
            strength, outputs = cross_predict(features, labels, head, splits, strengths=STRENGTHS)
        (layer,) = fit_linear(features, labels, head, strengths=[strength])

        def predict(
            others: Sequence[Sample], name: str = name, layer: LinearModel = layer
        ) -> dict[str, NDArray[np.float32]]:
            readable = table.readable(others)
            rows = layer.outputs(table.of(name, readable), head)
            return {sample.video_id: row for sample, row in zip(readable, rows, strict=True)}

        make = partial(table.model, name, layer) if name in LINEAR else None
        candidates.append(Candidate(name=name, make=make, outputs=outputs, predict=predict))
    return candidates


def make_network_candidate(run: Path, samples: Sequence[Sample], validation: Sequence[Sample]) -> Candidate:
    """A fine-tuned network, with its outputs for the center view of the validation samples.

    Its weights are the last of the run. The best ones were chosen on the validation list, which flatters
    them: in 25 folds of five sets, they classified 72 % of it correctly, but 61 % of the test videos. The
    last ones reached 61 % and 63 %, with a lower loss on the test of all five.
    """
    module = load_model(run, which="newest")
    assert isinstance(module, VideoClassifier)
    module.to(_choose_device())
    by_video = predict_centers(module, validation)
    nothing = np.full(module.num_classes, np.nan, np.float32)
    outputs = np.stack([by_video.get(sample.video_id, nothing) for sample in samples])
    (head,) = module.heads
    seen = ~np.isnan(outputs[:, 0])  # (N,)
    if head.task == MULTI_LABEL and seen.any():
        labels = label_array([sample.labels[0] for sample in samples], head)
        head = replace(head, chosen_thresholds=tuple(choose_thresholds(outputs[seen], labels[seen])))
        assert isinstance(module.spec, ModelSpec)
        module.heads, module.spec = (head,), replace(module.spec, heads=(head,))
    return Candidate(
        name=NETWORK,
        make=lambda: module,
        outputs=outputs,
        predict=partial(predict_centers, module),
        reads_views=True,
    )


def predict_centers(module: Classifier, samples: Sequence[Sample]) -> dict[str, NDArray[np.float32]]:
    """The outputs (C,) of a classifier for the center view of each readable sample, by its id."""
    model = OpenedModel.of(module, clips=1, crops=1)
    parts = Batching(batch=READ_BATCH).divide(range(len(samples)))
    computed = compute_over_videos(
        model.dataset(samples), parts, model.outputs, train=model.recipe.train, emit=ignore_event
    )
    return {
        sample.video_id: values["outputs"][0].numpy()
        for sample, values in zip(samples, chain.from_iterable(computed), strict=True)
        if not isinstance(values, Unreadable)
    }
