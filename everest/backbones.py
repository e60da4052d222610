"""The sizes of the known backbones: a plain table, so that reading a recipe needs no model code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSize:
    """Widths, depths and attention heads of an encoder and of the decoder that pre-trains it."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


# vit-s to vit-h as in the released VideoMAE and EVEREST programs; vit-tiny is ours, for small machines.
BACKBONES = {
    "vit-tiny": BackboneSize(width=192, depth=12, heads=3, decoder_width=96, decoder_heads=3),
    "vit-s": BackboneSize(width=384, depth=12, heads=6, decoder_width=192, decoder_heads=3),
    "vit-b": BackboneSize(width=768, depth=12, heads=12, decoder_width=384, decoder_heads=6),
    "vit-l": BackboneSize(width=1024, depth=24, heads=16, decoder_width=512, decoder_heads=8),
    "vit-h": BackboneSize(width=1280, depth=32, heads=16, decoder_width=640, decoder_heads=8),
}
