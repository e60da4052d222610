"""The frozen classifier that fine-tuning may learn from: its answers about the clips of a student.

Hinton et al., Distilling the knowledge in a neural network, 2015, arXiv 1503.02531. As in Beyer et al.,
Knowledge distillation: a good teacher is patient and consistent, 2021, arXiv 2106.05237, the teacher sees the
pixels that the student sees.

B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from everest.checkpoints.load import open_model
from everest.checkpoints.teacher import absolute_teacher, as_seen_by, require_channels
from everest.config.heads import Head, Heads
from everest.config.settings import Recipe
from everest.errors import CheckpointError, first_names
from everest.models.classifier import VideoClassifier
from everest.models.spec import ModelSpec
from everest.system.weights import state_hash
from everest.tokenizer.feature_targets import TeacherUse
from everest.video.pixels import PixelStatistics

Names = tuple[str, ...] | None  # of the classes of the only head; None: only indices are known


class FrozenClassifier(nn.Module):
    """A frozen classifier that answers about the clips of a student, from the tokens that it selects itself.

    Frames are resized to the teacher's size. If it takes fewer frames, it gets every second, third … one.

    Args:
        pixels: of the student's clips.
        names: of the teacher's classes.
    """

    order: Tensor  # (outputs,) int64: the teacher's output for each of the student's
    scale: Tensor  # (outputs,) float32: of a number, from the teacher's standardized values to the student's
    shift: Tensor  # (outputs,) float32

    def __init__(
        self, use: TeacherUse, classifier: VideoClassifier, pixels: PixelStatistics, names: Names
    ) -> None:
        super().__init__()
        self.use = use
        self.classifier = classifier.requires_grad_(False).eval()
        self.pixels = pixels
        self.names = names
        outputs = classifier.num_classes
        self.register_buffer("order", torch.arange(outputs), persistent=False)
        self.register_buffer("scale", torch.ones(outputs), persistent=False)
        self.register_buffer("shift", torch.zeros(outputs), persistent=False)

    def match(self, heads: Heads, names: Names) -> None:
        """Give the answers in the order of a student's outputs, and numbers in its standardization.

        Args:
            names: of the student's classes.
        Raises:
            CheckpointError: the teacher has other heads or classes.
        """
        own, places = self.classifier.heads, {}
        start = 0
        for head in own:
            places[head.name] = (head, start)
            start += head.outputs
        if places.keys() != {head.name for head in heads}:
            taught, expected = (", ".join(head.name or "only one" for head in each) for each in (own, heads))
            raise CheckpointError(
                f"{self.use.name}: the teacher has other heads ({taught}) than the recipe ({expected})"
            )
        order, scale, shift = [], [], []
        for head in heads:
            taught, start = places[head.name]
            order += [start + place for place in self._places(taught, head, names)]
            scale += [taught.std / head.std] * head.outputs
            shift += [(taught.mean - head.mean) / head.std] * head.outputs
        self.order = torch.tensor(order)
        self.scale, self.shift = torch.tensor(scale), torch.tensor(shift)

    def _places(self, taught: Head, head: Head, names: Names) -> list[int]:
        """For each class of the student's head its place in the teacher's."""
        title = f"head {head.name}: " if head.name else ""
        if taught.task != head.task:
            raise CheckpointError(
                f"{self.use.name}: {title}the teacher answers {taught.task}, the labels are {head.task}"
            )
        if names is not None and self.names is not None:
            if set(names) != set(self.names):
                only = [f"'{name}'" for name in (*self.names, *names) if name not in {*names} & {*self.names}]
                raise CheckpointError(
                    f"{self.use.name}: the teacher has other classes than data.train: {first_names(only)}; "
                    "train it with the same classes"
                )
            return [self.names.index(name) for name in names]
        if taught.outputs != head.outputs:
            raise CheckpointError(
                f"{self.use.name}: {title}the teacher has {taught.outputs} classes, the labels {head.outputs}"
            )
        return list(range(head.outputs))

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Logits (B, outputs) float32 of clips (B, C, T, H, W), bytes or normalized by `pixels`."""
        spec = self.classifier.spec
        clips = as_seen_by(
            self.classifier, frames[:, :, :: frames.size(2) // spec.frames], self.pixels, size=spec.size
        )
        logits = self.classifier(clips).float()[:, self.order]
        return logits * self.scale + self.shift


def with_absolute_teacher(recipe: Recipe) -> Recipe:
    """Make the path of the teacher of fine-tuning absolute.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    stage = recipe.finetune
    if stage.teacher is None:
        return recipe
    return replace(recipe, finetune=replace(stage, teacher=absolute_teacher(stage.teacher)))


def open_classifier_teacher(
    recipe: Recipe, *, notify: Callable[[str], None] = lambda text: None
) -> FrozenClassifier:
    """Open the teacher of a recipe's fine-tuning, on the CPU.

    Args:
        notify: receives a notice if the teacher was trained on frames at other distances than it sees.
    Raises:
        CheckpointError: no such checkpoint, it is damaged or no classifier, or takes clips that the
            recipe's cannot become.
    """
    name = recipe.finetune.teacher
    assert name is not None
    with torch.random.fork_rng(devices=[]):  # the model's initial weights do not depend on the teacher
        opened = open_model(name, kind="classifier", check=lambda spec: _require_clips(recipe, spec, name))
    spec, classifier = opened.spec, opened.transformer
    assert isinstance(spec, ModelSpec)
    assert isinstance(classifier, VideoClassifier)
    problem = _other_distance(recipe, spec, opened.weights.clip)
    if problem is not None:
        notify(problem)
    use = TeacherUse(
        name=name,
        sha256=state_hash(opened.weights.tensors),
        width=classifier.num_classes,
        settings=replace(spec, teacher=None).dump(),
    )
    return FrozenClassifier(use, classifier, recipe.data.pixels, opened.weights.classes)


def _require_clips(recipe: Recipe, spec: ModelSpec, name: str) -> None:
    """Raise CheckpointError if a recipe's clips cannot become clips of the teacher `spec`."""
    data = recipe.data
    require_channels(recipe, spec, name)
    if data.frames % spec.frames:
        raise CheckpointError(
            f"{name}: the teacher takes clips of {spec.frames} frames, and {data.frames} are no multiple; "
            f"set data.frames={spec.frames}"
        )
    (height, width), size = spec.size, data.frame_size
    if height * size[1] != width * size[0]:
        raise CheckpointError(
            f"{name}: the teacher takes frames of {height} x {width} pixels, the recipe's are {size[0]} x "
            f"{size[1]}, which have other proportions; set data.size=[{height},{width}]"
        )


def _other_distance(recipe: Recipe, spec: ModelSpec, clip: dict[str, Any] | None) -> str | None:
    """A notice if the frames that the teacher sees have other distances than those it was trained on."""
    stage, every = recipe.finetune, recipe.data.frames // spec.frames
    if clip is None or stage.sampling != "dense" or clip.get("sampling") != "dense":
        return None
    trained, seen = (clip["stride"], clip.get("fps")), (every * stage.stride, recipe.data.fps)
    if trained == seen or (trained[1] and seen[1] and trained[0] / trained[1] == seen[0] / seen[1]):
        return None
    shown = [
        f"every {stride} frames {'of the video' if fps is None else f'at {fps:g} per second'}"
        for stride, fps in (trained, seen)
    ]
    return f"finetune.teacher: was trained on a frame {shown[0]}, and sees one {shown[1]}"
