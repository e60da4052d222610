"""Recognizes a foreign checkpoint and converts it to checked weights under everest's names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from everest.converters.foreign_checkpoint import FRAME_SAMPLE_RATE, ForeignCheckpoint
from everest.converters.preprocessor import compare_preprocessor
from everest.converters.recognition import ForeignMetadata, Hints, derive_model_spec, recognize
from everest.errors import CheckpointError, join_first, shorten
from everest.models.clip_spec import ModelSpec
from everest.system.files import absolute_keeping_links
from everest.system.weights import Weights, require_finite

MAX_LISTED: Final = 4  # names that a message lists one by one
FRESH_SEED: Final = 0  # seed of the tensors that a checkpoint lacks, with --partial
# Names of the encoder's tensors, under the encoder's name or at the top level. Some programs add a class
# token and learned positions.
ENCODER_NAME: Final = re.compile(
    r"(videomae\.|vjepa2\.)?(encoder|embeddings|patch_embed|blocks|norm|layernorm)\."
    r"|(cls_token|pos_embed_(spatial|temporal|class))$"
)
OPTIONAL_BIASES: Final = (".q_bias", ".k_bias", ".v_bias")  # biases of queries, rotated keys, and values


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A recognized checkpoint."""

    metadata: ForeignMetadata
    spec: ModelSpec
    classes: tuple[str, ...] | None
    zero: frozenset[str]  # our biases that the file's model lacks, which equals zeros
    missing: tuple[str, ...]  # our tensors that the file lacks, or has in a different shape
    unexpected: tuple[str, ...]  # foreign tensors without a place in our model
    stride: int | None  # stride of the training clips, if the file states it
    notes: tuple[str, ...]


def identify(foreign: ForeignCheckpoint, hints: Hints) -> Identity:
    """Recognize a checkpoint by its names and shapes; the only weights read are a position table."""
    metadata = recognize(foreign, hints)
    spec = derive_model_spec(metadata)
    with torch.device("meta"):
        our_shapes = {key: tuple(tensor.shape) for key, tensor in spec.build().state_dict().items()}
    zero = set()  # biases of stacks without any (transformers: qv_bias false)
    for stack in ("encoder.", "decoder."):
        biases = {key for key in our_shapes if key.startswith(stack) and key.endswith(OPTIONAL_BIASES)}
        if any(key.startswith(stack) for key in metadata.shapes) and biases.isdisjoint(metadata.shapes):
            zero |= biases
    fitting = {key for key, shape in metadata.shapes.items() if our_shapes.get(key) == shape}
    unfit = {part for key in metadata.shapes.keys() - fitting for part in metadata.translation.sources[key]}
    notes = list(foreign.notes)
    if metadata.program == "transformers" and not foreign.config:
        notes.append("no config.json next to it: frames, size and heads are taken as released")
    unnamed = metadata.program == "videomae" and hints.family is None and metadata.translation.table is None
    if unnamed and metadata.kind != "pretrain":
        notes.append(
            "a fine-tuned MVD looks the same but has other positions, which no file shows: if this is one, "
            "use --family mvd"
        )
    return Identity(
        metadata=metadata,
        spec=spec,
        classes=_read_class_names(metadata, spec),
        zero=frozenset(zero),
        missing=tuple(sorted(our_shapes.keys() - fitting - zero)),
        unexpected=tuple(sorted({*metadata.translation.unexpected, *unfit})),
        stride=metadata.stored.get(FRAME_SAMPLE_RATE),
        notes=(*notes, *compare_preprocessor(foreign.preprocessor, spec.size)),
    )


def _read_class_names(metadata: ForeignMetadata, spec: ModelSpec) -> tuple[str, ...] | None:
    """Return the class names that transformers stores, unless they are placeholders."""
    names = metadata.stored.get("id2label")
    if spec.num_classes is None or names is None:
        return None
    ordered = tuple(names[key] for key in sorted(names, key=int))
    if ordered == tuple(f"LABEL_{number}" for number in range(len(ordered))):
        return None
    if len(ordered) != spec.num_classes:
        raise metadata.error(
            f"its config.json names {len(ordered)} classes, its head has {spec.num_classes}; one of the two "
            "is of another checkpoint"
        )
    return ordered


class Conversion(NamedTuple):
    """The converted weights, and the identity of the foreign checkpoint."""

    weights: Weights
    identity: Identity


