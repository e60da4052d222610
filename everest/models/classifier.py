"""The classifier of fine-tuning and evaluation: encoder, pooling of the kept tokens, linear heads.

B batch, C channels, T frames, H W pixels, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everest.config.heads import MULTI_LABEL, Heads
from everest.methods.selector import Selector
from everest.models.block import EPS
from everest.models.positions import learned_rows
from everest.models.video_model import SelectingModel
from everest.models.vit import Architecture, init_linear_layers


def outputs_of(logits: Tensor, heads: Heads) -> Tensor:
    """Convert logits (..., C) to float32 outputs: probabilities, or numbers in their unit.

    The probabilities of a single-label head sum to 1; each probability of a multi-label head is from 0 to 1.
    """
    outputs = []
    for part, head in zip(_by_head(logits.float(), heads), heads, strict=True):
        if head.task == "regression":
            outputs.append(part * head.std + head.mean)
        else:
            outputs.append(part.sigmoid() if head.task == MULTI_LABEL else part.softmax(dim=-1))
    return torch.cat(outputs, dim=-1)


def _by_head(outputs: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    return outputs.split([head.outputs for head in heads], dim=-1)


def soft_targets(labels: Tensor, heads: Heads, *, smoothing: float) -> Tensor:
    """Convert labels (B, L) to targets (B, C), which may be mixed.

    Args:
        smoothing: fraction of the probability that is spread over all classes of a single-label head, and
            over yes and no for each class of a multi-label head. Numbers have none.
    """
    parts = labels.split([head.label_width for head in heads], dim=-1)
    targets = []
    for part, head in zip(parts, heads, strict=True):
        if head.task == "regression":
            targets.append(part)  # (B, 1)
        elif head.task == MULTI_LABEL:
            targets.append(part * (1 - smoothing) + smoothing / 2)  # (B, classes)
        else:
            one_hot = F.one_hot(part[:, 0].long(), head.outputs)  # (B, classes)
            targets.append(one_hot * (1 - smoothing) + smoothing / head.outputs)
    return torch.cat(targets, dim=-1)


def supervised_loss(
    logits: Tensor, targets: Tensor, heads: Heads, class_weights: Sequence[Tensor | None]
) -> Tensor:
    """The mean over the heads, so that the learning rate need not follow their number (ours).

    A single-label head has the cross-entropy with soft targets, a multi-label head the binary cross-entropy
    of each class, a number the smooth L1 loss of the standardized values.

    Args:
        logits, targets: (B, C) float32.
        class_weights: of each head, (classes,); None: all classes count the same. The weight of a multi-label
            class is that of its positive videos.
    """
    parts = zip(_by_head(logits, heads), _by_head(targets, heads), heads, class_weights, strict=True)
    losses = []
    for predicted, target, head, weights in parts:
        if head.task == "regression":
            losses.append(F.smooth_l1_loss(predicted, target))
        elif head.task == MULTI_LABEL:
            losses.append(F.binary_cross_entropy_with_logits(predicted, target, pos_weight=weights))
        else:
            losses.append(F.cross_entropy(predicted, target, weight=weights))
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


HEAD_SCALE = 0.001  # released fine-tuning scripts: the weights of the head start near zero


class ClassAttentionPooling(nn.Module):
    """A learned class token attends to the kept tokens once (Touvron et al. 2021, CaiT; LVMAE for ViT-L).

    A class-attention layer of CaiT from timm: norm, attention of the class token over itself and the tokens,
    norm, MLP, both with a residual to the class token. LayerScale starts at 1: CaiT's 1e-4 stabilizes stacks
    of many layers, but in one layer it would hide almost all of the clip from the head.
    """

    def __init__(self, width: int, heads: int, *, eps: float = EPS) -> None:
        from timm.models.cait import LayerScaleBlockClassAttn  # here: timm takes a second to import

        super().__init__()
        self.class_token = learned_rows(1, width)
        norm: Any = partial(nn.LayerNorm, eps=eps)
        self.block = LayerScaleBlockClassAttn(width, heads, qkv_bias=True, norm_layer=norm, init_values=1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, K, D) to (B, D)."""
        class_token = self.class_token.expand(tokens.size(0), -1, -1)  # (B, 1, D)
        return self.block(tokens, class_token)[:, 0]


class VideoClassifier(SelectingModel):
    """Classifies clips from the tokens that its selector keeps (EVEREST §4.1, rho_pre of Table 8).

    Args:
        heads: what is predicted. Each has its rows of one matrix.
    """

    def __init__(
        self, architecture: Architecture, *, selector: Selector, heads: Heads, drop_path: float = 0.0
    ) -> None:
        super().__init__(architecture, selector=selector, final_norm=False, drop_path=drop_path)
        self.heads = heads
        self.num_classes = sum(head.outputs for head in heads)  # the outputs of all heads
        self.pooling = architecture.model.pooling
        width, norms = self.encoder.width, architecture.norms
        if self.pooling == "class-attention":
            self.pool = ClassAttentionPooling(width, self.encoder.num_heads, eps=norms.eps)
        self.norm = nn.LayerNorm(width, eps=norms.last_eps if self.pooling == "mean" else norms.eps)
        self.head = nn.Linear(width, self.num_classes)
        init_linear_layers(self, init=partial(nn.init.trunc_normal_, std=0.02))
        with torch.no_grad():
            self.head.weight.mul_(HEAD_SCALE)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each output: of its class, else its index; of several heads `HEAD INDEX`."""
        if self.heads[0].name:
            return tuple(f"{head.name} {index}" for head in self.heads for index in range(head.outputs))
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def outputs(self, logits: Tensor) -> Tensor:
        """Convert logits (..., outputs) to float32 probabilities or numbers, as `outputs_of`."""
        return outputs_of(logits, self.heads)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool encoded tokens (B, K, D) to (B, D).

        `mean` averages the kept tokens, then norms; `first` norms and takes the first kept token;
        `class-attention` norms the output of a learned class token.
        """
        if self.pooling == "class-attention":
            return self.norm(self.pool(tokens))
        return self.norm(tokens.mean(dim=1)) if self.pooling == "mean" else self.norm(tokens)[:, 0]
