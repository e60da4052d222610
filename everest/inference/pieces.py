"""What a model computes of the windows of a recording, each piece of their clips once.

A model sees a clip in pieces: an image encoder single frames, a linear model of pixels pairs of frames, a
video encoder the whole clip. Windows that overlap share most of their pieces.

B clips, M pieces of a clip, P pieces, S frames of a piece, V views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everest.inference.opened_model import OpenedModel
from everest.inference.windows import PieceFrames, Unreadable, WindowItem, WindowPieces
from everest.models.base import ClipModel
from everest.models.spec import Transformer

ViewTensors = dict[str, Tensor]  # (V, …) each
# Values of clips, from their features (B, F) and the encoded pieces (B, M, …) of the model's first part.
Finish = Callable[[Tensor, Tensor], ViewTensors]


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
        classify = model.classifier.classify
        return cls._of(model, model.outputs, lambda features, _: model.to_outputs(classify(features)))

    @classmethod
    def of_features(cls, model: OpenedModel) -> Self:
        """The features of a model, as `OpenedModel.features` computes them of entire clips."""
        return cls._of(model, model.features, partial(_to_features, model))

    @classmethod
    def of_feature_vectors(cls, models: Mapping[str, OpenedModel]) -> Self:
        """What the heads of several classifiers see of the same clips, (B, F) float32 on the CPU, by name."""
        made = [cls._of_feature_vector(name, model) for name, model in models.items()]

        def join(encoded: list[ViewTensors]) -> ViewTensors:
            rest = iter(encoded)
            parts = [model.join(list(islice(rest, len(model.encoders)))) for model in made]
            return {name: x for part in parts for name, x in part.items()}

        return cls(encoders=[encoder for model in made for encoder in model.encoders], join=join)

    @classmethod
    def _of_feature_vector(cls, name: str, model: OpenedModel) -> Self:
        @torch.inference_mode()
        def compute(clips: Tensor) -> ViewTensors:
            with model.runtime.autocast():
                return {name: model.classifier.features(model.normalize(clips)).float().cpu()}

        return cls._of(model, compute, lambda features, _: {name: features.float().cpu()})

    @classmethod
    def of_clips(cls, compute: Callable[[Tensor], ViewTensors], num_frames: int) -> Self:
        """Compute values of entire clips (B, C, T, H, W) uint8."""

        def take(encoded: list[ViewTensors]) -> ViewTensors:
            return {name: x[:, 0] for name, x in encoded[0].items()}

        return cls(encoders=[PieceEncoder(num_frames, compute)], join=take)

    @classmethod
    def _of(cls, model: OpenedModel, compute: Callable[[Tensor], ViewTensors], finish: Finish) -> Self:
        """Encode pieces of each part of a model; by `compute` entire clips, if a part sees these at once."""
        if model.sees_whole_clips:
            return cls.of_clips(compute, model.module.spec.frames)
        parts = _Parts(model, finish)
        return cls(encoders=parts.encoders, join=parts.join)


@dataclass(frozen=True)
class _Parts:
    """The parts of a model, each of which encodes pieces; their features are joined."""

    model: OpenedModel
    finish: Finish

    @property
    def encoders(self) -> list[PieceEncoder]:
        parts = self.model.module.parts
        return [
            PieceEncoder(part.piece_frames(self.model.keep), partial(self.encode, part)) for part in parts
        ]

    @torch.inference_mode()
    def encode(self, part: ClipModel, pieces: Tensor) -> ViewTensors:
        with self.model.runtime.autocast():
            return {"encoded": part.encode_pieces(self.model.normalize(pieces))}

    @torch.inference_mode()
    def join(self, encoded: list[ViewTensors]) -> ViewTensors:
        pieces = [x["encoded"] for x in encoded]  # (B, M, …) of each part
        with self.model.runtime.autocast():
            parts = zip(self.model.module.parts, pieces, strict=True)
            features = [part.pool_pieces(of_part) for part, of_part in parts]
            joined = features[0] if len(features) == 1 else torch.cat([x.float() for x in features], dim=1)
            return self.finish(joined, pieces[0])


def _to_features(model: OpenedModel, pooled: Tensor, pieces: Tensor) -> ViewTensors:
    """The fields of Features; a transformer is a single part, whose encoded pieces are its tokens."""
    if not isinstance(model.module, Transformer):
        return model.to_features({"pooled": pooled})
    tokens = pieces.flatten(1, 2)  # (B, N, D)
    ids = torch.arange(tokens.size(1), device=tokens.device).expand(tokens.size(0), -1)
    return model.to_features({"ids": ids, "tokens": tokens, "pooled": pooled})


class EncodedPieces:
    """The encoded pieces that later windows of a recording need."""

    def __init__(self, model: PieceModel) -> None:
        self.model = model
        self.encoded: list[dict[int, ViewTensors]] = [{} for _ in model.encoders]  # by the number of a piece

    def encode(self, items: Iterable[WindowItem]) -> Iterator[WindowPieces | Unreadable]:
        """Encode the pieces among items, in all crops; yield the other items."""
        for item in items:
            if not isinstance(item, PieceFrames):
                yield item
                continue
            values = self.model.encoders[item.encoder].encode(item.frames.flatten(0, 1))
            by_piece = {name: x.unflatten(0, item.frames.shape[:2]) for name, x in values.items()}
            self.encoded[item.encoder] |= {
                item.first + i: {name: x[i] for name, x in by_piece.items()} for i in range(len(item.frames))
            }

    def join(self, windows: Sequence[WindowPieces]) -> Iterator[ViewTensors]:
        """Yield the values of the views of successive windows; drop the pieces that no later one needs."""
        numbers = [
            np.stack(of_encoder) for of_encoder in zip(*(each.numbers for each in windows), strict=True)
        ]
        values = self.model.join(list(map(self._stack, self.encoded, numbers)))
        for encoded, oldest in zip(self.encoded, windows[-1].oldest, strict=True):
            for number in [number for number in encoded if number < oldest]:
                del encoded[number]
        by_window = {name: x.unflatten(0, (len(windows), -1)) for name, x in values.items()}
        return ({name: x[i] for name, x in by_window.items()} for i in range(len(windows)))

    @staticmethod
    def _stack(encoded: Mapping[int, ViewTensors], numbers: NDArray[np.int64]) -> ViewTensors:
        """The pieces (windows, clips, M) of an encoder, as (windows * clips * crops, M, …)."""
        pieces = [encoded[number] for number in numbers.ravel().tolist()]
        stacked = {name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]}
        shape = -1, numbers.shape[-1]
        return {name: x.unflatten(0, shape).transpose(1, 2).flatten(0, 1) for name, x in stacked.items()}
