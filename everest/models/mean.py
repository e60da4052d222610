"""The mean of classifiers: one model whose outputs, or logits, are the mean of theirs.

The mean of the logits of linear models is a linear model on their features, joined.

M members, B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from everest.config.heads import MULTI_LABEL, Heads
from everest.config.values import Count, SmallCount, settings
from everest.models.base import ClipModel
from everest.models.classifier import Classifier, ClassifierSpec, by_head
from everest.models.clip_spec import ClipSpec
from everest.models.image_classifier import NO_TOKENS, PixelSpec
from everest.video.pixels import PixelStatistics


@settings
class MeanSpec(ClipSpec):
    """All that is needed to rebuild a `MeanClassifier`."""

    kind: Literal["mean"] = "mean"
    frames: Count
    size: tuple[SmallCount, SmallCount]
    pixels: PixelStatistics
    heads: Heads
    mean_of: Literal["outputs", "logits"] = "outputs"
    members: Annotated[tuple[MemberSpec, ...], Field(min_length=2, max_length=16)]  # our choice

    @property
    def parts(self) -> Mapping[str, ClipSpec]:
        return {
            f"members.{number}.{prefix}": part
            for number, member in enumerate(self.members)
            for prefix, part in member.parts.items()
        }

    @property
    def title(self) -> str:
        return f"mean of the {self.mean_of} of a {' and a '.join(member.title for member in self.members)}"

    def for_clips(
        self, *, frames: int | None = None, size: tuple[int, int] | None = None, strategy: Any = None
    ) -> Self:
        members = tuple(member.for_clips(frames=frames, size=size) for member in self.members)
        return replace(super().for_clips(frames=frames, size=size), members=members)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        shared = []  # without what was chosen on the outputs of one model
        for spec in (self, *self.members):
            heads = [replace(head, chosen_thresholds=(), alarm=None) for head in spec.heads]
            shared.append((spec.frames, spec.size, spec.pixels, heads))
        for number, member in enumerate(self.members):
            yield from ((f"members.{number}.{key}", text) for key, text in member.problems())
            if shared[number + 1] != shared[0]:
                yield f"members.{number}", "other clips or heads than the mean"

    def build(self) -> MeanClassifier:
        return MeanClassifier(self, [member.build() for member in self.members])


MemberSpec = Annotated[ClassifierSpec | PixelSpec | MeanSpec, Field(discriminator="kind")]


class MeanClassifier(Classifier):
    """Classifies clips by the mean of the outputs, or the logits, of its members.

    Args:
        members: classifiers of the same clips and heads; each keeps its tokens as it was trained.
    Raises:
        ValueError: they are none, or `spec` is of other members.
    """

    def __init__(self, spec: MeanSpec, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if problem := next(spec.problems(), None):
            raise ValueError(": ".join(problem))
        self.spec, self.heads, self.pixels = spec, spec.heads, spec.pixels
        self.mean_of = spec.mean_of
        self.members = nn.ModuleList(members)

    @classmethod
    def of(cls, members: Sequence[Classifier], mean_of: Literal["outputs", "logits"] = "outputs") -> Self:
        """The mean of modules as they are, with the clips and the heads of the first one."""
        first = members[0].spec
        spec = MeanSpec(
            frames=first.frames,
            size=first.size,
            pixels=first.pixels,
            heads=first.heads,
            mean_of=mean_of,
            members=tuple(cast("MemberSpec", member.spec) for member in members),
        )
        return cls(spec, members)

    @property
    def parts(self) -> list[ClipModel]:
        return [part for member in self._classifiers for part in member.parts]

    @property
    def num_features(self) -> int:
        """The sum of F."""
        return sum(member.num_features for member in self._classifiers)

    @property
    def _classifiers(self) -> list[Classifier]:
        return [cast("Classifier", member) for member in self.members]

    def features(self, frames: Tensor, keep: float | None = None) -> Tensor:
        """The inputs of the heads of all members, joined: (B, sum of F); see `forward`."""
        if keep is not None and not self.spec.token_grids:
            raise ValueError(f"keep={keep}: {NO_TOKENS}")
        features = [
            member.features(frames, keep=keep if member.spec.token_grids else None).float()
            for member in self._classifiers
        ]
        return torch.cat(features, dim=1)

    def forward(self, frames: Tensor, *, keep: float | None = None) -> Tensor:
        """Compute the logits (B, outputs) of clips (B, C, T, H, W), whose outputs or logits are the mean.

        Args:
            keep: the ratio of the tokens that members with an encoder encode; None: as trained.
        Raises:
            ValueError: `keep` is given, and no member has an encoder.
        """
        return self.classify(self.features(frames, keep))

    def classify(self, features: Tensor) -> Tensor:
        """The logits (B, outputs) of joined `features` (B, sum of F)."""
        member_features = features.split([member.num_features for member in self._classifiers], dim=1)
        logits = [
            member.classify(x).float() for member, x in zip(self._classifiers, member_features, strict=True)
        ]
        stacked = torch.stack(logits)  # (M, B, outputs)
        if self.mean_of == "logits":
            return stacked.mean(dim=0)
        means = []  # logits whose outputs are the mean of the members' outputs, (B, outputs) of each head
        for head_logits, head in zip(by_head(stacked, self.heads), self.heads, strict=True):
            if head.task == "regression":
                means.append(head_logits.mean(dim=0))
            elif head.task == MULTI_LABEL:  # log of the mean of p, and of 1 - p
                yes, no = (F.logsigmoid(sign * head_logits).logsumexp(dim=0) for sign in (1, -1))
                means.append(yes - no)
            else:
                means.append(head_logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(head_logits.size(0)))
        return torch.cat(means, dim=-1)