def convert(
    foreign: ForeignCheckpoint, hints: Hints, *, partial: bool = False, classes: tuple[str, ...] | None = None
) -> Conversion:
    """Map a checkpoint to our model.

    Args:
        partial: take the tensors that fit; missing tensors start fresh and unexpected tensors are left out,
            unless they are part of the encoder.
        classes: names of a classifier's classes, instead of those in the checkpoint.
    """
    identity = identify(foreign, hints)
    metadata, missing, unexpected = identity.metadata, identity.missing, identity.unexpected
    of_encoder = [name for name in unexpected if ENCODER_NAME.match(name)]
    if of_encoder or ((missing or unexpected) and not partial):
        problems = (("it lacks", missing), ("no place for", unexpected))
        gaps = "; ".join(f"{problem} {', '.join(group_names(names))}" for problem, names in problems if names)
        if metadata.family.left_out and len(of_encoder) < len(unexpected):
            gaps += f" ({metadata.family.left_out})"
        fix = "`everest convert --partial` takes the encoder, which is all that finetune needs"
        if of_encoder:  # names a tensor of all blocks once
            parts = sorted({shorten(re.sub(r"\.\d+\.", ".N.", name)) for name in of_encoder})
            named = join_first(parts, MAX_LISTED)
            fix = f"its encoder would compute other features without {named}; take another checkpoint"
        elif any(name.startswith("encoder.") for name in missing):
            fix = "`everest convert --partial` takes what fits"
        raise metadata.error(f"{metadata.program}, cannot be mapped fully: {gaps}; {fix}")
    num_classes = identity.spec.num_classes
    if classes is not None and num_classes != len(classes):
        head = f"its head has {num_classes} classes" if num_classes else "no classifier"
        raise CheckpointError(f"{foreign.path}: {head}, not the {len(classes)} of --classes")
    weights = Weights(
        kind=identity.spec.kind,
        settings=identity.spec.dump(),
        classes=classes or identity.classes,
        recipe=metadata.program,
        step=0,
        tensors=_convert_tensors(identity),
        clip=None if identity.stride is None else {"stride": identity.stride, "sampling": "dense"},
        origin={
            "family": metadata.program,
            "file": str(absolute_keeping_links(foreign.path)),
            "licence": foreign.licence,
            "fresh": group_names(missing),
            "left_out": group_names(unexpected),
        },
    )
    return Conversion(weights=weights, identity=identity)


def _convert_tensors(identity: Identity) -> dict[str, Tensor]:
    """Return all tensors of our model, float32."""
    taken, metadata, foreign = {}, identity.metadata, identity.metadata.foreign
    for our_name, names in metadata.translation.sources.items():
        if set(names).intersection(identity.unexpected):
            continue
        parts = {name: foreign.tensors[name] for name in names}
        for name, x in parts.items():
            if not x.is_floating_point():
                raise metadata.error(f"{name} holds {x.dtype}, a quantized or other format; get it as float")
        require_finite(parts, source=foreign.path)
        taken[our_name] = torch.cat([part.float() for part in parts.values()])
    if not identity.missing and not identity.zero:
        return taken
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FRESH_SEED)
        fresh = identity.spec.build().state_dict()
    zeros = {name: torch.zeros_like(fresh[name]) for name in identity.zero}
    return {name: fresh[name] for name in identity.missing} | zeros | taken


def group_names(names: Collection[str]) -> list[str]:
    """Return a few names unchanged; many names become counts per module."""
    if len(names) <= MAX_LISTED:
        return [shorten(name) for name in sorted(names)]
    counts = sorted(Counter(name.partition(".")[0] for name in names).items())
    return [f"{shorten(name)} ({count})" if count > 1 else shorten(name) for name, count in counts]


def describe_checkpoint(identity: Identity) -> dict[str, Any]:
    """Return the document of `everest convert --json`."""
    metadata, spec, size = identity.metadata, identity.spec, identity.spec.model.backbone_size
    foreign = metadata.foreign
    decoder = {"depth": spec.model.decoder_depth, "width": size.decoder_width, "heads": size.decoder_heads}
    return {
        "checkpoint": str(foreign.path),
        "family": metadata.program,
        "title": metadata.family.title,
        "stage": metadata.kind,
        "kind": spec.kind,
        "backbone": spec.model.backbone,
        "encoder": {"depth": size.depth, "width": size.width, "heads": size.heads},
        "decoder": decoder if metadata.kind == "pretrain" else None,
        "frames": spec.frames,
        "size": list(spec.size),
        "tubelet": list(spec.model.tubelet),
        "positions": spec.model.positions,
        "class_token": spec.model.class_token,
        "pooling": spec.model.pooling if spec.kind == "classifier" else None,
        "num_classes": spec.num_classes,
        "classes": list(identity.classes) if identity.classes else None,
        "parameters": sum(tensor.numel() for tensor in foreign.tensors.values()),
        "licence": foreign.licence,
        "convertible": not identity.missing and not identity.unexpected,
        "used": len(foreign.tensors) - len(identity.unexpected) - len(metadata.translation.without_effect),
        "without_effect": sorted(metadata.translation.without_effect),
        "missing": list(identity.missing),
        "unexpected": list(identity.unexpected),
        "notes": list(identity.notes),
    }
