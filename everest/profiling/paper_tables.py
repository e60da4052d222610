"""The cost figures of the EVEREST paper (Hwang et al., ICML 2024) next to computed ones.

Figures are written as the paper prints them: their decimals state how closely the computed figure must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from everest.config.recipe import load_recipe
from everest.models.cost import gmacs_of_clip
from everest.models.memory import softmax_bytes
from everest.models.spec import ModelSpec
from everest.profiling import st_mae
from everest.profiling.profile import StageName, cost_of, stage_spec

Unit = Literal["GMACs", "M parameters", "GB", "time"]
GPUS: Final = 8  # of the paper's machine; its memory figures are sums over them
COMPUTED: Final = ("GMACs", "M parameters")
NAMES: Final = {"vit-s": "ViT-S", "vit-b": "ViT-B", "vit-l": "ViT-L"}


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """A printed figure, and the recipe or the formula that computes it.

    Args:
        of: recipe, stage and overrides; None if no module of everest has that figure.
        batch: of memory figures, over all GPUs; None if the paper does not state it.
        formula: the computed figure if `of` is None.
    """

    table: int
    what: str
    printed: str
    unit: Unit = "GMACs"
    of: tuple[str, StageName, tuple[str, ...]] | None = None
    batch: int | None = None
    formula: float | None = None
    note: str = ""

    @property
    def value(self) -> float:
        return float(self.printed)

    def computed(self) -> float | None:
        """Compute GMACs or millions of parameters; None for figures that must be measured."""
        if self.of is None or self.unit not in COMPUTED:
            return self.formula
        cost = cost_of(*self.of)
        return cost.gmacs if self.unit == "GMACs" else cost.parameters / 1e6

    def memory(self) -> tuple[float, float] | None:
        """Estimate GB (10^9 bytes) on all GPUs in bf16, with fused and with unfused attention."""
        if self.unit != "GB" or self.of is None or self.batch is None:
            return None
        recipe, stage, overrides = self.of
        cost = cost_of(*self.of)
        spec = stage_spec(load_recipe(recipe, overrides=overrides), stage)
        fused = GPUS * sum(cost.model_state.values()) + self.batch * cost.activation_bytes_per_clip
        return fused / 1e9, (fused + self.batch * softmax_bytes(spec, 2)) / 1e9

    def dump(self) -> dict[str, Any]:
        """Return the values of `everest profile --paper --json`."""
        computed, memory = self.computed(), self.memory()
        row: dict[str, Any] = {
            "table": self.table,
            "what": self.what,
            "unit": self.unit,
            "paper": self.printed,
        }
        if memory is not None:
            for kind, gigabytes in zip(("fused", "unfused"), memory, strict=True):
                row[f"ours_{kind}"] = gigabytes
                row[f"deviation_percent_{kind}"] = _percent_off(gigabytes, self.value)
        else:
            decimals = len(self.printed.partition(".")[2])
            row |= {
                "ours": computed,
                "rounded": None if computed is None else f"{computed:.{decimals}f}",
            }
        if computed is not None:
            row["deviation_percent"] = _percent_off(computed, self.value)
            row["every_digit"] = row["rounded"] == self.printed
        return row | {"needs_gpu": self.unit in ("GB", "time"), "note": self.note}


def _percent_off(computed: float, paper: float) -> float:
    return 100 * (computed - paper) / paper


def _on(recipe: str, stage: StageName, *overrides: str) -> tuple[str, StageName, tuple[str, ...]]:
    return recipe, stage, overrides


def _backbones(
    table: int, recipe: str, stage: StageName, method: str, *printed: str
) -> Iterator[PaperFigure]:
    """Yield a figure for each of ViT-S, B and L."""
    for (backbone, name), figure in zip(NAMES.items(), printed, strict=True):
        overrides = [f"model.backbone={backbone}"]
        part, note = ("pre-training" if stage == "pretrain" else "fine-tuning"), ""
        if method == "EVEREST" and stage == "pretrain":
            overrides.append("pretrain.selection.keep_ratio=0.4")
            by_text = cost_of(recipe, stage, (overrides[0],)).gmacs
            note = f"rho_pre 0.4; with 0.3, as in Table 7 and the text, {by_text:.2f}"
        of = _on(recipe, stage, *overrides)
        yield PaperFigure(table=table, what=f"{method} {name} {part}", printed=figure, of=of, note=note)


MEMORY: Final = {  # Table 3: GB at batch 128, 256, 512, 1024; OOM left out
    ("VideoMAE", "vit-s"): ("71.9", "117.4", "233.6", "443.6"),
    ("VideoMAE", "vit-b"): ("258.4", "486.4"),
    ("VideoMAE", "vit-l"): ("353.9", "634.1"),
    ("EVEREST", "vit-s"): ("31.9", "59.9", "95.6", "173.1"),
    ("EVEREST", "vit-b"): ("60.0", "91.2", "151.2", "273.6"),
    ("EVEREST", "vit-l"): ("117.3", "164.1", "258.9", "428.4"),
}


def _table_3() -> Iterator[PaperFigure]:
    for (method, backbone), figures in MEMORY.items():
        of = _on("k400" if method == "EVEREST" else "videomae-k400", "pretrain", f"model.backbone={backbone}")
        for batch, printed in zip((128, 256, 512, 1024), figures, strict=False):
            what = f"{method} {NAMES[backbone]} batch {batch}"
            yield PaperFigure(table=3, what=what, printed=printed, unit="GB", of=of, batch=batch)


def _table_4() -> Iterator[PaperFigure]:
    for method, epoch_time, memory in (
        ("VideoMAE", "18m 42s", "150.3"),
        ("MME", "10m 15s", "121.2"),
        ("MVD", "51m 55s", "274.9"),
        ("EVEREST", "8m 18s", "66.3"),
    ):
        recipe = {"VideoMAE": "videomae-k400", "EVEREST": "k400"}.get(method)
        note = "" if recipe else "no method of this program"
        what = f"{method} ViT-B batch 128"
        yield PaperFigure(table=4, what=f"{what} an epoch", printed=epoch_time, unit="time", note=note)
        of = _on(recipe, "pretrain") if recipe else None
        yield PaperFigure(table=4, what=what, printed=memory, unit="GB", of=of, batch=128, note=note)


def _table_5() -> Iterator[PaperFigure]:
    for method, recipe, macs, memory in (
        ("all tokens", "videomae-k400", "180.5", "362.5"),
        ("EVEREST", "k400", "98.1", "178.4"),
    ):
        of, note = _on(recipe, "finetune"), "the same for VideoMAE, MME and MVD"
        what = f"{method} ViT-B fine-tuning"
        yield PaperFigure(table=5, what=what, printed=macs, of=of, note=note)
        yield PaperFigure(table=5, what=what, printed=memory, unit="GB", of=of, batch=128, note=note)


def _st_mae_specs() -> tuple[ModelSpec, ModelSpec]:
    """Pre-training, and fine-tuning on UCF101."""
    recipe = load_recipe(st_mae.RECIPE, overrides=["data.num_classes=101"])
    return stage_spec(recipe, "pretrain"), stage_spec(recipe, "finetune")


def _table_10() -> Iterator[PaperFigure]:
    pretraining, finetuning = _st_mae_specs()

    def with_tokens(encoder_class: int, decoder_class: int) -> float:
        macs = st_mae.released_macs(pretraining, encoder_class=encoder_class, decoder_class=decoder_class)
        return macs.total / 1e9

    yield PaperFigure(
        table=10,
        what="MAE (ST-MAE) pre-training",
        printed="46.10",
        formula=with_tokens(1, 1),
        note=(
            f"by its public defaults; without class token {with_tokens(0, 0):.2f}; "
            f"{with_tokens(0, 1):.2f} with one in the decoder only, a guess; "
            f"everest's model {gmacs_of_clip(pretraining):.2f}"
        ),
    )
    for ratio, printed in (("0.75", "57.50"), ("0.9", "35.48")):
        of = _on("videomae-ucf101", "pretrain", f"pretrain.selection.mask_ratio={ratio}")
        what = f"VideoMAE mask {ratio} pre-training"
        yield PaperFigure(table=10, what=what, printed=printed, of=of)
    for ratio, printed in (("0.5", "23.43"), ("0.4", "21.54"), ("0.3", "19.81"), ("0.2", "18.22")):
        of = _on("ucf101", "pretrain", f"pretrain.selection.keep_ratio={ratio}")
        yield PaperFigure(table=10, what=f"EVEREST rho_pre {ratio} pre-training", printed=printed, of=of)
    what = "MAE (ST-MAE) fine-tuning"
    yield PaperFigure(
        table=10,
        what=what,
        printed="180.6",
        formula=st_mae.released_macs(finetuning).total / 1e9,
        note=f"with a class token; everest's model {gmacs_of_clip(finetuning):.1f}",
    )
    of = _on("videomae-ucf101", "finetune")
    yield PaperFigure(table=10, what="VideoMAE fine-tuning", printed="180.5", of=of)
    for ratio, printed in zip(
        ("1.0", "0.8", "0.7", "0.6", "0.5"), ("180.5", "137.5", "117.3", "98.1", "79.8"), strict=True
    ):
        of = _on("ucf101", "finetune", f"finetune.selection.keep_ratio={ratio}")
        yield PaperFigure(table=10, what=f"EVEREST rho_pre {ratio} fine-tuning", printed=printed, of=of)


def _table_12() -> Iterator[PaperFigure]:
    for method, recipe, frames, before, after in (
        ("VideoMAE", "videomae-ucf101", 16, "35.48", "180.5"),
        ("EVEREST", "ucf101", 16, "19.81", "98.1"),
        ("EVEREST", "ucf101", 24, "30.65", "159.4"),
    ):
        clip = f"data.frames={frames}"
        what = f"{method} {frames} frames"
        of = _on(recipe, "pretrain", clip)
        yield PaperFigure(table=12, what=f"{what} pre-training", printed=before, of=of)
        of = _on(recipe, "finetune", clip)
        yield PaperFigure(table=12, what=f"{what} fine-tuning", printed=after, of=of)


def _table_15() -> Iterator[PaperFigure]:
    stages: tuple[tuple[StageName, str], ...] = (("pretrain", "pre-training"), ("finetune", "fine-tuning"))
    for layers, parameters, memory, macs in (
        (1, ("94.2", "86.3"), ("9.2", "17.6"), ("19.8", "98.1")),
        (2, ("102.5", "94.6"), ("11.9", "17.5"), ("34.6", "112.9")),
        (3, ("97.8", "89.9"), ("11.3", "17.5"), ("38.3", "116.6")),
    ):
        for i, (stage, part) in enumerate(stages):
            of = _on("hmdb51", stage, f"model.embedding_layers={layers}")
            what = f"{layers} Conv3d {part}"
            unknown = "the paper does not state the batch"
            yield PaperFigure(table=15, what=what, printed=parameters[i], unit="M parameters", of=of)
            yield PaperFigure(table=15, what=what, printed=memory[i], unit="GB", of=of, note=unknown)
            yield PaperFigure(table=15, what=what, printed=macs[i], of=of)


def paper_figures() -> list[PaperFigure]:
    """Every cost figure of Tables 1, 3, 4, 5, 10, 11, 12 and 15."""
    return [
        *_backbones(1, "videomae-k400", "pretrain", "VideoMAE", "11.6", "35.5", "83.1"),
        *_backbones(1, "videomae-k400", "finetune", "VideoMAE", "57.0", "180.5", "597.2"),
        *_backbones(1, "k400", "pretrain", "EVEREST", "6.3", "21.5", "60.8"),
        *_backbones(1, "k400", "finetune", "EVEREST", "29.1", "98.1", "330.0"),
        *_table_3(),  # the memory column of Table 1 is this one at batch 256
        *_table_4(),
        *_table_5(),
        *_table_10(),
        *_backbones(11, "videomae-k400", "finetune", "all tokens", "57.0", "180.5", "597.2"),
        *_backbones(11, "k400-from-videomae", "finetune", "EVEREST", "29.1", "98.1", "330.0"),
        *_table_12(),
        *_table_15(),
    ]
