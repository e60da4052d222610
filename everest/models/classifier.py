"""Classifiers: their heads and losses, and the models that pool the tokens of an encoder.

B batch, C channels, T frames, H W pixels, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.heads import MULTI_LABEL, Heads
from everest.config.values import RatioBelowOne, settings
from everest.methods.grid import TokenSelection
from everest.methods.strategies import AllTokens
from everest.models.base import ClipModel, TokenModel
from everest.models.clip_spec import ModelSpec
from everest.models.pooling import NUM_STATISTICS, ClassAttentionPooling, mean_and_change
from everest.models.vit import init_linear_layers
from everest.system.compute import full_precision


def outputs_of(logits: Tensor, heads: Heads) -> Tensor:
    """Convert logits (..., C) to float32 outputs: probabilities, or numbers in their unit.

    The probabilities of a single-label head sum to 1; each probability of a multi-label head is from 0 to 1.
    """
    outputs = []
    for head_logits, head in zip(by_head(logits.float(), heads), heads, strict=True):
        if head.task == "regression":
            outputs.append(head_logits * head.std + head.mean)
        else:
            outputs.append(head_logits.sigmoid() if head.task == MULTI_LABEL else head_logits.softmax(dim=-1))
    return torch.cat(outputs, dim=-1)


def by_head(outputs: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    """Split logits or outputs (..., C) into those of each head."""
    return outputs.split([head.outputs for head in heads], dim=-1)


def soft_targets(labels: Tensor, heads: Heads, *, smoothing: float) -> Tensor:
    """Convert labels (B, L) to targets (B, C), which may be mixed.

    Args:
        smoothing: fraction of the probability that is spread over all classes of a single-label head, and
            over yes and no for each class of a multi-label head. Numbers have none.
    """
    columns = labels.split([head.label_width for head in heads], dim=-1)
    targets = []
    for head_labels, head in zip(columns, heads, strict=True):
        if head.task == "regression":
            targets.append(head_labels)  # (B, 1)
        elif head.task == MULTI_LABEL:
            targets.append(head_labels * (1 - smoothing) + smoothing / 2)  # (B, classes)
        else:
            one_hot = F.one_hot(head_labels[:, 0].long(), head.outputs)  # (B, classes)
            targets.append(one_hot * (1 - smoothing) + smoothing / head.outputs)
    return torch.cat(targets, dim=-1)


def supervised_loss(
    logits: Tensor, targets: Tensor, heads: Heads, class_weights: Sequence[Tensor | None]
) -> Tensor:
    """The mean loss of the heads, so that the learning rate does not depend on their number (our choice).

    A single-label head has the cross-entropy with soft targets, a multi-label head the binary cross-entropy
    of each class, a number the smooth L1 loss of the standardized values.

    Args:
        logits, targets: (B, C) float32.
        class_weights: (classes,) for each head; None: all classes count the same. The weight of a multi-label
            class is that of its positive videos.
    Returns:
        The loss, a scalar.
    """
    by_heads = zip(by_head(logits, heads), by_head(targets, heads), heads, class_weights, strict=True)
    losses = []
    for predicted, target, head, weights in by_heads:
        if head.task == "regression":
            losses.append(F.smooth_l1_loss(predicted, target))
        elif head.task == MULTI_LABEL:
            losses.append(F.binary_cross_entropy_with_logits(predicted, target, pos_weight=weights))
        else:
            losses.append(F.cross_entropy(predicted, target, weight=weights))
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


HEAD_SCALE = 0.001  # released fine-tuning scripts: the weights of the head start near zero


class ExactLinear(nn.Linear):
    """A Linear that computes in float32 under autocast, too.

    For weights that were solved for: large ones cancel, which numbers of 8 bits do not survive.
    """

    def forward(self, input: Tensor) -> Tensor:
        with full_precision(input.device):
            return super().forward(input.float())


class Classifier(ClipModel):
    """Base class of the models that predict classes or numbers.

    Attributes:
        heads: what is predicted. Each has its columns of the logits.
    """

    stage: ClassVar = "finetune"
    heads: Heads

    def features(self, frames: Tensor, keep: float | None = None) -> Tensor:
        """The input (B, F) of the head for clips (B, C, T, H, W), bytes or normalized."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """F."""
        return cast("nn.Linear", self.get_submodule("head")).in_features

    def classify(self, features: Tensor) -> Tensor:
        """The logits (B, outputs) of `features` (B, F)."""
        return self.get_submodule("head")(features)

    @property
    def num_classes(self) -> int:
        """The outputs of all heads."""
        return sum(head.outputs for head in self.heads)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each output: of its class, else its index; of several heads `HEAD INDEX`."""
        if self.heads[0].name:
            return tuple(f"{head.name} {index}" for head in self.heads for index in range(head.outputs))
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def outputs(self, logits: Tensor) -> Tensor:
        """Convert logits (..., outputs) to float32 probabilities or numbers, as `outputs_of`."""
        return outputs_of(logits, self.heads)


