from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from tiny_models import save_model

from everest.checkpoints.frozen import find_frozen
from everest.config.recipe import load_recipe
from everest.config.settings import Recipe
from everest.errors import CheckpointError
from everest.methods.selection import measure_importance
from everest.methods.strategies import LearnedImportance, RedundancyRobust, ScoreName, Tube
from everest.methods.targets import PixelTargets, TokenTargets
from everest.models.mae import MaskedAutoencoder
from everest.models.spec import pretrain_spec, read_model_spec
from everest.system.weights import state_hash
from everest.tokenizer.adaptive_tokenizer import AdaptiveTokenizer
from everest.tokenizer.frozen_tokenizer import FrozenTokenizer
from everest.tokenizer.spec import tokenizer_spec
from everest.video.pixels import IMAGENET, normalize

TUBELET = (2, 8, 8)
SHORT = ("data.frames=32", "tokenizer.channels=8")


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randint(0, 256, (2, 3, 32, 32, 32), generator=generator, dtype=torch.uint8))


@pytest.fixture(scope="module")
def tokenizer() -> AdaptiveTokenizer:
    torch.manual_seed(0)
    made = tokenizer_spec(load_recipe("lvmae-demo", overrides=SHORT)).build().eval()
    made.target_mean.uniform_(-0.5, 0.5)
    made.target_std.uniform_(0.2, 0.5)
    return made


@pytest.fixture(scope="module")
def frozen(tokenizer: AdaptiveTokenizer) -> FrozenTokenizer:
    return FrozenTokenizer.wrap(tokenizer)


@pytest.fixture
def recipe(tokenizer: AdaptiveTokenizer, tmp_path: Path) -> Recipe:
    """A recipe whose tokenizer is in a file."""
    made = load_recipe("lvmae-demo", overrides=SHORT)
    path = save_model(tmp_path / "tokenizer.safetensors", tokenizer_spec(made), tokenizer)
    return replace(made, tokenizer=replace(made.tokenizer, checkpoint=str(path)))


def autoencoder(recipe: Recipe, **changes: Any) -> MaskedAutoencoder:
    """The recipe's model, with changed fields of its spec."""
    torch.manual_seed(1)
    return replace(pretrain_spec(recipe, find_frozen(recipe)), **changes).build()


def ids(count: int = 20, tokens: int = 256) -> torch.Tensor:
    return torch.stack([torch.randperm(tokens)[:count].sort().values for _ in range(2)])


def test_targets_are_the_values_of_an_unmasked_pass_standardized(clips, tokenizer, frozen):
    chosen = ids()
    values = TokenTargets().make(TUBELET, IMAGENET, frozen).values(clips, chosen)
    frames = clips * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    frames = frames + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
    every = tokenizer.encode(frames).values
    for row, picked, of_row in zip(every, chosen, values, strict=True):
        expected = (row[picked] - tokenizer.target_mean) / tokenizer.target_std
        assert torch.allclose(of_row, expected, atol=1e-5)


@pytest.mark.parametrize(("space", "width"), [("values", 6), ("soft", 6), ("codes", 48)])
def test_each_space_has_its_width_and_its_loss(clips, frozen, space, width):
    targets = TokenTargets(space=space).make(TUBELET, IMAGENET, frozen)
    chosen, scored = ids(), torch.rand(2, 20) > 0.3
    values, prediction = targets.values(clips, chosen), torch.randn(2, 20, width)
    assert targets.width == width
    loss = targets.loss(prediction, values, scored)
    of_tokens = []
    for guess, true in zip(prediction[scored], values[scored], strict=True):
        if space == "codes":
            parts = guess.split(8)
            of_tokens.append(sum(F.cross_entropy(p, t) for p, t in zip(parts, true, strict=True)) / 6)
        else:
            of_tokens.append((guess - true).square().mean())
    assert loss.item() == pytest.approx(torch.stack(of_tokens).mean().item(), rel=1e-5)


