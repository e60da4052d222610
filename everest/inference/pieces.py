"""What a model computes of the windows of a recording, each piece of their clips once.

A model sees a clip in pieces: an image encoder single frames, a linear model of pixels pairs of frames, a
video encoder the whole clip. Windows that overlap share most of their pieces.

B clips, M pieces of a clip, P pieces, S frames of a piece, V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Self

import torch
from torch import Tensor

from everest.inference.opened_model import OpenedModel
from everest.inference.windows import PieceFrames, WindowPieces
from everest.models.spec import Transformer

ViewTensors = dict[str, Tensor]  # (V, …) each


class PieceEncoder(NamedTuple):
    """What is computed of the pieces of one kind."""

    frames: int  # S
    encode: Callable[[Tensor], ViewTensors]  # pieces (P, C, S, H, W) uint8 to (P, …) each


@dataclass(frozen=True, kw_only=True)
class PieceModel:
    """A model as encoders of pieces, of one kind or several, and what joins them to values of clips."""

    encoders: Sequence[PieceEncoder]
    join: Callable[[list[ViewTensors]], ViewTensors]  # of each encoder (B, M, …), to values (B, …) of clips

    @classmethod
    def of_outputs(cls, model: OpenedModel) -> Self:
        """The outputs of a classifier, as `OpenedModel.outputs` computes them of entire clips."""

        def classify(features: Tensor, encoded: list[ViewTensors]) -> ViewTensors:
            return model.to_outputs(model.classifier.classify(features))

        _ = model.classifier  # raises
        return cls._of(model, model.outputs, classify)

    @classmethod
    def of_features(cls, model: OpenedModel) -> Self:
        """The features of a model, as `OpenedModel.features` computes them of entire clips."""

        def collect(features: Tensor, encoded: list[ViewTensors]) -> ViewTensors:
            if not isinstance(model.module, Transformer):
                return model.to_features({"pooled": features})
            tokens = encoded[0]["encoded"].flatten(1, 2)  # (B, N, D)
            ids = torch.arange(tokens.size(1), device=tokens.device).expand(tokens.size(0), -1)
            return model.to_features({"ids": ids, "tokens": tokens, "pooled": features})

        return cls._of(model, model.features, collect)

    @classmethod
    def of_feature_vectors(cls, models: Mapping[str, OpenedModel]) -> Self:
        """What the heads of several classifiers see of the same clips, (B, F) float32 on the CPU, by name."""

        def make(name: str, model: OpenedModel) -> PieceModel:
            @torch.inference_mode()
            def compute(clips: Tensor) -> ViewTensors:
                with model.runtime.autocast():
                    return finish(model.classifier.features(model.normalize(clips)), [])

            def finish(features: Tensor, encoded: list[ViewTensors]) -> ViewTensors:
                return {name: features.float().cpu()}

            return cls._of(model, compute, finish)

        made = [make(name, model) for name, model in models.items()]

        def join(encoded: list[ViewTensors]) -> ViewTensors:
            rest = iter(encoded)
            parts = [model.join(list(islice(rest, len(model.encoders)))) for model in made]
            return {name: x for part in parts for name, x in part.items()}

        return cls(encoders=[encoder for model in made for encoder in model.encoders], join=join)

    @classmethod
    def of_clips(cls, compute: Callable[[Tensor], ViewTensors], num_frames: int) -> Self:
        """Compute values of entire clips (B, C, T, H, W) uint8."""

        def take(encoded: list[ViewTensors]) -> ViewTensors:
            return {name: x[:, 0] for name, x in encoded[0].items()}

        return cls(encoders=[PieceEncoder(num_frames, compute)], join=take)

    @classmethod
    def _of(
        cls,
        model: OpenedModel,
        compute: Callable[[Tensor], ViewTensors],
        finish: Callable[[Tensor, list[ViewTensors]], ViewTensors],
    ) -> Self:
        """Encode pieces of each part of a model; or entire clips by `compute`, if a part sees these at once.

        Args:
            finish: the values of clips from their features and their encoded pieces.
        """
        if model.sees_whole_clips:
            return cls.of_clips(compute, model.module.spec.frames)
        parts = model.module.parts
        sizes = [part.piece_frames(model.keep) for part in parts]

        def make_encoder(encode: Callable[[Tensor], Tensor], size: int) -> PieceEncoder:
            @torch.inference_mode()
            def encode_bytes(pieces: Tensor) -> ViewTensors:
                with model.runtime.autocast():
                    return {"encoded": encode(model.normalize(pieces))}

            return PieceEncoder(size, encode_bytes)

        @torch.inference_mode()
        def join(encoded: list[ViewTensors]) -> ViewTensors:
            with model.runtime.autocast():
                features = [part.pool_pieces(x["encoded"]) for part, x in zip(parts, encoded, strict=True)]
                joined = (
                    features[0] if len(features) == 1 else torch.cat([x.float() for x in features], dim=1)
                )
                return finish(joined, encoded)

        encoders = [make_encoder(part.encode_pieces, size) for part, size in zip(parts, sizes, strict=True)]
        return cls(encoders=encoders, join=join)


class EncodedPieces:
    """The encoded pieces that later windows of a recording need."""

    def __init__(self, model: PieceModel) -> None:
        self.model = model
        self.encoded: list[dict[int, ViewTensors]] = [{} for _ in model.encoders]  # by the number of a piece

    def add(self, pieces: PieceFrames) -> None:
        """Encode pieces, in all crops."""
        values = self.model.encoders[pieces.encoder].encode(pieces.frames.flatten(0, 1))
        by_piece = {name: x.unflatten(0, pieces.frames.shape[:2]) for name, x in values.items()}
        self.encoded[pieces.encoder] |= {
            pieces.first + i: {name: x[i] for name, x in by_piece.items()} for i in range(len(pieces.frames))
        }

    def join(self, windows: Sequence[WindowPieces]) -> Iterator[ViewTensors]:
        """Yield the values of the views of successive windows; drop the pieces that no later one needs."""
        joined = []
        for encoder, encoded in enumerate(self.encoded):
            numbers = [window.numbers[encoder] for window in windows]  # (clips, M) each
            pieces = [encoded[number] for of_window in numbers for number in of_window.ravel().tolist()]
            count = numbers[0].shape[1]  # M
            values = {name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]}
            joined.append(  # (windows * clips * M, crops, …) to (windows * clips * crops, M, …)
                {
                    name: x.unflatten(0, (-1, count)).transpose(1, 2).flatten(0, 1)
                    for name, x in values.items()
                }
            )
        results = {name: x.unflatten(0, (len(windows), -1)) for name, x in self.model.join(joined).items()}
        for encoded, oldest in zip(self.encoded, windows[-1].oldest, strict=True):
            for number in [number for number in encoded if number < oldest]:
                del encoded[number]
        return ({name: x[i] for name, x in results.items()} for i in range(len(windows)))