class SelectingModel(TokenModel):
    """A model that encodes the tokens of its strategy and pools them."""

    stage: ClassVar = "finetune"
    head: nn.Module  # maps features (B, F) to the outputs

    def encode_kept(
        self,
        frames: Tensor,
        keep: float | None = None,
        noise: Tensor | None = None,
        selection: TokenSelection | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode the kept tokens of clips (B, C, T, H, W), bytes or normalized: ids (B, K), tokens (B, K, D).

        Args:
            keep: overrides the keep ratio of training.
            noise: (B, at least N) uniform in [0, 1), in training.
            selection: its visible tokens replace the strategy's choice; nothing is predicted, so
                its target has no effect and may be empty, (B, 0).
        """
        self.encoder.check(frames)
        x = self.to_input(frames)
        if selection is None:
            strategy = self.strategy
            if noise is None:
                strategy = strategy.at_evaluation(keep)
            elif keep is not None:
                strategy = strategy.keeping(keep)
            selection = self.select_tokens(x, noise, strategy=strategy)
            if selection.visible.size(1) == 0:
                raise ValueError(f"keep={keep} leaves none of {self.encoder.grid.num_tokens} tokens")
        elif keep is not None:
            raise ValueError(f"keep={keep} has no effect on a given selection; leave one of them out")
        else:
            selection.check(self.encoder.grid, frames.size(0), predicts=False)
        return selection.visible, self.encoder(x, selection.visible)

    def pooled(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Pool encoded tokens (B, K, D) with their ids (B, K): by `mean_and_change` to (B, 4D).

        A classifier may pool otherwise.
        """
        return mean_and_change(tokens, ids, self.encoder.grid)

    def piece_frames(self, keep: float | None) -> int:
        """One frame if tokens depend on their own frame only and all are encoded; else the whole clip."""
        has_all = isinstance(self.strategy.at_evaluation(keep), AllTokens) and self.input == "frames"
        return 1 if has_all and self.encoder.sees_frames_alone else super().piece_frames(keep)

    def encode_pieces(self, pieces: Tensor) -> Tensor:
        """The tokens (P, h * w, D) of frames (P, C, 1, H, W), bytes or normalized."""
        ids = torch.arange(self.encoder.grid.num_positions, device=pieces.device)
        return self.encoder(pieces, ids.expand(pieces.size(0), -1))

    def pool_pieces(self, encoded: Tensor) -> Tensor:
        tokens = encoded.flatten(1, 2)  # (B, N, D)
        ids = torch.arange(tokens.size(1), device=tokens.device)
        return self.pooled(tokens, ids.expand(tokens.size(0), -1))

    def features(self, frames: Tensor, keep: float | None = None) -> Tensor:
        """The input (B, F) of the head for clips (B, C, T, H, W), bytes or normalized."""
        ids, tokens = self.encode_kept(frames, keep)  # (B, K), (B, K, D)
        return self.pooled(tokens, ids)

    def forward(
        self,
        frames: Tensor,
        *,
        keep: float | None = None,
        noise: Tensor | None = None,
        selection: TokenSelection | None = None,
    ) -> Tensor:
        """Compute the outputs of clips (B, C, T, H, W), bytes or normalized.

        Args:
            keep, noise, selection: which tokens are encoded; see `encode_kept`.
        Returns:
            A classifier's logits (B, outputs) of all heads, joined; an encoder's features (B, 4D).
        """
        ids, tokens = self.encode_kept(frames, keep, noise, selection)  # (B, K), (B, K, D)
        return self.head(self.pooled(tokens, ids))


@settings
class EncoderSpec(ModelSpec):
    """An encoder without a decoder or a head."""

    kind: Literal["encoder"] = "encoder"

    def build(self) -> VideoEncoder:
        return VideoEncoder(self)


class VideoEncoder(SelectingModel):
    """An encoder with its last norm, without decoder or head, as some other programs save it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, final_norm=True)
        self.head = nn.Identity()
        init_linear_layers(self.encoder, init=nn.init.xavier_uniform_)


@settings
class ClassifierSpec(ModelSpec):
    """An encoder and the heads that predict classes or numbers."""

    kind: Literal["classifier"] = "classifier"
    heads: Heads
    drop_path: RatioBelowOne = 0.0  # in training

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.heads:
            yield "heads", "missing"
        yield from super().problems()

    def build(self) -> VideoClassifier:
        return VideoClassifier(self)


class VideoClassifier(SelectingModel, Classifier):
    """Classifies clips from the tokens that its strategy keeps (EVEREST §4.1, rho_pre of Table 8).

    Each head has its rows of one matrix.
    """

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__(spec, final_norm=False, drop_path=spec.drop_path)
        self.heads = spec.heads
        self.pooling = spec.model.pooling
        width, norms = self.encoder.width, spec.norms
        if self.pooling == "class-attention":
            self.pool = ClassAttentionPooling(width, self.encoder.num_heads, eps=norms.eps)
        self.norm = nn.LayerNorm(width, eps=norms.last_eps if self.pooling == "mean" else norms.eps)
        if self.pooling == "mean-change":
            self.head = ExactLinear(NUM_STATISTICS * width, self.num_classes)
        else:
            self.head = nn.Linear(width, self.num_classes)
        init_linear_layers(self, init=partial(nn.init.trunc_normal_, std=0.02))
        with torch.no_grad():
            self.head.weight.mul_(HEAD_SCALE)

    def pooled(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Pool encoded tokens (B, K, D) with their ids (B, K) to the input of the head.

        `mean` averages the kept tokens, then norms; `first` norms and takes the first kept token;
        `class-attention` norms the output of a learned class token: (B, D). `mean-change` norms, then takes
        the statistics of everest.models.pooling.mean_and_change: (B, 4D).
        """
        match self.pooling:
            case "class-attention":
                return self.norm(self.pool(tokens))
            case "mean":
                return self.norm(tokens.mean(dim=1))
            case "first":
                return self.norm(tokens)[:, 0]
            case _:  # mean-change
                return mean_and_change(self.norm(tokens), ids, self.encoder.grid)
