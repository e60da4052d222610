"""Converts a checkpoint of another program: checked weights under our names, and a report on every tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from everest.errors import CheckpointError, first_names, shown
from everest.foreign.facts import Hints
from everest.foreign.files import Foreign
from everest.foreign.identify import Identity, Refused, identify
from everest.foreign.translation import FAMILIES
from everest.system.files import absolute
from everest.system.weights import Weights, require_finite

FEW: Final = 4  # names that a message lists one by one
FRESH_SEED: Final = 0  # of the tensors that a checkpoint lacks, with --partial
# Where the programs have their encoder: under its name, or at the top.
ENCODER: Final = re.compile(r"(videomae\.|vjepa2\.)?(encoder|embeddings|patch_embed|blocks|norm|layernorm)\.")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Our weights, converted from another program's, and what these were."""

    weights: Weights
    identity: Identity


def convert(
    foreign: Foreign, hints: Hints, *, partial: bool = False, classes: tuple[str, ...] | None = None
) -> Converted:
    """Map a checkpoint to our model.

    Args:
        partial: take the tensors that fit; missing ones start fresh and unexpected ones are left out, unless
            they are part of the encoder.
        classes: names of a classifier's classes, instead of those in the checkpoint.
    Raises:
        CheckpointError: an unknown program, tensors that are missing or unexpected (without `partial`),
            parts of an encoder that everest's lacks, or values that are not finite.
    """
    identity = identify(foreign, hints)
    if isinstance(identity, Refused):
        raise CheckpointError(f"{foreign.path}: {identity.title}: {identity.reason}")
    _require_complete(foreign, identity, partial=partial)
    num_classes = identity.spec.num_classes
    if classes is not None and num_classes != len(classes):
        head = f"its head has {num_classes} classes" if num_classes else "no classifier"
        raise CheckpointError(f"{foreign.path}: {head}, not the {len(classes)} of --classes")
    weights = Weights(
        kind=identity.spec.kind,
        settings=identity.spec.dump(),
        classes=classes or identity.classes,
        recipe=identity.family,
        step=0,
        tensors=_tensors(foreign, identity),
        clip=None if identity.stride is None else {"stride": identity.stride, "sampling": "dense"},
        origin={
            "family": identity.family,
            "file": str(absolute(foreign.path)),
            "licence": foreign.licence,
            "fresh": grouped(identity.missing),
            "left_out": grouped(identity.unexpected),
        },
    )
    return Converted(weights=weights, identity=identity)


def _require_complete(foreign: Foreign, identity: Identity, *, partial: bool) -> None:
    """Raise CheckpointError if tensors are missing or unexpected; `partial`: only those of the encoder."""
    missing, unexpected = identity.missing, identity.unexpected
    of_encoder = [name for name in unexpected if ENCODER.match(name)]
    if not of_encoder and (partial or not (missing or unexpected)):
        return
    problems = (("it lacks", missing), ("no place for", unexpected))
    gaps = "; ".join(f"{problem} {', '.join(grouped(names))}" for problem, names in problems if names)
    family = FAMILIES.get(identity.family)  # a program with the names of another family has no reason
    if family is not None and family.left_out and len(of_encoder) < len(unexpected):
        gaps += f" ({family.left_out})"
    if of_encoder:  # once for a tensor that all blocks have
        parts = sorted({shown(re.sub(r"\.\d+\.", ".N.", name)) for name in of_encoder})
        named = first_names(parts, FEW)
        fix = f"its encoder would compute other features without {named}; take another checkpoint"
    elif any(name.startswith("encoder.") for name in missing):
        fix = "`everest convert --partial` takes what fits"
    else:
        fix = "`everest convert --partial` takes the encoder, which is all that finetune needs"
    raise CheckpointError(f"{foreign.path}: {identity.family}, cannot be mapped fully: {gaps}; {fix}")


def _tensors(foreign: Foreign, identity: Identity) -> dict[str, Tensor]:
    """Return all tensors of our model, float32."""
    taken = {}
    for our_name, names in identity.translation.take.items():
        if set(names).intersection(identity.unexpected):
            continue
        parts = {name: foreign.tensors[name] for name in names}
        for name, part in parts.items():
            if not part.is_floating_point():
                raise CheckpointError(
                    f"{foreign.path}: {name} holds {part.dtype}, a quantized or other format; get it as float"
                )
        require_finite(parts, source=foreign.path)
        taken[our_name] = torch.cat([part.float() for part in parts.values()])
    if not identity.missing and not identity.zero:
        return taken
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FRESH_SEED)
        fresh = identity.spec.build().state_dict()
    zeros = {name: torch.zeros_like(fresh[name]) for name in identity.zero}
    return {name: fresh[name] for name in identity.missing} | zeros | taken


def grouped(names: Collection[str]) -> list[str]:
    """Return a few names as they are, and many as counts of the modules that they belong to."""
    if len(names) <= FEW:
        return [shown(name) for name in sorted(names)]
    counts = sorted(Counter(name.partition(".")[0] for name in names).items())
    return [f"{shown(name)} ({count})" if count > 1 else shown(name) for name, count in counts]


def describe(foreign: Foreign, identity: Identity | Refused) -> dict[str, Any]:
    """Return the document of `everest convert --json`."""
    about = {"checkpoint": str(foreign.path), "family": identity.family, "title": identity.title}
    if isinstance(identity, Refused):
        return {**about, "convertible": False, "reason": identity.reason, "licence": foreign.licence}
    spec, size, idle = identity.spec, identity.spec.model.backbone_size, identity.translation.idle
    decoder = {"depth": spec.model.decoder_depth, "width": size.decoder_width, "heads": size.decoder_heads}
    return {
        **about,
        "stage": identity.stage,
        "kind": spec.kind,
        "backbone": spec.model.backbone,
        "encoder": {"depth": size.depth, "width": size.width, "heads": size.heads},
        "decoder": decoder if identity.stage == "pretrain" else None,
        "frames": spec.frames,
        "size": list(spec.size),
        "tubelet": list(spec.model.tubelet),
        "positions": spec.model.positions,
        "class_token": spec.model.class_token,
        "input": spec.model.input,
        "pooling": spec.model.pooling if spec.kind == "classifier" else None,
        "num_classes": spec.num_classes,
        "classes": list(identity.classes) if identity.classes else None,
        "parameters": sum(tensor.numel() for tensor in foreign.tensors.values()),
        "licence": foreign.licence,
        "convertible": not identity.missing and not identity.unexpected,
        "used": len(foreign.tensors) - len(identity.unexpected) - len(idle),
        "without_effect": sorted(idle),
        "missing": list(identity.missing),
        "unexpected": list(identity.unexpected),
        "notes": list(identity.notes),
    }