def test_training_leaves_the_tokenizer_alone_and_out(clips, recipe):
    model = autoencoder(recipe)
    frozen = model.tokenizer
    before = state_hash(frozen.tokenizer.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(3):
        model(clips).loss.backward()
        optimizer.step()
    assert state_hash(frozen.tokenizer.state_dict()) == before
    assert not frozen.tokenizer.training
    assert all(parameter.grad is None for parameter in frozen.tokenizer.parameters())
    names = [name for name, _ in model.named_modules()]
    assert not any("tokenizer" in name or "scorer" in name for name in [*names, *model.state_dict()])
    assert deepcopy(model).tokenizer is frozen  # an average of the weights shares it


def test_the_autoencoder_asks_for_what_the_tokenizer_scores_highest(clips, recipe, frozen):
    model = autoencoder(recipe)
    noise = torch.rand(2, 256)
    chosen = model(clips, noise=noise).selection
    scores = frozen.scores(clips)
    assert torch.equal(measure_importance(model.strategy, clips, model.embedding, model.scorer), scores)
    expected = model.strategy(model.encoder.grid, importance=scores, noise=noise)
    assert torch.equal(chosen.predicted, expected.predicted)
    assert torch.equal(
        model(clips, noise=noise).target_values, model.targets.values(clips, expected.predicted)
    )


@pytest.mark.parametrize("target", [TokenTargets(), PixelTargets()])
@pytest.mark.parametrize(
    "strategy",
    [*(LearnedImportance(score=score) for score in get_args(ScoreName)), RedundancyRobust(), Tube()],
)
def test_the_camera_task_trains_with_any_strategy(clips, recipe, strategy, target):
    model = autoencoder(recipe, selection=strategy, target=target, camera=0.5).train()
    noise = torch.rand(2, model.noise_layout.total)
    out = model(clips, noise=noise)
    without = model.eval()(clips, noise=noise)
    assert torch.equal(out.loss, without.loss + 0.5 * out.metrics["camera_loss"])
    out.loss.backward()
    assert model.camera_head.weight.grad is not None


@pytest.mark.parametrize("space", ["values", "soft", "codes"])
def test_targets_and_scores_of_a_clip_are_the_same_bits_in_any_batch(clips, frozen, space):
    targets, every = (
        TokenTargets(space=space).make(TUBELET, IMAGENET, frozen),
        torch.arange(256).expand(6, -1),
    )
    batch = torch.cat([clips, clips.flip(2), clips.flip(3)])  # (6, 3, 32, 32, 32)
    values, scores = targets.values(batch, every), frozen.scores(batch)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        assert torch.equal(targets.values(batch[part], every[part]), values[part])
        assert torch.equal(frozen.scores(batch[part]), scores[part])


def test_a_checkpoint_names_its_tokenizer_and_finds_it_again(clips, recipe):
    model, spec = autoencoder(recipe), pretrain_spec(recipe, find_frozen(recipe))
    again = read_model_spec(spec.dump(), source=Path("x")).build()
    again.load_state_dict(model.state_dict())
    noise = torch.rand(2, 256)
    assert torch.equal(model(clips, noise=noise).loss, again(clips, noise=noise).loss)
    other = replace(spec, tokenizer=replace(spec.tokenizer, sha256="0" * 64))
    with pytest.raises(CheckpointError, match="the tokenizer of this model is another one"):
        other.build()
    Path(spec.tokenizer.path or "").unlink()
    with pytest.raises(CheckpointError, match="the tokenizer of this model is missing"):
        spec.build()


def test_a_tokenizer_with_other_tokens_than_the_model_is_refused(recipe):
    wide = replace(recipe, model=replace(recipe.model, tubelet=(2, 16, 16)))
    with pytest.raises(CheckpointError, match=r"its tokens are of \(2, 8, 8\) in chunks of 16 frames"):
        pretrain_spec(wide, find_frozen(wide))
    spec = pretrain_spec(recipe, find_frozen(recipe))
    save_model(Path(recipe.tokenizer.checkpoint or ""), spec, autoencoder(recipe))
    with pytest.raises(CheckpointError, match="a pretrain checkpoint where a tokenizer is needed"):
        pretrain_spec(recipe, find_frozen(recipe))
