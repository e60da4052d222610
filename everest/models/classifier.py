"""The classifier of fine-tuning and evaluation: encoder, pooling of the kept tokens, linear heads.

B batch, C channels, T frames, H W pixels, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers.norm import LayerNorm
from timm.models.cait import LayerScaleBlockClassAttn
from torch import Tensor, nn

from everest.config.heads import Heads
from everest.config.values import Pooling
from everest.methods.grid import TokenSelection
from everest.methods.selector import Selector
from everest.models.answers import answers
from everest.models.encoder import SelectingModel
from everest.models.vit import Architecture, Encoder, init_linear_layers

HEAD_SCALE = 0.001  # released fine-tuning scripts: the weights of the head start near zero


class ClassAttentionPooling(nn.Module):
    """A learned class token attends to the kept tokens once (Touvron et al. 2021, CaiT; LVMAE for ViT-L).

    It is one class-attention layer of CaiT from timm: norm, attention of the class token over itself and the
    tokens, norm, MLP, both with a residual to the class token. timm's AttentionPoolLatent, which the
    attentive probe uses, has no residual around its attention. LayerScale starts at 1: CaiT's 1e-4 stabilizes
    stacks of many layers, but in one layer it would hide almost all of the clip from the head.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.block = LayerScaleBlockClassAttn(
            width, heads, qkv_bias=True, norm_layer=LayerNorm, init_values=1.0
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens (B, K, D) to (B, D)."""
        class_token = self.class_token.expand(tokens.size(0), -1, -1)  # (B, 1, D)
        return self.block(tokens, class_token)[:, 0]


class VideoClassifier(SelectingModel):
    """Classifies clips from the tokens that its selector keeps (EVEREST §4.1, rho_pre of Table 8).

    Args:
        heads: what is predicted. Each has its rows of one matrix.
        pooling: `mean` averages the kept tokens, then norms; `first` norms and takes the first kept token;
            `class-attention` norms the output of a learned class token.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        selector: Selector,
        heads: Heads,
        pooling: Pooling = "mean",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_kind = architecture.input
        self.heads = heads
        self.selector = selector
        self.pooling = pooling
        self.encoder = Encoder(architecture, final_norm=False, drop_path=drop_path)
        width = self.encoder.width
        if pooling == "class-attention":
            self.pool = ClassAttentionPooling(width, self.encoder.num_heads)
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, sum(head.outputs for head in heads))
        init_linear_layers(self, init=partial(nn.init.trunc_normal_, std=0.02))
        with torch.no_grad():
            self.head.weight.mul_(HEAD_SCALE)

    @property
    def num_classes(self) -> int:
        """The outputs of all heads."""
        return self.head.out_features

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each output: of its class, else its index; of several heads `HEAD INDEX`."""
        if self.heads[0].name:
            return tuple(f"{head.name} {index}" for head in self.heads for index in range(head.outputs))
        return self.class_names or tuple(map(str, range(self.num_classes)))

    def answers(self, logits: Tensor) -> Tensor:
        """Convert logits (..., outputs) to float32 probabilities or numbers; see everest.models.answers."""
        return answers(logits, self.heads)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool encoded tokens (B, K, D) to (B, D)."""
        if self.pooling == "class-attention":
            return self.norm(self.pool(tokens))
        return self.norm(tokens.mean(dim=1)) if self.pooling == "mean" else self.norm(tokens)[:, 0]

    def forward(
        self,
        frames: Tensor,
        *,
        keep: float | None = None,
        noise: Tensor | None = None,
        selection: TokenSelection | None = None,
    ) -> Tensor:
        """Compute logits (B, outputs) of all heads, joined, from clips (B, C, T, H, W), bytes or normalized.

        Args:
            keep, noise, selection: which tokens are encoded; see `kept_tokens`.
        Raises:
            ValueError: see `kept_tokens`.
        """
        return self.head(self.features(frames, keep, noise, selection))
