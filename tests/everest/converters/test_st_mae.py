"""ST-MAE's own models: their encoders and classifiers compute the same here as by the facts about them.

The reference is written from these facts (the class token in front, positions of place and time index added,
blocks with biases on queries, keys and values, one norm), not from the program.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from foreign import NARROW, problem_of
from safetensors.torch import load_file
from small_runs import STILL, called, refused, run, sets, small_recipe
from torch import Tensor

from everest.checkpoints.load import build_model
from everest.converters.convert import Conversion, convert
from everest.converters.foreign_checkpoint import ForeignCheckpoint
from everest.converters.recognition import Hints
from everest.errors import CheckpointError
from everest.methods.grid import TokenGrid
from everest.models.classifier import VideoClassifier
from everest.models.mae import MaskedAutoencoder
from everest.system.weights import read_weights

HEADS = 3
GRID = TokenGrid(t=2, h=4, w=6)  # 4 frames of 64 x 96
SHAPE = (3, 4, 64, 96)
HINTS = Hints(heads=HEADS, size=(64, 96))
CLASSES = 5


def st_mae(*, kind: str = "pretrain", grid: TokenGrid = GRID, class_token: bool = True) -> dict[str, Tensor]:
    """Random weights with the names and shapes of ST-MAE."""
    d, dec = 48, 24
    shapes = {"patch_embed.proj.weight": (d, 3, 2, 16, 16), "patch_embed.proj.bias": (d,)}

    def block(name: str, d: int) -> None:
        for norm in ("norm1", "norm2"):
            shapes.update({f"{name}.{norm}.weight": (d,), f"{name}.{norm}.bias": (d,)})
        for layer, rows, columns in (
            *((f"attn.{matrix}", d, d) for matrix in ("q", "k", "v", "proj")),
            ("mlp.fc1", 4 * d, d),
            ("mlp.fc2", d, 4 * d),
        ):
            shapes.update({f"{name}.{layer}.weight": (rows, columns), f"{name}.{layer}.bias": (rows,)})

    def positions(prefix: str, d: int) -> None:
        shapes[f"{prefix}pos_embed_spatial"] = (1, grid.num_positions, d)
        shapes[f"{prefix}pos_embed_temporal"] = (1, grid.t, d)
        if class_token:
            shapes.update({f"{prefix}cls_token": (1, 1, d), f"{prefix}pos_embed_class": (1, 1, d)})

    positions("", d)
    for number in range(2):
        block(f"blocks.{number}", d)
    shapes.update({"norm.weight": (d,), "norm.bias": (d,)})
    if kind == "classifier":
        shapes.update({"head.weight": (CLASSES, d), "head.bias": (CLASSES,)})
    else:
        positions("decoder_", dec)
        block("decoder_blocks.0", dec)
        shapes.update({"mask_token": (1, 1, dec), "decoder_norm.weight": (dec,), "decoder_norm.bias": (dec,)})
        shapes.update({"decoder_embed.weight": (dec, d), "decoder_embed.bias": (dec,)})
        shapes.update({"decoder_pred.weight": (768, dec), "decoder_pred.bias": (768,)})
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["patch_embed.proj.weight"] *= 0.1  # so that positions and class token weigh as much as pixels
    return state


def reference(state: dict[str, Tensor], clips: Tensor, ids: Tensor) -> Tensor:
    """ST-MAE's tokens (B, 1 + K, D) after its last block, the class token first if there is one."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    embedded = F.conv3d(clips, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], (2, 16, 16))
    tokens = embedded.flatten(2).mT  # (B, N, D)
    spatial, temporal = state["pos_embed_spatial"], state["pos_embed_temporal"]
    slices, places = temporal.size(1), spatial.size(1)
    position = spatial.repeat(1, slices, 1) + temporal.repeat_interleave(places, dim=1)  # (1, N, D)
    index = ids.unsqueeze(-1).expand(-1, -1, tokens.size(-1))
    x = (tokens + position).gather(1, index)
    if "cls_token" in state:
        first = (state["cls_token"] + state["pos_embed_class"]).expand(len(x), -1, -1)
        x = torch.cat([first, x], dim=1)
    for number in range(2):
        block = f"blocks.{number}"
        normed = norm(x, f"{block}.norm1")
        q, k, v = (
            linear(normed, f"{block}.attn.{matrix}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for matrix in "qkv"
        )
        fractions = (q @ k.mT / q.size(-1) ** 0.5).softmax(dim=-1)
        x = x + linear((fractions @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return x


def normed(state: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6)


def imported(state: dict[str, Tensor], hints: Hints = HINTS) -> Conversion:
    whole = "head.weight" in state or "head.projection.weight" in state
    return convert(ForeignCheckpoint(path=Path("mae_st.pth"), tensors=state), hints, partial=not whole)


def module(state: dict[str, Tensor], hints: Hints = HINTS) -> MaskedAutoencoder | VideoClassifier:
    done = imported(state, hints)
    return build_model(done.identity.spec, done.weights, source=Path("mae_st.pth"))


SUBSET = [[0, 5, 6, 23, 24, 47], [1, 2, 3, 25, 30, 46]]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("ids", [[list(range(GRID.num_tokens))] * 2, SUBSET])
@torch.no_grad()
def test_the_encoder_equals_the_reference(class_token: bool, ids: list[list[int]]):
    state, given = st_mae(class_token=class_token), torch.tensor(ids)
    clips = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    expected = normed(state, reference(state, clips, given))[:, -given.size(1) :]
    encoder = module(state).encoder
    torch.testing.assert_close(encoder(clips, given), expected, atol=1e-5, rtol=0)
    if class_token:  # it takes part: without it the other tokens differ
        encoder.class_token = None
        assert (encoder(clips, given) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", ["head.", "head.projection."])
@torch.no_grad()
def test_a_classifier_equals_the_reference(prefix: str):
    state, clips = st_mae(kind="classifier"), torch.randn(2, *SHAPE)
    every = torch.arange(GRID.num_tokens).expand(2, -1)
    mean = reference(state, clips, every)[:, 1:].mean(dim=1)
    expected = normed(state, mean) @ state["head.weight"].T + state["head.bias"]
    named = {name.replace("head.", prefix): tensor for name, tensor in state.items()}
    done = imported(named)
    assert not done.identity.missing
    assert not done.identity.unexpected
    assert done.identity.metadata.translation.without_effect == [f"blocks.{i}.attn.k.bias" for i in range(2)]
    classifier = module(named)
    torch.testing.assert_close(classifier(clips), expected, atol=1e-5, rtol=0)


def test_only_the_decoder_is_left_out():
    state = st_mae()
    with pytest.raises(CheckpointError, match=r"cannot be mapped fully: .*--partial` takes the encoder"):
        convert(ForeignCheckpoint(path=Path("mae_st.pth"), tensors=state), HINTS)
    identity = imported(state).identity
    assert (identity.metadata.program, identity.metadata.kind) == ("st-mae", "encoder")
    assert not [name for name in identity.missing if name.startswith("encoder.")]
    assert all(name.startswith(("decoder_", "mask_token")) for name in identity.unexpected)
    assert identity.spec.selection.strategy == "random"
    fates = [part for parts in identity.metadata.translation.sources.values() for part in parts]
    fates += [*identity.metadata.translation.without_effect, *identity.metadata.translation.unexpected]
    assert sorted(fates) == sorted(state)
    state["pos_embed_spatial"] = torch.zeros(24 * 48)  # no list of vectors
    assert "other features without pos_embed_spatial; take another" in problem_of(imported, state)


OTHER = "set --frames and --size of its training"
WRONG = {
    "no square": (
        None,
        {"size": None},
        "2 x 24 tokens in time and space, a clip of 4 x 64 x 64 has 2 x 16; " + OTHER,
    ),
    "frames": (
        None,
        {"frames": 8},
        "2 x 24 tokens in time and space, a clip of 8 x 64 x 96 has 4 x 24; " + OTHER,
    ),
    "no time": ("pos_embed_temporal", {"frames": 4}, "it lacks encoder.position.temporal"),
    "no query": ("blocks.0.attn.q.weight", {}, "it lacks encoder.blocks.0.attn.qkv.weight"),
    "no class position": ("pos_embed_class", {}, "it lacks encoder.position.class_token"),
    "no class token": ("cls_token", {}, "it classifies without a class token"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_do_not_fit_are_one_line(case: str):
    removed, hints, message = WRONG[case]
    state = {name: tensor for name, tensor in st_mae(kind="classifier").items() if name != removed}
    given = ForeignCheckpoint(path=Path("mae_st.pth"), tensors=state)
    assert message in problem_of(convert, given, replace(HINTS, **hints))


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    """A recipe for weights that are 48 wide and 2 deep."""
    return small_recipe(tmp_path, clip_files, NARROW)


def test_an_imported_encoder_is_probed_and_fine_tuned(recipe, tmp_path, caplog):
    given, out = tmp_path / "mae_st.pth", tmp_path / "st-mae.safetensors"
    state = st_mae(grid=TokenGrid(t=2, h=6, w=6))  # clips of 4 x 96 x 96
    torch.save({"model_state": state, "epoch": 1, "cfg": "TRAIN: …"}, given)
    run("convert", given, "-o", out, "--partial", "--heads", "3")
    assert read_weights(out).settings["model"]["class_token"] is True
    interpolated = "learned positions are interpolated from clips of 4 x 96 x 96 to 4 x 64 x 64"
    called("probe --probes knn -q", "-c", out, "-r", recipe)
    assert interpolated in caplog.text
    options = ["finetune", "--recipe", recipe, "--init", out, "-o", tmp_path / "run"]
    message = refused(*options, code=6)
    assert "--set model.positions=learned-separable --set model.class_token=true" in message
    positions = sets("model.positions=learned_separable", "model.class_token=true")
    assert interpolated in called(*options, *positions, *STILL).stderr
    tuned = load_file(tmp_path / "run" / "model.safetensors")
    assert tuned["encoder.position.spatial"].shape == (1, 16, 48)
    assert torch.equal(tuned["encoder.class_token"].round(decimals=4), state["cls_token"].round(decimals=4))
