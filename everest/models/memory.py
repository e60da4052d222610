"""The memory of a model: weights, each clip in training and in inference, and frozen networks.

Clips are measured in a pass without numbers, so that no layer has to be described here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from everest.methods.camera_task import NUMBERS
from everest.methods.external import is_import_path
from everest.methods.selector import Selector
from everest.models.cost import Unmeasured, model_on_meta
from everest.models.lora import LowRank
from everest.models.mae import MaskedAutoencoder
from everest.models.partial import Stage, choose_trained, freeze_layers
from everest.models.spec import ModelSpec, Transformer
from everest.tokenizer.spec import TokenizerSpec
from everest.tokenizer.targets import FrozenTokenizer

WEIGHT_BYTES: Final = 4  # weights, gradients and both moments of AdamW are float32 in every precision


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made in its context, those alive now and at most.

    Args:
        weights: not counted, nor is what is computed from them alone, such as copies of lower precision.
    """

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}  # of known storages; 0: not counted
        for weight in weights:
            self._add(weight, counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for tensor in inputs:
            self._add(tensor, counts=False)
        counts = not inputs or any(self._sizes[x.untyped_storage()._cdata] for x in inputs)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, counts=counts)
        self.most = max(self.most, self.now)
        return out

    def _add(self, tensor: Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes() if counts else 0
            self.now += self._sizes[storage._cdata]
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def peak_bytes(model: nn.Module, run: Callable[[], object], *, bytes_per_value: int, trains: bool) -> int:
    """The most bytes that are alive in a forward pass, without the weights of the model.

    Args:
        model: on the meta device; its weights become tensors without numbers.
        run: makes its inputs; the tensors that it returns are alive until the end.
        bytes_per_value: 4: float32; 2: autocast, which keeps float32 where it needs it.
        trains: what the backward pass needs is kept.
    """
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bytes_per_value == 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        weights = (*model.parameters(), *model.buffers())
        with LiveBytes(*weights) as live, half, torch.set_grad_enabled(trains):
            _alive = run()
    return live.most


_training_bytes: dict[tuple[str, int, int], int] = {}  # measured in this process


def training_bytes(spec: ModelSpec, bytes_per_value: int, *, frozen_layers: int = 0) -> int:
    """Measure the bytes that one clip takes in a training step.

    The peak is before the blocks, when the importance of the tokens is measured, or at the end of the forward
    pass, with all that is saved for the backward pass. Weights and `frozen_bytes`, which do not depend on the
    number of clips, are not included.

    Args:
        frozen_layers: of the encoder (everest.models.partial).
    """
    key = (repr(spec), bytes_per_value, frozen_layers)
    if key not in _training_bytes:
        _training_bytes[key] = _measured_training(spec, bytes_per_value, frozen_layers)
    return _training_bytes[key]


def _measured_training(spec: ModelSpec, bytes_per_value: int, frozen_layers: int) -> int:
    model, grid = model_on_meta(spec).train(), spec.grid
    clips = 1 if spec.views is None else spec.views.number  # which are compared
    measures = _measures(spec.selection)
    if not measures:
        model.selector = Unmeasured(of=spec.selection)
    freeze_layers(model.encoder, frozen_layers)
    if spec.checkpointing:  # one block at a time keeps all
        stacks = (model.encoder, model.decoder) if isinstance(model, MaskedAutoencoder) else (model.encoder,)
        for stack in stacks:
            stack.blocks[-1].eval()

    def run() -> object:
        shape = (clips, spec.channels, spec.offered_frames, *spec.size)
        # The loader copies the clips of the next pass meanwhile.
        frames, following = (torch.empty(shape, dtype=torch.uint8) for _ in range(2))
        slices = spec.candidate_slices if measures else grid.t
        noise = torch.empty(clips, slices * grid.per_slice + spec.candidate_slices + NUMBERS)
        if spec.kind == "pretrain":
            seen = frames if measures else frames[:, :, : spec.frames]
            return model(seen, noise=noise), frames, following
        # Fine-tuning erases parts of the clips and mixes them.
        normalized = spec.pixels.normalize(frames)
        return model(normalized.clone(), noise=noise), frames, following, normalized

    taken = peak_bytes(model, run, bytes_per_value=bytes_per_value, trains=True) // clips
    if teacher := spec.run_teacher:  # it takes a clip in windows
        taken += grid.t // teacher.grid.t * inference_bytes(teacher, bytes_per_value)
    return taken


def _measures(selector: Selector) -> bool:
    """Whether importance can be measured without numbers.

    The code of other packages may look at numbers, and a tokenizer scores a few clips at a time.
    """
    return not (selector.needs_tokenizer or is_import_path(selector.strategy))


def inference_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Measure the bytes of one clip without a backward pass."""
    model: Transformer = model_on_meta(spec).eval()
    if not _measures(spec.selection):
        model.selector = Unmeasured(of=spec.selection)

    def run() -> object:
        frames = torch.empty(1, spec.channels, spec.frames, *spec.size, dtype=torch.uint8)
        normalized = spec.pixels.normalize(frames)
        return model(normalized, noise=torch.empty(1, spec.grid.num_tokens + NUMBERS)), frames, normalized

    return peak_bytes(model, run, bytes_per_value=bytes_per_value, trains=False)


def frozen_bytes(spec: ModelSpec) -> int:
    """Measure the bytes of the frozen tokenizer or teacher in a training step, for any number of clips.

    Its weights, and of a tokenizer the values of the few windows that it codes at a time, while all that the
    model saves for the backward pass is alive. 0 if a step runs neither.
    """
    teacher = spec.run_teacher
    if teacher is not None:
        return WEIGHT_BYTES * count_weights(teacher).total
    if spec.tokenizer is None or not spec.runs_tokenizer:
        return 0
    with torch.device("meta"):
        tokenizer = spec.tokenizer.settings.build().eval()
    frozen = FrozenTokenizer.wrap(tokenizer, spec.pixels)

    def run() -> object:
        clip = torch.empty(1, spec.channels, spec.frames, *spec.size, dtype=torch.uint8)
        frames = clip.expand(tokenizer.clips_at_once(clip), -1, -1, -1, -1)
        return frozen.scores(frames), frozen.latent(frames)

    # Norms are float32 in any precision on a GPU, but not on a CPU.
    coding = peak_bytes(tokenizer, run, bytes_per_value=4, trains=False)
    return WEIGHT_BYTES * count_weights(spec.tokenizer.settings).total + coding


@dataclass(frozen=True, kw_only=True)
class WeightCounts:
    """Numbers of weights."""

    total: int  # adapters included
    trained: int  # in training; the others are frozen
    adapted: int  # of the matrices that have an adapter

    def state_bytes(self, *, training: bool, bytes_per_value: int = WEIGHT_BYTES) -> dict[str, int]:
        """Bytes of the weights, and in training of gradients and AdamW's two moments of the trained ones.

        In float32 an adapted matrix is kept for the backward pass in addition to its two parts. In lower
        precision every weight has a copy, adapted or not, which is not counted.
        """
        trained = WEIGHT_BYTES * self.trained if training else 0
        copies = WEIGHT_BYTES * self.adapted if training and bytes_per_value == WEIGHT_BYTES else 0
        return {
            "weights": WEIGHT_BYTES * self.total + copies,
            "gradients": trained,
            "moments": 2 * trained,
        }


def count_weights(spec: ModelSpec | TokenizerSpec, stage: Stage | None = None) -> WeightCounts:
    """Count the weights of a model, which get shapes but no memory; without a stage none is frozen."""
    blank = spec if isinstance(spec, TokenizerSpec) else spec.without_files()
    with torch.device("meta"):
        model = blank.build()
        if stage is not None:
            choose_trained(model, stage)
    adapters = [module for module in model.modules() if isinstance(module, LowRank)]
    return WeightCounts(
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        adapted=sum(adapter.b.size(0) * adapter.a.size(1) for adapter in adapters),
    )
