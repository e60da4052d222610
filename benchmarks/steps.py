"""The contenders of the step benchmarks: everest, the plain implementation, and transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from plain_step import logits, pretraining_loss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from everest.config.recipe import load_recipe
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.profiling.profile import ProfiledStage, make_stage_spec

Pass = Callable[[Tensor], Tensor]  # clips (B, 3, T, H, W) to a loss
CLASSES = 400


@dataclass(frozen=True)
class Case:
    """A model of a recipe, and random clips for it."""

    recipe: str
    stage: ProfiledStage
    overrides: tuple[str, ...]

    @property
    def title(self) -> str:
        values = dict(text.split("=") for text in self.overrides)
        method = "VideoMAE" if self.recipe.startswith("videomae") else "EVEREST"
        parts = [f"{method} {values.pop('model.backbone').upper().replace('VIT', 'ViT')}"]
        parts += ["fine-tuning"] if self.stage == "finetune" else []
        parts += [f"{values['data.frames']} frames"] if "data.frames" in values else []
        parts += ["keeping 25 %"] if "pretrain.selection.keep_ratio" in values else []
        parts += ["checkpointing"] if "train.checkpointing" in values else []
        return ", ".join(parts)

    def build(self) -> MaskedAutoencoder | VideoClassifier:
        """The module in training mode, without stochastic depth, which would change the work of a step."""
        torch.manual_seed(0)
        recipe = load_recipe(self.recipe, overrides=[*self.overrides, "finetune.drop_path=0.0"])
        return make_stage_spec(recipe, self.stage).build().train()


def clips_for(model: MaskedAutoencoder | VideoClassifier, number: int) -> Tensor:
    """(number, 3, T, H, W) of normal noise."""
    grid, (t, p, q) = model.encoder.grid, model.encoder.patch_embed.tubelet
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, 3, grid.t * t, grid.h * p, grid.w * q, generator=generator)


def our_pass(model: MaskedAutoencoder | VideoClassifier, dtype: torch.dtype) -> Pass:
    """Forward pass and loss as they are."""

    def run(clips: Tensor) -> Tensor:
        with _precision(dtype):
            if isinstance(model, MaskedAutoencoder):
                return model(clips, noise=_noise(model, clips)).loss
            return F.cross_entropy(model(clips).float(), _labels(clips))

    return run


def plain_pass(model: MaskedAutoencoder | VideoClassifier, dtype: torch.dtype) -> Pass:
    """The same in the plain implementation, on the same weights."""

    def run(clips: Tensor) -> Tensor:
        with _precision(dtype):
            if isinstance(model, MaskedAutoencoder):
                return pretraining_loss(model, clips, _noise(model, clips))
            return F.cross_entropy(logits(model, clips).float(), _labels(clips))

    return run


def transformers_videomae(backbone: str) -> nn.Module:
    """`VideoMAEForPreTraining` of the same size, with its fused attention."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    from everest.config.model_settings import BACKBONES

    size = BACKBONES[backbone]
    torch.manual_seed(0)
    config = VideoMAEConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        decoder_hidden_size=size.decoder_width,
        decoder_num_hidden_layers=4,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=4 * size.decoder_width,
        attn_implementation="sdpa",
    )
    return VideoMAEForPreTraining(config).train()


def transformers_pass(model: nn.Module, dtype: torch.dtype) -> Pass:
    """Its forward pass and loss with VideoMAE's tube of 90 %."""
    masked = torch.ones(196, dtype=torch.bool)
    masked[torch.randperm(196, generator=torch.Generator().manual_seed(2))[:20]] = False

    def run(clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2)  # (B, T, 3, H, W)
        with _precision(dtype):
            return model(frames, bool_masked_pos=masked.repeat(8).expand(clips.size(0), -1)).loss

    return run


def _precision(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def _noise(model: MaskedAutoencoder, clips: Tensor) -> Tensor:
    shape = (clips.size(0), model.noise_layout.total)
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def _labels(clips: Tensor) -> Tensor:
    return torch.zeros(clips.size(0), dtype=torch.int64)


@contextmanager
def without_numbers(model: nn.Module) -> Iterator[None]:
    """Give weights and all new tensors shapes but no numbers, so that 128 frames need no memory.

    The model cannot be used afterwards.
    """
    mode = FakeTensorMode()
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = mode.from_tensor(tensor)
    with mode:
        yield


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor], *, left_out: tuple[Tensor, ...] = ()) -> int:
    """Bytes of all storages that `forward` saves, each once, without weights and `left_out`."""

    def key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    known = {key(tensor) for tensor in (*model.parameters(), *model.buffers(), *left_out)}
    found: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if key(tensor) not in known:
            # The tensor as well: its storage may not be freed and given out again while we count.
            found[key(tensor)] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    total = sum(size for size, _ in found.values())
    del loss
    return total


def saved_bytes_per_clip(model: nn.Module, forward: Callable[[Tensor], Tensor], clips: Tensor) -> int:
    """The growth from one clip to two of (2, C, T, H, W): casts of weights drop out."""
    one, two = clips[:1].clone(), clips.clone()
    counts = [saved_bytes(model, lambda x=x: forward(x), left_out=(x,)) for x in (one, two)]
    return counts[1] - counts[0]


def gflop(forward: Callable[[Tensor], Tensor], clips: Tensor) -> float:
    """Of forward and backward pass of the first clip; two FLOPs a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        forward(clips[:1]).backward()
    return counter.get_total_flops() / 1e9
