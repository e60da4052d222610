"""The cost figures of the EVEREST paper (paper_tables.yaml describes the keys) next to computed ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from everest.config.recipe import load_recipe
from everest.config.yaml import read_yaml
from everest.models.cost import count_macs, count_tokens
from everest.models.spec import ModelSpec
from everest.profiling.profile import StageName, cost_of, stage_spec
from everest.profiling.uncommon_costs import ST_MAE, released_macs

TABLE: Final = Path(__file__).with_suffix(".yaml")
SOFTMAX_COPIES: Final = 2.5  # tensors of tokens x tokens x heads that unfused attention saves
GPUS: Final = 8  # of the paper's machine; its memory figures are sums over them

Module = tuple[str, StageName, tuple[str, ...]]  # recipe, stage and overrides


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A printed figure, and what computes it: a row of the table."""

    table: int
    what: str
    printed: str
    unit: Literal["GMACs", "M parameters", "GB", "time"] = "GMACs"
    of: Module | None = None
    released: StageName | None = None
    batch: int | None = None
    note: str = ""
    note_of: Module | None = None

    def computed(self) -> float | None:
        """Compute GMACs or millions of parameters; None for figures that must be measured."""
        if self.released is not None:
            return _released(self.released)[0]
        if self.of is None or self.unit not in ("GMACs", "M parameters"):
            return None
        cost = cost_of(*self.of)
        return cost.gmacs if self.unit == "GMACs" else cost.parameters / 1e6

    def memory(self) -> dict[str, float]:
        """Estimate GB (10^9 bytes) on all GPUs in bf16, with fused and with unfused attention."""
        if self.unit != "GB" or self.of is None or self.batch is None:
            return {}
        cost = cost_of(*self.of)
        fused = GPUS * sum(cost.model_state.values()) + self.batch * cost.activation_bytes_per_clip
        return {"fused": fused / 1e9, "unfused": (fused + self.batch * softmax_bytes(cost.spec, 2)) / 1e9}

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --paper --json`."""

        def percent_off(found: float) -> float:
            return 100 * (found - float(self.printed)) / float(self.printed)

        row: dict[str, Any] = {
            "table": self.table,
            "what": self.what,
            "unit": self.unit,
            "paper": self.printed,
        }
        computed, memory, note = self.computed(), self.memory(), self.note
        for kind, gigabytes in memory.items():
            row |= {f"ours_{kind}": gigabytes, f"deviation_percent_{kind}": percent_off(gigabytes)}
        if not memory:
            decimals = len(self.printed.partition(".")[2])
            rounded = None if computed is None else f"{computed:.{decimals}f}"
            row |= {"ours": computed, "rounded": rounded}
        if computed is not None:
            row |= {"deviation_percent": percent_off(computed), "every_digit": row["rounded"] == self.printed}
        if self.released is not None:
            note = _released(self.released)[1]
        elif self.note_of is not None:
            note = note.format(cost_of(*self.note_of).gmacs)
        return row | {"needs_gpu": self.unit in ("GB", "time"), "note": note}


def _released(stage: StageName) -> tuple[float, str]:
    """The GMACs of ST-MAE's released program on UCF101, and a note about its class tokens."""
    spec = stage_spec(load_recipe(ST_MAE, overrides=["data.num_classes=101"]), stage)

    def gmacs(encoder_class: int, decoder_class: int) -> float:
        return released_macs(spec, encoder_class=encoder_class, decoder_class=decoder_class).total / 1e9

    own = count_macs(spec).total / 1e9
    if stage == "finetune":
        return gmacs(1, 1), f"with a class token; everest's model {own:.1f}"
    return gmacs(1, 1), (
        f"by its public defaults; without class token {gmacs(0, 0):.2f}; "
        f"{gmacs(0, 1):.2f} with one in the decoder only, a guess; everest's model {own:.2f}"
    )


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
