"""The memory of passes over any number of clips, with shapes and no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from everest.models.mae import MaskedAutoencoder, PretrainingModel
from everest.models.spec import ModelSpec
from everest.system.compute import LiveBytes
from everest.tokenizer.spec import FrozenTokenizer


@contextmanager
def model_without_numbers(spec: ModelSpec) -> Iterator[PretrainingModel]:
    """A model in training mode, and its tokenizer, whose weights and new tensors take no memory."""
    with torch.device("meta"):
        model = spec.without_files().build().train()
    assert isinstance(model, PretrainingModel)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        if isinstance(model, MaskedAutoencoder) and isinstance(model.tokenizer, FrozenTokenizer):
            model.tokenizer.tokenizer.to_empty(device="cpu")
        yield model


def autocast(bytes_per_value: int) -> AbstractContextManager[object]:
    """bf16 for 2 bytes, float32 for 4."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bytes_per_value == 2)


def peak_of_forward(spec: ModelSpec, clips: int, *, bytes_per_value: int) -> int:
    """The most bytes alive in a forward pass of pre-training, without weights; two batches are alive."""
    shape = (clips, spec.channels, spec.candidate_frames, *spec.size)
    with model_without_numbers(spec) as model, LiveBytes() as counter:
        frames, following = (torch.zeros(shape, dtype=torch.uint8) for _ in range(2))
        with autocast(bytes_per_value):
            model(frames)
        assert following.shape == shape  # alive until here, as the loader's next batch is
    return counter.peak
