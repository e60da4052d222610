"""The memory of a computation, counted: the storages that are alive, with shapes and no numbers."""

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from everest.models.mae import MaskedAutoencoder
from everest.models.spec import ModelSpec
from everest.models.video_model import PretrainingModel
from everest.tokenizer.targets import FrozenTokenizer


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are made while it is active, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._add((args, kwargs), made_here=False)
        out = func(*args, **(kwargs or {}))
        self._add(out, made_here=True)
        self.most = max(self.most, self.now)
        return out

    def _add(self, values: Any, *, made_here: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage()._cdata in self._known:
                continue
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = storage.nbytes() if made_here else 0
            self.now += self._known[storage._cdata]
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key)


def norms_in_float32(monkeypatch) -> None:
    """Compute GroupNorm in float32 under autocast on a CPU, as autocast on a GPU does."""
    original = F.group_norm

    def group_norm(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return original(x, *args, **options)
        with torch.autocast("cpu", enabled=False):
            return original(x.float(), *args, **options)

    monkeypatch.setattr(F, "group_norm", group_norm)


@contextmanager
def model_without_numbers(spec: ModelSpec) -> Iterator[PretrainingModel]:
    """A model in training mode, and its tokenizer, whose weights and new tensors take no memory."""
    with torch.device("meta"):
        model = spec.without_files().build().train()
    assert isinstance(model, PretrainingModel)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        if isinstance(model, MaskedAutoencoder) and isinstance(model.learned, FrozenTokenizer):
            model.learned.tokenizer.to_empty(device="cpu")
        yield model


def autocast(bytes_per_value: int) -> AbstractContextManager[object]:
    """bf16 for 2 bytes, float32 for 4."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bytes_per_value == 2)


def peak_of_forward(spec: ModelSpec, clips: int, *, bytes_per_value: int) -> int:
    """The most bytes alive in a forward pass of pre-training, without weights; two batches are alive."""
    shape = (clips, spec.channels, spec.offered_frames, *spec.size)
    with model_without_numbers(spec) as model, LiveBytes() as counter:
        frames, following = (torch.zeros(shape, dtype=torch.uint8) for _ in range(2))
        with autocast(bytes_per_value):
            model(frames)
        assert following.shape == shape  # alive until here, as the loader's next batch is
    return counter.most
