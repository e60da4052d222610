"""How the encoded tokens of a clip become the one vector that its classes are told from.

B batch, K kept tokens, D width.

Encoder, pooling of the kept tokens, linear head or heads: fine-tuning and evaluation.

B batch, C channels, T frames, H W pixels, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.layers.norm import LayerNorm
from timm.models.cait import LayerScaleBlockClassAttn
from torch import Tensor, nn

from everest.config.sizes import BackboneSize
from everest.methods.grid import TokenGrid
from everest.methods.importance import Embedding
from everest.methods.strategies import Strategy, at_test, choose
from everest.models.embedding import Positions
from everest.models.vit import Encoder, linear_layers

Pooling = Literal["mean", "first", "class-attention"]


class ClassAttentionPooling(nn.Module):
    """A learned class token looks at the kept tokens once (Touvron et al. 2021, CaiT; LVMAE for ViT-L).

    It is one class-attention layer of CaiT as timm has it: norm, attention of the class token over itself and
    the tokens, norm, MLP, both with a residual to the class token. timm's AttentionPoolLatent, which the
    attentive probe uses, lacks what makes it that: the residual around its attention. LayerScale starts at 1:
    it tames stacks of many layers, and at CaiT's 1e-4 the head would see next to nothing of the clip.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.block = LayerScaleBlockClassAttn(
            width, heads, qkv_bias=True, norm_layer=LayerNorm, init_values=1.0
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, K, D) to (B, D)."""
        asking = self.class_token.expand(tokens.size(0), -1, -1)  # (B, 1, D)
        return self.block(tokens, asking)[:, 0]


HEAD_SCALE = 0.001  # released fine-tuning scripts: the head starts near zero


class VideoClassifier(nn.Module):
    """Classifies clips from the tokens that its selector keeps (EVEREST §4.1, rho_pre of Table 8).

    Args:
        num_classes: rows of the head; of several heads, of all together.
        heads: classes of each of several, in their order: each has its rows of one matrix.
        pooling: `mean` averages the kept tokens and norms that; `first` norms and takes the first kept one;
            `class-attention` norms what a learned class token sees in them.
    """

    def __init__(
        self,
        size: BackboneSize,
        grid: TokenGrid,
        tubelet: tuple[int, int, int],
        *,
        selector: Strategy,
        num_classes: int,
        heads: Mapping[str, int] | None = None,
        pooling: Pooling = "mean",
        drop_path: float = 0.0,
        embedding_layers: int = 1,
        positions: Positions = "flat",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        assert not heads or sum(heads.values()) == num_classes
        self.heads = dict(heads or {})  # empty: one, without a name
        self.selector = selector
        self.pooling = pooling
        self.encoder = Encoder(
            size,
            grid,
            tubelet,
            final_norm=False,
            drop_path=drop_path,
            embedding_layers=embedding_layers,
            positions=positions,
            checkpointing=checkpointing,
        )
        if pooling == "class-attention":
            self.pool = ClassAttentionPooling(size.width, size.heads)
        self.norm = LayerNorm(size.width)
        self.head = nn.Linear(size.width, num_classes)
        self._init_weights()

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    @property
    def head_sizes(self) -> list[int]:
        """Classes of each head."""
        return list(self.heads.values()) or [self.num_classes]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (..., classes) to probabilities in float32, those of each head with sum 1."""
        parts = logits.float().split(self.head_sizes, dim=-1)
        return torch.cat([part.softmax(dim=-1) for part in parts], dim=-1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers of timm's layer decay: embedding, blocks, and in the last one all other parameters."""
        return {"stem": r"encoder\.patch_embed\.", "blocks": [(r"encoder\.blocks\.(\d+)\.", None)]}

    def _init_weights(self) -> None:
        for layer in linear_layers(self):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.head.weight.mul_(HEAD_SCALE)

    @property
    def measure(self) -> Embedding:
        """What the selector measures by."""
        return self.encoder.patch_embed

    def kept_tokens(self, frames: Tensor, keep: float | None = None, noise: Tensor | None = None) -> Tensor:
        """(B, K) ids of the tokens that are encoded; `keep` overrides the share that was trained with.

        Args:
            noise: (B, at least N) uniform in [0, 1), while a selector that draws is trained with.
        Raises:
            ValueError: the clips are not of the size the model was built for or not normalised, or `keep` is
                no share that leaves a token.
        """
        self.encoder.check(frames)
        selector, grid = self.selector, self.encoder.grid
        if noise is None:
            selector = at_test(selector, keep)
            noise = frames.new_zeros(frames.size(0), grid.num_tokens)  # nothing here is drawn
        elif keep is not None:
            selector = selector.keeping(keep)
        ids = choose(selector, frames, grid, self.measure, noise).visible
        if ids.size(1) == 0:
            raise ValueError(f"keep={keep} leaves none of {grid.num_tokens} tokens")
        return ids

    def features(self, frames: Tensor, keep: float | None = None, noise: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) normalised clips to (B, D): what the head sees."""
        return self.pooled(self.encoder(frames, self.kept_tokens(frames, keep, noise)))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Encoded tokens (B, K, D) to (B, D)."""
        if self.pooling == "class-attention":
            return self.norm(self.pool(tokens))
        return self.norm(tokens.mean(dim=1)) if self.pooling == "mean" else self.norm(tokens)[:, 0]

    def forward(self, frames: Tensor, *, keep: float | None = None, noise: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) normalised clips to logits (B, classes), those of all heads one after another.

        Raises:
            ValueError: as `kept_tokens`.
        """
        return self.head(self.features(frames, keep, noise))


def class_attention_bytes(tokens: int, width: int, *, bytes_per_value: int) -> int:
    """Bytes that pooling by class attention keeps beside: an estimate (everest.models.classifier).

    Of every token the norm's input in float32, what keys and values are made of, keys and values.
    """
    return tokens * width * (4 + 4 * bytes_per_value)
