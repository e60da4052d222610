"""The image models of timm that everest reads: python docs/timm_table.py [--check]

It creates every architecture of timm that has weights, on the meta device, and converts it. The result is the
table of `everest weights list --timm`, everest/checkpoints/timm_families.yaml. With --check nothing is
written: the exit code is 1 if it is stale. It takes a few minutes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import timm
import torch

from everest.checkpoints.public_weights import TIMM_TABLE, TimmFamily
from everest.foreign.timm_images import foreign_parts, image_weights
from everest.models.spec import ModelSpec

GRAY = (0.5, 0.5, 0.5)
NOT_VIT = "all others"
NOT_ON_THE_HUB = "no weights on the hub"
HEAD = f"""# The image models of timm {timm.__version__} by family: a table of `everest weights list`.
# docs/timm_table.py writes this file.
#
# pattern: of names, ARCHITECTURE or ARCHITECTURE.TAG. A name is of the first family that has a pattern of it.
# names: the number of names with weights. because: why none of them loads; without it all of them load.
"""
# A family, and the patterns of its names. The first one counts, so that special ones come first.
FAMILIES = {
    "DINOv3": "vit_*_dinov3*",
    "LingBot-Vision": "vit_*_lingbot",
    "DINOv2": "vit_*_dinov2",
    "TIPS v2": "vit_*_tipsv2",
    "DINO": "vit_*.dino",
    "I-JEPA": "vit_*.*_ijepa",
    "MAE": "vit_*.mae",
    "Perception Encoder": "vit_pe_*",
    "SigLIP, SigLIP 2": "vit_*_siglip_*",
    "hybrids of ViT and convolutions": "vit_*_mci_* vit_*_r26_* vit_*_r50_* vit_tiny_r_*",
    "CLIP": "vit_*_clip_*",
    "EVA-02 CLIP": "eva02_*_clip_*",
    "EVA-02": "eva02_*",
    "EVA": "eva_*",
    "RADIO": "vit_*_radio_*",
    "InternViT": "vit_intern*",
    "RoPE-ViT, mixed frequencies": "vit_*_rope_mixed_*",
    "RoPE-ViT": "vit_*_rope_*",
    "DeiT, DeiT III": "deit_* deit3_*",
    "FlexiViT": "flexivit_*",
    "Sapiens 2": "vit_*_sapiens2",
    "ViT, relative positions": "vit_relpos_* vit_srelpos_*",
    "ViT, differential attention": "vit_dwee_* vit_dlittle_*",
    "ViT, parallel blocks": "vit_pwee_* vit_dpwee_*",
    "ViT, norms after the blocks": "vit_*_rpn_*",
    "ViT": "vit_* test_vit*",
    "AIMv2": "aimv2_*",
    "BEiT-3": "beit3_*",
    "BEiT, BEiT v2": "beit_* beitv2_*",
    "Segment Anything": "samvit_*",
    "NaFlexViT": "naflexvit_*",
    "ViTamin": "vitamin_*",
}


def is_of(name: str, patterns: str) -> bool:
    """Whether one of the patterns, ARCHITECTURE or ARCHITECTURE.TAG, is of a name."""
    architecture, _, tag = name.partition(".")
    pairs = (pattern.partition(".") for pattern in patterns.split())
    return any(fnmatchcase(architecture, first) and fnmatchcase(tag, last or "*") for first, _, last in pairs)


def outcomes(names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each name with the reasons why it does not load. The tags of an architecture have the same parts."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        architecture = name.partition(".")[0]
        if architecture not in reasons:
            reasons[architecture] = list(_reasons(architecture))
        config = timm.get_pretrained_cfg(name)
        on_the_hub = config is not None and config.hf_hub_id
        yield name, reasons[architecture] if on_the_hub else [NOT_ON_THE_HUB]


def _reasons(architecture: str) -> Iterator[str]:
    """Why an architecture does not load. One that does is converted, and has all tensors of its encoder."""
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=0)
        parts = list(foreign_parts(model))
        yield from parts
        if not parts:
            weights = image_weights(model, mean=GRAY, std=GRAY, source=architecture)
            spec = ModelSpec.from_settings(weights.settings, source=Path(architecture))
            own = {name: tensor.shape for name, tensor in spec.build().state_dict().items()}
            assert own == {name: tensor.shape for name, tensor in weights.tensors.items()}, architecture


def families() -> list[TimmFamily]:
    """The families with names in this version of timm, then all that are no ViT.

    Raises:
        ValueError: a name of a family loads and another one does not, or a name of no family loads.
    """
    found: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for name, reasons in outcomes(timm.list_pretrained()):
        family = next((key for key, pattern in FAMILIES.items() if is_of(name, pattern)), NOT_VIT)
        found[family].append((name, reasons))
    table = []
    for family, pattern in {**FAMILIES, NOT_VIT: "*"}.items():
        rows = found.get(family, [])
        loading = [name for name, reasons in rows if not reasons]
        if len(loading) not in (0, len(rows)):
            raise ValueError(f"{family}: {len(loading)} of {len(rows)} names load; divide it: {loading[:9]}")
        because = ", ".join(dict.fromkeys(reason for _, reasons in rows for reason in reasons))
        if family == NOT_VIT:
            if loading:
                raise ValueError(f"{loading}: load, and are of no family")
            because = "another architecture"
        if rows:
            table.append(TimmFamily(family=family, pattern=pattern, names=len(rows), because=because or None))
    return table


def as_yaml(table: list[TimmFamily]) -> str:
    lines = []
    for row in table:
        because = f', because: "{row.because}"' if row.because else ""
        lines.append(f'- {{family: "{row.family}", pattern: "{row.pattern}", names: {row.names}{because}}}\n')
    return f"{HEAD}\n{''.join(lines)}"


def main() -> None:
    wanted = as_yaml(families())
    if not TIMM_TABLE.is_file() or TIMM_TABLE.read_text() != wanted:
        if "--check" in sys.argv[1:]:
            sys.exit(f"stale: {TIMM_TABLE.name}; run python docs/timm_table.py")
        TIMM_TABLE.write_text(wanted)


if __name__ == "__main__":
    main()
