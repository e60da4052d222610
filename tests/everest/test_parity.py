"""Our numbers against those that the official code of EVEREST and VideoMAE computed (float32, CPU).

Activations and gradients agree to 1e-5, chosen tokens exactly. One recorded choice depends on how an unstable
sort broke a tie; there the official order is injected.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import our_name
from safetensors.torch import load_file
from shared_files import shared_folder
from torch import Tensor, nn
from torch.optim import Optimizer

from everest.checkpoints.load import build_model
from everest.config.heads import Head
from everest.config.settings import ModelSettings
from everest.config.values import Pooling
from everest.converters.convert import convert
from everest.converters.foreign_checkpoint import ForeignCheckpoint
from everest.converters.recognition import Hints
from everest.engine.network import make_optimizer, parameter_groups
from everest.engine.schedule import cosine_lr
from everest.engine.step import set_lr
from everest.methods.grid import TokenGrid, TokenSelection, num_kept
from everest.methods.importance import embedding_change
from everest.methods.strategies import AllTokens, RandomSpaceTime, RedundancyRobust, Tube
from everest.methods.targets import PixelTargets
from everest.models.classifier import ClassifierSpec, VideoClassifier
from everest.models.mae import AutoencoderSpec, MaskedAutoencoder
from everest.models.positions import position_table
from everest.video.pixels import IMAGENET, normalize

TUBELET = (2, 16, 16)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Recorded:
    """One golden file and the case in it."""

    tensors: dict[str, Tensor]
    facts: dict

    @classmethod
    def read(cls, folder: Path, name: str) -> "Recorded":
        facts = json.loads((folder / f"{name}.json").read_text())
        return cls(load_file(folder / f"{name}.safetensors"), facts)

    @property
    def clip(self) -> Tensor:
        """(B, 3, T, H, W) float32, from the bytes that the recorded clip was made of."""
        video = self.tensors["input.clip_uint8_BTHWC"]  # (B, T, H, W, 3)
        return normalize(video.permute(0, 4, 1, 2, 3))

    @property
    def grid(self) -> TokenGrid:
        _, _, frames, height, width = self.clip.shape
        return TokenGrid.of_clip(frames=frames, size=(height, width), tubelet=TUBELET)

    def model_settings(self, *, pooling: Pooling = "mean") -> dict[str, Any]:
        m = self.facts["model"]
        encoder = {"width": m["ed"], "depth": m["el"], "heads": m["eh"]}
        decoder = {"width": m.get("dd", 8), "heads": m.get("dh", 1), "depth": m.get("dl", 1)}
        decoder = {f"decoder_{name}": value for name, value in decoder.items()}
        model = ModelSettings(**encoder, **decoder, tubelet=TUBELET, pooling=pooling)
        _, _, frames, height, width = self.clip.shape
        return {"model": model, "frames": frames, "size": (height, width)}

    def autoencoder(self, strategy: RedundancyRobust | Tube, *, normalize: bool = True) -> MaskedAutoencoder:
        targets = PixelTargets(normalize=normalize)
        model = AutoencoderSpec(**self.model_settings(), selection=strategy, target=targets).build()
        load_state(model, self.tensors, "pretrain")
        return model

    def classifier(self, case: str, *, drop_path: float = 0.0) -> VideoClassifier:
        settings = self.facts["cases"][case]["settings"]
        keep = round(1 - settings["mcm_ratio"], 6) if settings.get("mcm") else None
        model = ClassifierSpec(
            **self.model_settings(pooling="mean" if settings.get("use_mean_pooling", True) else "first"),
            selection=RedundancyRobust(keep_ratio=keep, visible_ratio=None) if keep else AllTokens(),
            heads=(Head(outputs=self.facts["model"]["nc"]),),
            drop_path=drop_path,
        ).build()
        load_state(model, self.tensors, "classifier")
        return model

    def noise(self, case: str) -> Tensor:
        """The recorded draw, by token: it was recorded by rank in the sorted order."""
        sampled = self.tensors[f"{case}.noise"]  # (B, kept)
        ranked = self.tensors[f"{case}.ids_sorted"].long()[:, : sampled.size(1)]
        return torch.zeros(len(sampled), self.grid.num_tokens).scatter_(1, ranked, sampled)

    def selection(self, case: str) -> TokenSelection:
        return TokenSelection(
            self.tensors[f"{case}.visible_idx"].long(), self.tensors[f"{case}.target_idx"].long()
        )


def load_state(model: nn.Module, tensors: dict[str, Tensor], kind) -> None:
    found = {key.removeprefix("state."): t for key, t in tensors.items() if key.startswith("state.")}
    model.load_state_dict({our_name(key, kind): t for key, t in found.items()})


def assert_close(ours: Tensor, official: Tensor, what: str) -> None:
    both = {"atol": TOLERANCE, "rtol": TOLERANCE}
    torch.testing.assert_close(ours, official, **both, msg=lambda text: f"{what}: {text}")


def adamw(model: nn.Module, *, betas: tuple[float, float] = (0.9, 0.95), **options: float) -> Optimizer:
    optimizer = make_optimizer(parameter_groups(model, weight_decay=0.05, **options), betas=betas)
    set_lr(optimizer, 1e-3)
    return optimizer


def assert_step_equal(model: nn.Module, recorded: Recorded, case: str, kind, optimizer: Optimizer) -> None:
    """Gradients as recorded, and after one AdamW step the parameters too."""
    parameters = dict(model.named_parameters())
    seen = {"grad": 0, "after_step": 0}
    for stage in seen:
        for key, official in recorded.tensors.items():
            prefix = f"{case}.{stage}."
            if key.startswith(prefix):
                seen[stage] += 1
                parameter = parameters[our_name(key.removeprefix(prefix), kind)]
                value = parameter.grad if stage == "grad" else parameter
                assert_close(value.detach(), official, key)
        optimizer.step()
    assert seen["grad"] > 0
    norms = recorded.facts["cases"][case].get("grad_norm_per_parameter", {})
    for name, norm in norms.items():
        grad = parameters[our_name(name, kind)].grad
        assert grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-8), name


PRETRAIN_CASES = [
    ("everest_pretrain_s0", "pre70_mask90"),
    ("everest_pretrain_s0", "pre50_mask80"),
    ("everest_pretrain_s0", "pre70_mask90_rawpixels"),
    ("everest_pretrain_s1", "pre70_mask90"),
    ("everest_pretrain_s1", "pre60_mask85"),
]


@pytest.mark.parametrize(("file", "case"), PRETRAIN_CASES)
def test_everest_pretraining_equals_the_official_code(golden: Callable[[str], Path], file: str, case: str):
    recorded = Recorded.read(golden(f"{file}.safetensors").parent, file)
    if f"{case}.loss" not in recorded.tensors:  # the repository keeps one case of this file
        recorded = Recorded.read(shared_folder() / "golden", file)
    facts = recorded.facts["cases"][case]
    settings = facts["settings"]
    ratios = (round(1 - settings[name], 6) for name in ("pre", "mask"))
    strategy = RedundancyRobust(**dict(zip(("keep_ratio", "visible_ratio"), ratios, strict=True)))
    model = recorded.autoencoder(strategy, normalize=settings["normt"])
    importance = embedding_change(recorded.clip, model.encoder.patch_embed)
    assert_close(importance, recorded.tensors[f"{case}.importance"], "importance")

    selection = model(recorded.clip, noise=recorded.noise(case)).selection
    official = recorded.selection(case)
    if any(facts["boundary_tie"]):
        assert selection.visible.shape == official.visible.shape
        pair = (kept_importance(importance, each) for each in (selection, official))
        assert_close(*pair, "importance of the kept")
        selection = official
    assert torch.equal(selection.visible, official.visible)
    assert torch.equal(selection.predicted, official.predicted)

    out = model(recorded.clip, selection=selection)
    for what, ours in (("pred", out.prediction), ("target", out.target_values)):
        if f"{case}.{what}" in recorded.tensors:
            assert_close(ours.detach(), recorded.tensors[f"{case}.{what}"], what)
    assert out.loss.item() == pytest.approx(facts["loss"], abs=1e-6)
    out.loss.backward()
    assert_step_equal(model, recorded, case, "pretrain", adamw(model))


def test_eight_steps_follow_the_released_trajectory(golden: Callable[[str], Path]):
    recorded = Recorded.read(golden("everest_pretrain_s0.safetensors").parent, "everest_pretrain_s0")
    told = json.loads(golden("everest_trajectory.json").read_text())
    model = recorded.autoencoder(RedundancyRobust(keep_ratio=0.3, visible_ratio=0.1))
    optimizer = adamw(model)
    for step, lr in enumerate(told["lr"]):
        chosen = TokenSelection(*(torch.tensor(told[f"{name}_idx"][step]) for name in ("visible", "target")))
        ours = model(recorded.clip, noise=torch.zeros(2, recorded.grid.num_tokens)).selection
        importance = embedding_change(recorded.clip, model.encoder.patch_embed)
        pair = (kept_importance(importance, each) for each in (ours, chosen))
        assert_close(*pair, f"importance kept in step {step}")
        out = model(recorded.clip, selection=chosen)
        out.loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        assert out.loss.item() == pytest.approx(told["loss"][step], abs=TOLERANCE)
        assert norm.item() == pytest.approx(told["grad_norm_before_clip"][step], rel=1e-4)
        set_lr(optimizer, lr)
        optimizer.step()
        optimizer.zero_grad()
    sums = {name: parameter.sum().item() for name, parameter in model.named_parameters()}
    assert sums == pytest.approx(told["final_param_sums"], abs=1e-3)


def kept_importance(importance: Tensor, selection: TokenSelection) -> Tensor:
    """(B, kept) importance of the kept tokens, sorted: equal for either token of a tie."""
    kept = torch.cat([selection.visible, selection.predicted], dim=1)
    return importance.gather(1, kept).sort(dim=1).values


@pytest.mark.parametrize("case", ["tube75", "tube90"])
def test_videomae_pretraining_equals_the_official_code(golden: Callable[[str], Path], case: str):
    recorded = Recorded.read(golden("videomae_pretrain_s0.safetensors").parent, "videomae_pretrain_s0")
    facts = recorded.facts["cases"][case]
    masked = recorded.tensors[f"{case}.mask"].bool()  # (B, N)
    # Places in the order of a noise that puts the recorded visible ones first.
    noise = masked.float() + torch.linspace(0, 0.5, masked.size(1))
    model = recorded.autoencoder(Tube(mask_ratio=facts["mask_ratio"]))
    out = model(recorded.clip, noise=noise)
    assert torch.equal(out.selection.predicted, torch.stack([row.nonzero()[:, 0] for row in masked]))
    assert_close(out.prediction.detach(), recorded.tensors[f"{case}.pred"], "pred")
    assert out.loss.item() == pytest.approx(facts["loss"], abs=1e-6)
    if case == "tube75":
        assert_close(out.target_values, recorded.tensors[f"{case}.target"], "target")
        out.loss.backward()
        assert_step_equal(model, recorded, case, "pretrain", adamw(model))


@pytest.mark.parametrize(
    ("file", "case"),
    [("everest_finetune_s0", c) for c in ("keep60", "keep80", "full", "keep60_cls")]
    + [("videomae_finetune_s0", "full")],
)
def test_classification_equals_the_official_code(golden: Callable[[str], Path], file: str, case: str):
    recorded = Recorded.read(golden(f"{file}.safetensors").parent, file)
    facts = recorded.facts["cases"][case]
    model = recorded.classifier(case).eval()
    if f"{case}.kept_idx" in recorded.tensors:
        assert torch.equal(model.encode_kept(recorded.clip)[0], recorded.tensors[f"{case}.kept_idx"].long())
    logits = model(recorded.clip)
    assert_close(logits.detach(), recorded.tensors[f"{case}.logits"], "logits")
    label = recorded.tensors["input.label"]
    soft = recorded.tensors["input.soft_target"]
    assert F.cross_entropy(logits, label).item() == pytest.approx(facts["loss_ce"], abs=TOLERANCE)
    assert F.cross_entropy(logits, soft).item() == pytest.approx(facts["loss_soft_target"], abs=TOLERANCE)
    smoothed = F.cross_entropy(logits, label, label_smoothing=0.1).item()
    assert smoothed == pytest.approx(facts["loss_label_smoothing_0.1"], abs=TOLERANCE)


class RecordedDropPath(nn.Module):
    """Keeps the samples that the official run kept."""

    def __init__(self, kept: Tensor, rate: float) -> None:
        super().__init__()
        self.factor = (kept.float() / (1 - rate)).view(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


STEPS = [*(("everest", case) for case in ("train_step", "train_droppath")), ("videomae", "train_step")]


@pytest.mark.parametrize(("program", "case"), STEPS)
def test_finetuning_step_equals_the_official_code(golden, program: str, case: str):
    file = f"{program}_finetune_s0"
    recorded = Recorded.read(golden(f"{file}.safetensors").parent, file)
    model = recorded.classifier(case, drop_path=0.3 if case == "train_droppath" else 0.0).train()
    if case == "train_droppath":
        rows = iter(recorded.tensors[f"{case}.droppath_keep"])
        for block, rate in zip(model.encoder.blocks[1:], (0.15, 0.3), strict=True):
            assert block.drop_path1.keep_prob.item() == pytest.approx(1 - rate)
            block.drop_path1 = RecordedDropPath(next(rows), rate)
            block.drop_path2 = RecordedDropPath(next(rows), rate)
    loss = F.cross_entropy(model(recorded.clip), recorded.tensors["input.label"], label_smoothing=0.1)
    assert loss.item() == pytest.approx(recorded.facts["cases"][case]["loss"], abs=TOLERANCE)
    loss.backward()
    optimizer = adamw(model, betas=(0.9, 0.999), layer_decay=0.75)
    assert_step_equal(model, recorded, case, "classifier", optimizer)


def test_learning_rates_equal_the_released_schedule(golden: Callable[[str], Path]):
    for told in json.loads(golden("optim.json").read_text())["cosine_schedules"]:
        a = told["args"]
        warmup = a.get("warmup_epochs", 0) * a["niter_per_ep"]
        if warmup and a["warmup_steps"] > 0:
            warmup = a["warmup_steps"]
        steps = a["epochs"] * a["niter_per_ep"]
        rates = {"peak": a["base_value"], "minimum": a["final_value"]}
        rates["start"] = a.get("start_warmup_value", 0.0)
        ours = [cosine_lr(step, steps=steps, warmup=warmup, **rates) for step in range(steps)]
        assert ours == pytest.approx(told["values"], abs=1e-12, rel=0)


def test_every_token_count_equals_the_released_rule(golden: Callable[[str], Path]):
    told = json.loads(golden("token_counts.json").read_text())
    for row in told["pretrain"]:
        assert num_kept(row["tokens"], row["keep_ratio"]) == row["kept"]
        assert num_kept(row["tokens"], round(1 - row["masking_ratio"], 6)) == row["visible"]
    for row in told["finetune"]:
        assert num_kept(row["tokens"], round(1 - row["mcm_ratio"], 6)) == row["kept"]
    for row in told["hazard"]:
        assert num_kept(row["N"], row["rho"]) == row["int_of_rho_times_N"]
    for row in told["tube"]:
        t, h, w = row["grid"]
        grid = TokenGrid(t=t, h=h, w=w)
        noise = torch.rand(1, grid.num_tokens)
        chosen = Tube(mask_ratio=row["mask_ratio"])(grid, importance=None, noise=noise)
        assert (chosen.visible.size(1), chosen.predicted.size(1)) == (
            row["visible_total"],
            row["masked_total"],
        )


def test_position_table_equals_the_released_sinusoid(golden: Callable[[str], Path]):
    for name, told in json.loads(golden("token_counts.json").read_text())["sinusoid"].items():
        num_tokens, width = map(int, name.split("x"))
        table = position_table("flat", TokenGrid(t=num_tokens, h=1, w=1), width)
        assert table.double().sum().item() == pytest.approx(told["sum"], abs=1e-2)
        for row, values in told["rows"].items():
            head = values[: values.index("...")]
            np.testing.assert_allclose(table[int(row), : len(head)].numpy(), head, atol=1e-7)


@pytest.fixture(scope="module")
def st_mae() -> Recorded:
    return Recorded.read(shared_folder() / "golden", "mae_st_pretrain_s0")


def test_st_mae_hides_the_same_tokens(st_mae: Recorded):
    facts, noise = st_mae.facts, st_mae.tensors["noise"]
    grid = TokenGrid.of_clip(frames=facts["model"]["T"], size=(64, 64), tubelet=TUBELET)
    # Kept are the first int(N * (1 - ratio)) of the sorted noise: what is drawn as visible here.
    chosen = RandomSpaceTime(visible_ratio=0.1)(grid, importance=None, noise=noise)
    hidden = torch.ones(1, grid.num_tokens).scatter(1, chosen.visible, 0)
    assert torch.equal(hidden, st_mae.tensors["mask"])
    assert torch.equal(chosen.predicted, st_mae.tensors["mask"].nonzero()[:, 1][None])


def test_st_mae_targets_give_the_same_loss(st_mae: Recorded):
    clip, mask = st_mae.tensors["input.clip"], st_mae.tensors["mask"]
    targets = PixelTargets(normalize="token", frames="half").make(TUBELET, IMAGENET)
    # The official code normalizes the target without undoing the clip's own normalization.
    ids = mask.nonzero()[:, 1][None]  # (1, hidden)
    values = targets.values(normalize_floats(clip), ids)
    prediction = st_mae.tensors["pred"].gather(1, ids.unsqueeze(-1).expand(-1, -1, targets.width))
    loss = targets.loss(prediction, values, torch.ones_like(ids, dtype=torch.bool))
    assert loss.item() == pytest.approx(st_mae.facts["loss"], abs=TOLERANCE)


@torch.no_grad()
def test_st_mae_encodes_the_same_tokens(st_mae: Recorded):
    facts, mask = st_mae.facts["model"], st_mae.tensors["mask"]
    state = {key.removeprefix("state."): x for key, x in st_mae.tensors.items() if key.startswith("state.")}
    given = ForeignCheckpoint(path=Path("mae_st.pth"), tensors=state)
    converted = convert(given, Hints(heads=facts["eh"]), partial=True)
    spec = converted.identity.spec
    assert (spec.frames, spec.size) == (facts["T"], (facts["img"], facts["img"]))  # of the positions' shapes
    assert (spec.model.positions, spec.model.class_token) == ("learned-separable", True)
    model = build_model(spec, converted.weights, source=given.path)
    assert isinstance(model, MaskedAutoencoder)
    visible = (mask == 0).nonzero()[:, 1][None]  # (1, K) ascending
    by_noise = st_mae.tensors["noise"].argsort(dim=1)[0, : visible.size(1)]  # the same in the recorded order
    official = st_mae.tensors["encoder_norm_out_with_cls"][:, 1:][:, by_noise.argsort()]
    assert_close(model.encoder(st_mae.tensors["input.clip"], visible), official, "encoder's tokens")


def normalize_floats(clip: Tensor) -> Tensor:
    """A clip whose pixels before normalization are `clip`."""
    zero, one = (normalize(torch.full((3, 1, 1, 1), value, dtype=torch.uint8)) for value in (0, 255))
    return clip * (one - zero) + zero
