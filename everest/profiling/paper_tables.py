"""The cost figures of the EVEREST paper (paper_tables.yaml describes the keys) next to computed ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from everest.config.yaml import read_yaml
from everest.models.cost import count_tokens
from everest.models.spec import ModelSpec
from everest.profiling.profile import StageName, cost_of

TABLE: Final = Path(__file__).with_suffix(".yaml")
SOFTMAX_COPIES: Final = 2.5  # tensors of tokens x tokens x heads that unfused attention saves
GPUS: Final = 8  # of the paper's machine; its memory figures are sums over them
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

Module = tuple[str, StageName, tuple[str, ...]]  # recipe, stage and overrides


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A printed figure, and what computes it: a row of the table."""

    table: int
    what: str
    printed: str
    unit: Literal["GMACs", "M parameters", "GB", "time"] = "GMACs"
    of: Module | None = None
    batch: int | None = None
    note: str = ""

    def computed(self) -> float | None:
        """Compute GMACs, millions of parameters, or GB; None for figures that must be measured.

        GB (10^9 bytes) are estimated for all GPUs, in bf16 with attention that is not fused, as the paper's.
        """
        if self.of is None:
            return None
        cost = cost_of(*self.of)
        if self.unit == "GMACs":
            return cost.gmacs
        if self.unit == "M parameters":
            return cost.parameters / 1e6
        if self.batch is None:
            return None
        clip = cost.activation_bytes_per_clip + softmax_bytes(cost.spec, 2)
        return (GPUS * sum(cost.model_state.values()) + self.batch * clip) / 1e9

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --paper --json`."""
        row: dict[str, Any] = {"table": self.table, "what": self.what, "unit": self.unit}
        row |= {"paper": self.printed, "ours": self.computed(), "note": self.note}
        if row["ours"] is not None:
            decimals = len(self.printed.partition(".")[2])
            row["rounded"] = f"{row['ours']:.{decimals}f}"
            row["deviation_percent"] = 100 * (row["ours"] / float(self.printed) - 1)
        return row


def softmax_bytes(spec: ModelSpec, bytes_per_value: int) -> int:
    """Estimate the bytes that unfused attention saves in addition: tokens x tokens per head and block."""
    tokens, size = count_tokens(spec), spec.model.backbone_size
    squares = size.depth * size.heads * (tokens.visible + spec.model.num_prefix) ** 2
    if spec.is_autoencoder:
        squares += spec.model.decoder_depth * size.decoder_heads * (tokens.visible + tokens.target) ** 2
    return int(SOFTMAX_COPIES * bytes_per_value * squares)


def paper_figures() -> list[PaperFigure]:
    """Every cost figure of Tables 1, 3, 4, 5, 10, 11, 12 and 15."""
    return TypeAdapter(list[PaperFigure]).validate_python(read_yaml(TABLE.read_text("utf-8"), str(TABLE)))
