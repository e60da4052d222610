"""A step makes the host wait for no GPU: shown without one, by shapes that claim to be on it."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import everest
from everest.methods.strategies import FrameDifference, RandomSpaceTime, RedundancyRobust, RunningCell, Tube
from everest.video.pixels import normalize

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class OffDevice(TorchDispatchMode):
    """Notes every operation that reads or makes a tensor of the host, or whose result the host must see."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if any(x.device.type == "cpu" for x in tensors) or any(name in str(func) for name in WAITS):
            self.found.append(str(func))
        return out


def move(model: nn.Module, mode: FakeTensorMode) -> None:
    """Weights that are shapes on a GPU; there need be none."""
    for module in model.modules():
        for tensors in cast(tuple[dict[str, Any], ...], (module._parameters, module._buffers)):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                with mode:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    tensors[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake


def off_device(model: nn.Module) -> list[str]:
    """The operations of a forward pass, from bytes on, that are noted."""
    mode = FakeTensorMode()
    move(model, mode)
    with mode:
        clips = torch.empty(2, 3, 8, 64, 64, dtype=torch.uint8, device="cuda")
        with OffDevice() as noted:
            model(normalize(clips))
    return noted.found


@pytest.mark.parametrize(
    "selection",
    [
        RedundancyRobust(),
        RedundancyRobust(align="affine", cuts="detect", slice_cap=0.5),
        FrameDifference(),
        Tube(),
        RandomSpaceTime(),
        RunningCell(),
    ],
    ids=lambda selection: type(selection).__name__,
)
def test_pretraining_waits_for_nothing(selection):
    options = {"kind": "pretrain", "selection": selection}
    assert off_device(everest.create_model("vit-tiny", frames=8, size=64, **options)) == []


@pytest.mark.parametrize("pooling", ["mean", "class-attention"])
def test_fine_tuning_waits_for_nothing(pooling):
    options = {"kind": "classifier", "num_classes": 5, "pooling": pooling}
    assert off_device(everest.create_model("vit-tiny", frames=8, size=64, **options)) == []


def test_a_wait_would_be_noticed():
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([2.0], device=x.device)

    assert off_device(Reads())
