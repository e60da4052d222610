"""What an encoder makes of clips: its tokens, and one vector a clip.

B clips, T frames, H W pixels, K encoded tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from everest.methods.strategies import AllTokens, choose
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder


class Encoded(NamedTuple):
    """Clips as an encoder sees them."""

    ids: Tensor  # (B, K) int64 ascending: which tokens were encoded
    tokens: Tensor  # (B, K, D) after the last block
    pooled: Tensor  # (B, D): what the head of a classifier sees; of an autoencoder the mean token


def encode(module: VideoClassifier | MaskedAutoencoder, frames: Tensor, keep: float | None) -> Encoded:
    """Encode normalised clips (B, 3, T, H, W).

    Args:
        keep: the share of the tokens that is encoded. None: as a classifier was trained; all of an
            autoencoder's, which is trained to complete what it does not see.
    Raises:
        ValueError: the clips are not of the size the model was built for, or `keep` leaves no token.
    """
    encoder = module.encoder
    if isinstance(module, VideoClassifier):
        ids = module.kept_tokens(frames, keep)
        tokens = encoder(frames, ids)
        return Encoded(ids, tokens, module.pooled(tokens))
    encoder.check(frames)
    selector = AllTokens() if keep is None else AllTokens().keeping(keep)
    noise = frames.new_zeros(frames.size(0), encoder.grid.num_tokens)  # nothing here is drawn
    ids = choose(selector, frames, encoder.grid, encoder.patch_embed, noise).visible
    tokens = encoder(frames, ids)
    return Encoded(ids, tokens, tokens.mean(dim=1))
