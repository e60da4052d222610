"""The autoencoder and the classifier: parameter counts, shapes, invalid input, checkpoints of settings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import PARTS, TINY, assert_all_learn, tiny
from torch import Tensor, nn

import everest
from everest.config.settings import ModelSettings
from everest.config.stage_settings import FinetuneSettings, LoraSettings
from everest.errors import RecipeError
from everest.methods.grid import NoiseLayout, TokenSelection
from everest.methods.selection import Sampled
from everest.methods.strategies import AllTokens, RandomSpaceTime, RedundancyRobust, Tube
from everest.methods.targets import PixelTargets
from everest.models.mae import AutoencoderOutput, AutoencoderSpec
from everest.models.partial import freeze_and_adapt

NAMES = {"small": "vit-s", "base": "vit-b", "large": "vit-l"}


SMALL = ModelSettings(backbone="vit-tiny", tubelet=(2, 8, 8), **TINY)
CLIPS = {"frames": 8, "size": (32, 32), "model": SMALL}
AUTOENCODER = AutoencoderSpec(**CLIPS, selection=RedundancyRobust(), target=PixelTargets())


@pytest.mark.parametrize("official", NAMES)
@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_parameters_are_as_many_as_the_released_models_have(golden, official, kind):
    counts = json.loads(golden("parameter_counts.json").read_text())
    stage = "pretrain" if kind == "pretrain" else "finetune"
    with torch.device("meta"):
        classes = 400 if kind == "classifier" else None
        model = everest.create_model(NAMES[official], kind=kind, num_classes=classes)
    count = sum(p.numel() for p in model.parameters())
    assert count == counts[f"everest_{stage}_{official}"]["n_params"]


@pytest.mark.parametrize("strategy", [RedundancyRobust(), Tube(), RandomSpaceTime(visible_ratio=0.2)])
@pytest.mark.parametrize(("frames", "size"), [(2, (32, 32)), (6, (24, 40)), (32, (16, 16))])
def test_any_grid_and_strategy_gives_a_finite_loss_and_gradients(strategy, frames, size):
    torch.manual_seed(0)
    model = tiny("pretrain", frames=frames, size=size, selection=strategy)
    out = model(torch.randn(2, 3, frames, *size))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert out.prediction.shape == out.target_values.shape == (*out.selection.predicted.shape, 2 * 8 * 8 * 3)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_targets_given_as_visible_do_not_count():
    model = tiny("pretrain")
    x = torch.randn(1, 3, 8, 32, 32)
    visible = torch.tensor([[0, 5, 9]])
    alone = model(x, selection=TokenSelection(visible, torch.tensor([[3, 11]])))
    overlapping = model(x, selection=TokenSelection(visible, torch.tensor([[3, 5, 11]])))
    errors = (overlapping.prediction - overlapping.target_values).square().mean(-1)[0]
    assert overlapping.loss.item() == pytest.approx(errors[[0, 2]].mean().item(), rel=1e-6)
    assert overlapping.prediction.shape[1] == alone.prediction.shape[1] + 1


def test_importance_with_a_given_selection_is_refused():
    model, x = tiny("pretrain"), torch.randn(1, 3, 8, 32, 32)
    with pytest.raises(ValueError, match="importance has no effect on a given selection"):
        model(x, selection=model(x).selection, importance=torch.zeros(7, 7))


def test_equal_noise_gives_equal_losses_and_no_noise_draws_from_torch():
    model = tiny("pretrain")
    tiny("pretrain", frames=16).load_state_dict(model.state_dict())  # of a short clip into a longer one
    x, noise = torch.randn(2, 3, 8, 32, 32), torch.rand(2, 64)
    assert model(x, noise=noise).loss == model(x, noise=noise).loss
    torch.manual_seed(3)
    first = model(x).selection.visible
    torch.manual_seed(3)
    assert torch.equal(model(x).selection.visible, first)
    assert not torch.equal(model(x).selection.visible, first)


def test_keep_of_a_call_overrides_the_trained_fraction():
    classifier = tiny("classifier", num_classes=3).eval()
    x = torch.randn(2, 3, 8, 32, 32)
    assert classifier.encode_kept(x)[0].size(1) == 38  # 0.6 of 64
    assert classifier.encode_kept(x, keep=0.25)[0].size(1) == 16
    assert torch.equal(classifier(x), classifier(x, keep=0.6))
    everything = tiny("classifier", num_classes=3, selection=AllTokens())
    everything.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(classifier(x, keep=1.0), everything.eval()(x))


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
@pytest.mark.parametrize(
    "options", [{}, {"positions": "rotary"}, {"positions": "rotary", "class_token": True}, PARTS]
)
def test_checkpointing_changes_neither_loss_nor_gradients(kind: str, options: dict[str, object]):
    x, noise, found = torch.randn(2, 3, 8, 32, 32), torch.rand(2, 64), []
    model = tiny(kind, num_classes=3, **options).train()
    for checkpointing in (False, True):
        for stack in (model.encoder, model.decoder) if kind == "pretrain" else (model.encoder,):
            stack.blocks.checkpointing = checkpointing
        out = model(x, noise=noise)
        loss = out.loss if kind == "pretrain" else out.square().sum()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    saving = replace(AUTOENCODER, checkpointing=True).build()
    assert saving.encoder.blocks.checkpointing
    assert saving.decoder.blocks.checkpointing


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
@pytest.mark.parametrize("positions", ["flat", "learned-separable"])
def test_learned_positions_and_a_class_token_are_trained(kind: str, positions: str):
    model = tiny(kind, num_classes=3, positions=positions, class_token=True).train()
    x = torch.randn(2, 3, 8, 32, 32)
    out = model(x)
    (out.loss if kind == "pretrain" else out.square().sum()).backward()
    assert_all_learn(model)
    parameters = dict(model.named_parameters())
    assert parameters["encoder.class_token"].shape == (1, 1, 24)
    assert ("encoder.position.class_token" in parameters) is (positions == "learned-separable")
    assert ("decoder.position.spatial" in parameters) is (positions != "flat" and kind == "pretrain")


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.zeros(1, 3, 8, 32, 32, dtype=torch.int64), "uint8 or normalized to float; got torch.int64"),
        (torch.zeros(0, 3, 8, 32, 32), "B at least 1"),
        (torch.zeros(3, 8, 32, 32), "expected clips of shape"),
        (torch.zeros(1, 3, 8, 32, 40), r"expected clips of shape \(B, 3, 8, 32, 32\)"),
    ],
)
def test_clips_that_are_no_batch_of_frames_are_refused(kind, clips, message):
    with pytest.raises(ValueError, match=message):
        tiny(kind, num_classes=3)(clips)


@pytest.mark.parametrize("strategy", [RedundancyRobust(), Tube()])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise": torch.rand(3, 64)}, r"noise: expected shape \(2, at least 64\), got \(3, 64\)"),
        ({"noise": torch.rand(64)}, r"noise: expected shape \(2, at least 64\), got \(64,\)"),
        ({"noise": torch.rand(2, 65)}, "noise: 65 numbers a clip, not 64"),
        ({"importance": torch.rand(2, 5)}, r"importance: expected shape \(2, 64\), got \(2, 5\)"),
        ({"importance": torch.rand(1, 64)}, r"importance: expected shape \(2, 64\), got \(1, 64\)"),
        ({"values": torch.rand(2, 65, 384)}, r"values: expected shape \(2, 64, P\), got \(2, 65, 384\)"),
        ({"values": torch.rand(2, 64, 1)}, "values: 1 for a token, but 384 are predicted"),
        ({"values": torch.rand(2, 64)}, r"values: expected shape \(2, 64, P\), got \(2, 64\)"),
    ],
)
def test_an_autoencoder_refuses_inputs_of_other_clips_or_tokens(strategy, given, message):
    model, clips = tiny("pretrain", selection=strategy), torch.randn(2, 3, 8, 32, 32)
    with pytest.raises(ValueError, match=message):
        model(clips, **given)


def test_a_strategy_must_give_importance_to_each_clip(monkeypatch):
    model = tiny("pretrain", selection=RedundancyRobust())
    monkeypatch.setattr(RedundancyRobust, "importance", lambda *_: torch.zeros(1, 64))
    with pytest.raises(RecipeError, match=r"shape \(1, 64\), not \(2, 64\)"):
        model(torch.randn(2, 3, 8, 32, 32))


@pytest.mark.parametrize("noise", [torch.rand(2, 64), torch.rand(1, 63), torch.rand(64)])
@pytest.mark.parametrize("selection", [Sampled(visible_ratio=None), AllTokens()])
def test_a_classifier_refuses_noise_of_other_clips_or_tokens(noise, selection):
    model = tiny("classifier", num_classes=3, selection=selection)
    with pytest.raises(ValueError, match=r"noise: expected shape \(1, at least 64\)"):
        model(torch.randn(1, 3, 8, 32, 32), noise=noise)


@pytest.mark.parametrize(
    ("keep", "message"),
    [(0, "more than 0"), (-0.1, "more than 0"), (1.5, "at most 1"), (0.01, "leaves none of 64 tokens")],
)
@pytest.mark.parametrize("selection", [None, AllTokens()])
def test_keep_of_a_call_must_leave_tokens(keep, message, selection):
    classifier = tiny("classifier", num_classes=3, selection=selection)
    with pytest.raises(ValueError, match=message):
        classifier(torch.randn(1, 3, 8, 32, 32), keep=keep)


# --- frame selection ----------------------------------------------------------------------------------------


def drawing():
    """A model of 4 time indices sampled from 6, and candidates in which little happens after the third."""
    model = tiny("pretrain", selection=RedundancyRobust(keep_ratio=0.5))
    model.noise_layout = NoiseLayout.of(model.encoder.grid, alpha=1.5)
    frames = torch.randn(3, 3, 12, 32, 32, generator=torch.Generator().manual_seed(0))
    frames[:, :, 8:] = frames[:, :, 6:8].repeat(1, 1, 2, 1, 1)
    return model, frames


def test_clips_are_drawn_from_candidates_where_something_happens():
    model, frames = drawing()
    noise = torch.rand(3, 6 * 16 + 6)
    out = model(frames, noise=noise)
    assert torch.equal(out.frames, frames[:, :, :8])  # time indices 4 and 5 have no kept token
    again = model(out.frames, selection=out.selection)
    assert torch.equal(again.loss, out.loss)


def test_sampled_time_indices_keep_the_importance_that_they_had():
    torch.manual_seed(0)
    model, frames = drawing()
    frames[:, :, 4:6] = frames[:, :, 2:4]  # nothing happens in time index 2
    frames[:, :, 8:] = torch.randn(3, 3, 4, 32, 32)
    noise = torch.rand(3, 6 * 16 + 6)
    out = model(frames, noise=noise)
    measured = model(out.frames, noise=noise)  # a clip of its own length is measured by itself
    assert not torch.equal(out.selection.predicted, measured.selection.predicted)


def test_importance_of_candidates_is_of_all_their_tokens():
    model, frames = drawing()
    with pytest.raises(ValueError, match=r"importance: expected shape \(3, 96\), got \(3, 64\)"):
        model(frames, importance=torch.rand(3, 64))


def test_candidates_of_another_number_are_refused():
    model, frames = drawing()
    with pytest.raises(ValueError, match=r"expected clips of shape \(B, 3, 12, 32, 32\)"):
        model(frames[:, :, :10])


OTHERS = (torch.float16, torch.bfloat16, torch.float64)
KINDS = ("pretrain", "classifier", "encoder")
KEPT = RedundancyRobust(keep_ratio=0.5, visible_ratio=None)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "several convolutions": ("pretrain", {"embedding_layers": 2}),
    "rotary": ("pretrain", {"positions": "rotary"}),
    "learned positions": ("pretrain", {"positions": "learned-separable", "class_token": True}),
    "differences": ("classifier", {"input": "differences"}),
    "class attention": ("classifier", {"pooling": "class-attention"}),
    "cosine": ("encoder", {"selection": RedundancyRobust(distance="neg-cosine", visible_ratio=None)}),
}


def model(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    if kind == "classifier":
        options = {"num_classes": 3, "selection": KEPT, **options}
    elif kind == "encoder":
        options = {"selection": KEPT, **options}
    return tiny(kind, **options)


def clips() -> Tensor:
    return torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


def all_clips(dtype: torch.dtype) -> list[Tensor]:
    """Clips of that type, of float32 and of bytes."""
    generator = torch.Generator().manual_seed(2)
    coded = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8, generator=generator)
    return [clips().to(dtype), clips(), coded]


def outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The loss and the predictions, or the logits or features."""
    noise = torch.rand(2, 64, generator=torch.Generator().manual_seed(3))
    found = module(x, noise=noise)
    return (
        [found.loss, found.prediction, found.target_values]
        if isinstance(found, AutoencoderOutput)
        else [found]
    )


def assert_learns(module: nn.Module, dtype: torch.dtype) -> None:
    for x in all_clips(dtype):
        first, *others = outputs(module, x)
        assert first.dtype == (torch.float32 if others else dtype)  # a loss is float32 in any precision
        first.sum().backward()
        gradients = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
        assert all(gradient is not None and gradient.dtype == dtype for gradient in gradients)
        assert all(torch.isfinite(tensor).all() for tensor in (first, *others))


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("variant", [*KINDS, *VARIANTS, "adapters"])
def test_weights_of_other_precisions_learn_from_any_clips(variant: str, dtype: torch.dtype):
    kind, options = VARIANTS.get(variant, (variant if variant in KINDS else "classifier", {}))
    module = model(kind, **options)
    if variant == "adapters":
        freeze_and_adapt(module, FinetuneSettings(lora=LoraSettings(rank=2)))
    assert_learns(module.to(dtype), dtype)


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_other_precisions_compute_what_they_compute_as_float32(kind: str, dtype: torch.dtype):
    module, x = model(kind), clips().to(dtype)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found, expected = outputs(module, x), outputs(module, x.float())
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
