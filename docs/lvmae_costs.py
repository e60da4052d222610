"""The table of costs in docs/lvmae.md, by everest's own accounting: python docs/lvmae_costs.py"""

from __future__ import annotations

from pathlib import Path

from everest.config.recipe import load_recipe
from everest.models.clip_spec import ModelSpec
from everest.models.cost import count_macs, count_tokens
from everest.models.mae import AutoencoderSpec
from everest.models.memory import training_bytes
from everest.profiling.profile import make_stage_spec

PAGE = Path(__file__).with_name("lvmae.md")
BEGIN, END = "<!-- docs/lvmae_costs.py -->\n", "<!-- end of lvmae_costs -->"
FRACTIONS = (0.05, 0.15, 0.25, 0.5, 0.75)  # predicted; a third of it at random, as in the paper's sweep
BF16 = 2
SOFTMAX_COPIES = 2.5  # number of (tokens x tokens x heads) tensors that unfused attention saves


def count_softmax_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes that unfused attention saves in addition: tokens x tokens per head and block."""
    tokens = count_tokens(spec)
    size = spec.model.backbone_size
    encoded = spec.model.class_token + spec.model.registers + tokens.visible
    squares = size.depth * size.heads * encoded**2
    if isinstance(spec, AutoencoderSpec):
        squares += spec.model.decoder_depth * size.decoder_heads * (tokens.visible + tokens.target) ** 2
    return int(SOFTMAX_COPIES * bytes_per_value * squares)


def row(fraction: float | None) -> str:
    """One line: None predicts all that is not seen."""
    chosen = ["strategy=tube"]
    if fraction is not None:
        chosen = [f"keep_ratio={fraction * 2 / 3}", f"random_ratio={fraction / 3}"]
    overrides = [f"pretrain.selection.{text}" for text in chosen]
    recipe = load_recipe("lvmae-128", overrides=[*overrides, "train.checkpointing=false"])
    spec = make_stage_spec(recipe, "pretrain")
    fused = training_bytes(spec, BF16)
    plain = fused + count_softmax_bytes(spec, BF16)
    tokens, macs = count_tokens(spec), count_macs(spec).total / 1e9
    decoded = tokens.visible + tokens.target
    name = "all" if fraction is None else f"{fraction:.0%}"
    return f"| {name} | {decoded} | {macs:.0f} | {fused / 1e9:.2f} GB | {plain / 1e9:.1f} GB |"


def main() -> None:
    head = (
        "| predicted tokens | tokens in the decoder | GMACs | activations, fused attention "
        "| activations, attention not fused |"
    )
    table = "\n".join([head, "|---|---|---|---|---|", *(row(fraction) for fraction in (*FRACTIONS, None))])
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
