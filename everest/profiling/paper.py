"""The cost figures of the EVEREST paper's tables, beside everest's values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from everest.config.recipe import load_recipe
from everest.config.yaml import read_yaml
from everest.models.cost import count_tokens
from everest.models.spec import ModelSpec
from everest.profiling.profile import VALUE_BYTES, StageCost, StageName

PAPER_TABLES: Final = Path(__file__).with_name("paper_tables.yaml")
PAPER_GPUS: Final = 8  # the paper's memory figures are sums over the GPUs of its machine
SOFTMAX_COPIES: Final = 2.5  # tensors of tokens x tokens x heads that unfused attention saves
SUBJECTS: Final = {  # of the paper's tables
    1: "cost of pre-training and fine-tuning by backbone",
    3: "memory of pre-training by batch size",
    4: "time and memory of pre-training by method",
    5: "cost and memory of fine-tuning with and without EVEREST",
    10: "cost by the share of tokens kept (EVEREST) or masked (VideoMAE, ST-MAE), ViT-B",
    11: "cost of fine-tuning by backbone",
    12: "cost by the number of frames",
    15: "size, memory and cost by the number of convolutions in the embedding",
}


@cache
def cost_of(recipe: str, stage: StageName, overrides: tuple[str, ...]) -> StageCost:
    """The cost of a stage of a shipped recipe with overrides, in bf16."""
    return StageCost(load_recipe(recipe, overrides=overrides), stage, value_bytes=VALUE_BYTES["bf16"])


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A printed figure, and what computes it: a row of paper_tables.yaml, which describes the keys."""

    table: int
    what: str
    printed: str
    unit: Literal["GMACs", "M parameters", "GB", "time"] = "GMACs"
    of: tuple[str, StageName, tuple[str, ...]] | None = None  # recipe, stage and overrides
    batch: int | None = None
    note: str = ""

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --paper --json`; `ours` is None if it must be measured.

        GB (10^9 bytes) are estimated for all GPUs, in bf16 with attention that is not fused, as the paper's.
        """
        ours = None
        if self.of is not None and self.unit != "GB":
            cost = cost_of(*self.of)
            ours = cost.gmacs if self.unit == "GMACs" else cost.parameters / 1e6
        elif self.of is not None and self.batch is not None:
            cost = cost_of(*self.of)
            clip = cost.activation_bytes_per_clip + softmax_bytes(cost.spec, VALUE_BYTES["bf16"])
            ours = (PAPER_GPUS * sum(cost.model_state.values()) + self.batch * clip) / 1e9
        row: dict[str, Any] = {"table": self.table, "what": self.what, "unit": self.unit}
        row |= {"paper": self.printed, "ours": ours, "note": self.note}
        if ours is not None:
            decimals = len(self.printed.partition(".")[2])
            row["rounded"] = f"{ours:.{decimals}f}"
            row["deviation_percent"] = 100 * (ours / float(self.printed) - 1)
        return row


def softmax_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes that unfused attention saves in addition: tokens x tokens per head and block."""
    tokens = count_tokens(spec)
    size = spec.model.backbone_size
    encoded = spec.model.class_token + spec.model.registers + tokens.visible
    squares = size.depth * size.heads * encoded**2
    if spec.is_autoencoder:
        squares += spec.model.decoder_depth * size.decoder_heads * (tokens.visible + tokens.target) ** 2
    return int(SOFTMAX_COPIES * bytes_per_value * squares)


def paper_figures() -> list[PaperFigure]:
    """Every cost figure of Tables 1, 3, 4, 5, 10, 11, 12 and 15."""
    rows = read_yaml(PAPER_TABLES.read_text("utf-8"), str(PAPER_TABLES))
    return TypeAdapter(list[PaperFigure]).validate_python(rows)
