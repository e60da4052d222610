"""The ImageNet network of a tokenizer's perceptual loss: timm's ResNet-50."""

from __future__ import annotations

from typing import Final

import timm
from torch import nn

from everest.converters.files import locate_checkpoint, read_foreign
from everest.errors import CheckpointError, EnvironmentProblem
from everest.system.hub import HubUnreachable
from everest.system.processes import warn_on_main
from everest.system.weights import load_tensors, require_finite

NETWORK: Final = "resnet50"
SETTING: Final = "tokenizer.loss.perceptual_weights"
# Heuristic: timm's weights with plain training, as MAGVIT uses.
WEIGHTS: Final = "hf:timm/resnet50.tv_in1k"


def load_network(weights: str | None) -> nn.Module:
    """Load the network, whose logits the loss compares.

    Args:
        weights: a file, or `hf:OWNER/NAME` on the hub or in its local cache; None is timm's.
    """
    network = timm.create_model(NETWORK)
    try:
        path = locate_checkpoint(WEIGHTS if weights is None else weights, notify=warn_on_main)
        initial, tensors = network.state_dict(), read_foreign(path).tensors
        # Counters of batch norms are missing in some files of weights.
        counters = {name: x for name, x in initial.items() if name.endswith("num_batches_tracked")}
        load_tensors(network, counters | dict(tensors), source=str(path))
        require_finite(tensors, source=path)
    except CheckpointError as error:
        error_type = EnvironmentProblem if isinstance(error, HubUnreachable) else CheckpointError
        raise error_type(f"{SETTING}: {error}; or set it to a local file of weights") from error
    return network
