"""The ImageNet network whose logits a tokenizer's perceptual loss compares: a ResNet-50."""

from __future__ import annotations

from typing import Final

import timm
from torch import nn

from everest.errors import CheckpointError, EnvironmentProblem
from everest.foreign.files import locate, read_foreign
from everest.system.hub import Unreachable, warn_on_main
from everest.system.weights import load_tensors, require_finite

SETTING: Final = "tokenizer.loss.perceptual_weights"
NETWORK: Final = "resnet50"
WEIGHTS: Final = "hf:timm/resnet50.tv_in1k"  # our choice: timm's weights with plain training, as MAGVIT uses


def load_network(weights: str | None) -> nn.Module:
    """Load the ImageNet network.

    Args:
        weights: a file, or `hf:OWNER/NAME` on the hub or in its local cache; None is timm's.
    """
    network = timm.create_model(NETWORK)
    try:
        path = locate(WEIGHTS if weights is None else weights, notify=warn_on_main)
        initial, tensors = network.state_dict(), read_foreign(path).tensors
        # Counters of batch norms are missing in some files of weights.
        counters = {name: x for name, x in initial.items() if name.endswith("num_batches_tracked")}
        load_tensors(network, counters | dict(tensors), source=str(path))
        require_finite(tensors, source=path)
    except Unreachable as error:
        raise EnvironmentProblem(f"{SETTING}: {error}; or set it to a local file of weights") from error
    except CheckpointError as error:
        raise CheckpointError(f"{SETTING}: {error}") from error
    return network
