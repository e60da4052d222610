"""The conversion itself: checked weights under our names, and a report of what became of every tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everest.checkpoints.foreign import Foreign
from everest.checkpoints.identify import Identity, Refused, identify
from everest.checkpoints.sizes import Hints
from everest.errors import CheckpointError
from everest.system.weights import Weights

FEW = 4  # names that a message tells one by one
FRESH_SEED = 0  # of what a checkpoint does not have, with --partial


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Weights of ours that were another program's."""

    weights: Weights
    identity: Identity


def convert(
    foreign: Foreign, hints: Hints, *, partial: bool = False, classes: tuple[str, ...] | None = None
) -> Converted:
    """Map a checkpoint to our model.

    Args:
        partial: take what fits; what is missing starts fresh and what is unexpected is left out.
        classes: names of a classifier's classes, instead of those that the checkpoint tells.
    Raises:
        CheckpointError: not known, not to be mapped fully (without `partial`), or with weights that are not
            finite numbers.
    """
    identity = identify(foreign, hints)
    if isinstance(identity, Refused):
        raise CheckpointError(f"{foreign.path}: {identity.title}: {identity.reason}")
    if not partial and (identity.missing or identity.unexpected):
        raise CheckpointError(f"{foreign.path}: {_not_whole(identity)}")
    if classes is not None and identity.spec.num_classes != len(classes):
        has = identity.spec.num_classes
        raise CheckpointError(
            f"{foreign.path}: {f'its head has {has} classes' if has else 'no classifier'}, "
            f"not the {len(classes)} of --classes"
        )
    tensors = _tensors(foreign, identity)
    weights = Weights(
        kind=identity.spec.kind,
        settings=identity.spec.dump(),
        classes=classes or identity.classes,
        recipe=identity.family,
        step=0,
        tensors=tensors,
        origin={
            "family": identity.family,
            "file": str(foreign.path),
            "licence": foreign.licence,
            "fresh": grouped(identity.missing),
        },
    )
    return Converted(weights=weights, identity=identity)


def _not_whole(identity: Identity) -> str:
    """The one line that tells why a checkpoint is not converted."""
    told = [
        f"{what} {', '.join(grouped(names))}"
        for what, names in (("it lacks", identity.missing), ("no place for", identity.unexpected))
        if names
    ]
    encoder_whole = not any(name.startswith("encoder.") for name in identity.missing)
    use = "the encoder, which is all that finetune needs" if encoder_whole else "what fits"
    return (
        f"{identity.family}, cannot be mapped fully: {'; '.join(told)}; "
        f"`everest convert --partial` takes {use}"
    )


def _tensors(foreign: Foreign, identity: Identity) -> dict[str, Tensor]:
    """All tensors of our model, float32."""
    taken = {}
    unusable = {*identity.unexpected}
    for ours, theirs in identity.translation.take.items():
        if not unusable.intersection(theirs):
            taken[ours] = torch.cat([_checked(foreign, name) for name in theirs])
    if not identity.missing and not identity.zero:
        return taken
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FRESH_SEED)
        fresh = identity.spec.build().state_dict()
    zeros = {name: torch.zeros_like(fresh[name]) for name in identity.zero}
    return {name: fresh[name] for name in identity.missing} | zeros | taken


def _checked(foreign: Foreign, name: str) -> Tensor:
    tensor = foreign.tensors[name]
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{foreign.path}: {name} holds {tensor.dtype}, a quantised or other format; get it as float"
        )
    tensor = tensor.float()
    wrong = int((~tensor.isfinite()).sum())
    if wrong:
        raise CheckpointError(
            f"{foreign.path}: {name} has {wrong} values that are no finite numbers: its training diverged or "
            "the file is damaged; take an earlier or another one"
        )
    return tensor


def grouped(names: Collection[str]) -> list[str]:
    """A few names as they are, many by what they belong to."""
    if len(names) <= FEW:
        return sorted(names)
    counts = Counter(name.partition(".")[0] for name in names)
    return [f"{name} ({count})" if count > 1 else name for name, count in sorted(counts.items())]


def describe(foreign: Foreign, found: Identity | Refused) -> dict[str, Any]:
    """What `everest convert --json` prints."""
    about = {"checkpoint": str(foreign.path), "family": found.family, "title": found.title}
    if isinstance(found, Refused):
        return {**about, "convertible": False, "reason": found.reason, "licence": foreign.licence}
    spec, size = found.spec, found.spec.model.backbone_size
    decoder = {"depth": spec.model.decoder_depth, "width": size.decoder_width, "heads": size.decoder_heads}
    return {
        **about,
        "stage": found.stage,
        "kind": spec.kind,
        "backbone": spec.model.backbone,
        "encoder": {"depth": size.depth, "width": size.width, "heads": size.heads},
        "decoder": decoder if found.stage == "pretrain" else None,
        "frames": spec.frames,
        "size": list(spec.size),
        "tubelet": list(spec.model.tubelet),
        "positions": spec.model.positions,
        "pooling": spec.model.pooling if spec.kind == "classifier" else None,
        "num_classes": spec.num_classes,
        "classes": list(found.classes) if found.classes else None,
        "parameters": sum(tensor.numel() for tensor in foreign.tensors.values()),
        "licence": foreign.licence,
        "convertible": not found.missing and not found.unexpected,
        "used": len(foreign.tensors) - len(found.unexpected) - len(found.translation.idle),
        "without_effect": sorted(found.translation.idle),
        "missing": list(found.missing),
        "unexpected": list(found.unexpected),
        "notes": list(found.notes),
    }
