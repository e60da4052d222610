import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import RELEASED, on_meta, problem_of, saved, tiny, videomae_config
from safetensors.torch import load_file
from tiny_models import randomized
from torch import Tensor

from everest.checkpoints.load import AnyModel, build_model
from everest.config.model_settings import BackboneSize
from everest.converters.convert import Conversion, convert, identify
from everest.converters.foreign_checkpoint import ForeignCheckpoint, read_foreign, strip_wrappers
from everest.converters.recognition import Hints
from everest.errors import CheckpointError, RecipeError
from everest.methods.grid import TokenGrid, TokenSelection
from everest.models.classifier import VideoClassifier
from everest.models.positions import position_table
from everest.video.pixels import normalize

NARROW = Hints(heads=3, decoder_heads=3)


def foreign(tensors: dict[str, Tensor], **settings) -> ForeignCheckpoint:
    return ForeignCheckpoint(path=Path("given.pth"), tensors=tensors, **settings)


def model(converted: Conversion) -> AnyModel:
    return build_model(converted.identity.spec, converted.weights, source=Path("given.pth"))


def test_positions_are_those_of_the_family():
    for name, hints, positions in (
        ("mvd_finetune_base", Hints(), "flat"),  # the same names as VideoMAE's
        ("mvd_finetune_base", Hints(family="mvd"), "separable"),
        ("mme_pretrain_base", Hints(), "flat"),
    ):
        found = identify(foreign(on_meta(name)), hints)
        assert found.spec.model.positions == positions


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints_are_mapped_to_the_last_parameter(name: str):
    program, stage, size = re.match(r"(hf|[a-z]+)(?:_videomae)?_([a-z]+)_([a-z]+)", name).groups()
    family, backbone = "transformers" if program == "hf" else "videomae", f"vit-{size[0]}"
    whole = program not in ("mme", "mvd") or stage == "finetune"  # they have decoders of their own
    kind = "classifier" if stage in ("finetune", "classification") else "pretrain" if whole else "encoder"
    tensors = on_meta(name)
    assert sum(tensor.numel() for tensor in tensors.values()) == RELEASED[name]["n_params"]
    found = identify(foreign(tensors, config=RELEASED[name].get("config", {})), Hints())
    metadata, spec = found.metadata, found.spec
    assert (metadata.program, metadata.kind, spec.model.backbone) == (family, kind, backbone)
    assert spec.model.backbone_size.depth == (24 if backbone == "vit-l" else 12)
    assert (spec.frames, spec.size, spec.model.tubelet) == (16, (224, 224), (2, 16, 16))
    assert (not found.missing and not found.unexpected) is whole
    translation = metadata.translation
    taken = [part for parts in translation.sources.values() for part in parts]
    fates = [*taken, *translation.without_effect, *translation.unexpected, *filter(None, [translation.table])]
    assert sorted(fates) == sorted(tensors)  # no two foreign tensors become one
    if kind == "classifier":
        assert spec.num_classes == 400
    if whole:
        with torch.device("meta"):
            our_model = spec.build()
        assert sum(p.numel() for p in our_model.parameters()) == RELEASED[name]["n_params"]
    else:  # the encoder is whole, the tensors of its decoders are listed
        assert not any(name.startswith("encoder.") for name in found.missing)
        assert all(
            "decoder" in n or "mask_token" in n or n.startswith(("down_", "pos_embed_"))
            for n in found.unexpected
        )


def test_a_family_that_the_names_contradict_is_refused():
    with pytest.raises(RecipeError, match="--family everest: has other keys; known: transformers"):
        identify(foreign(on_meta("hf_videomae_pretraining_base")), Hints(family="everest"))
    with pytest.raises(RecipeError, match="--family transformers: has other keys; known: everest, mme"):
        identify(foreign(on_meta("videomae_finetune_base")), Hints(family="transformers"))
    with pytest.raises(RecipeError, match="did you mean 'mvd'"):
        identify(foreign(on_meta("mvd_pretrain_base")), Hints(family="mvdd"))


def test_a_released_autoencoder_gives_its_recorded_loss(golden: Callable[[str], Path], tmp_path: Path):
    tensors = load_file(golden("everest_pretrain_s0.safetensors"))
    facts = json.loads(golden("everest_pretrain_s0.json").read_text())["cases"]["pre70_mask90"]
    state = {n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")}
    arguments = {"mask_type": "motion-centric", "mcm_ratio": 0.7, "mask_ratio": 0.9, "input_size": 64}
    path = saved(tmp_path / "checkpoint-799.pth", state, **arguments, num_frames=16)
    done = convert(read_foreign(path), NARROW)
    assert done.identity.metadata.program == "everest"
    our_model = model(done)
    clip = normalize(tensors["input.clip_uint8_BTHWC"].permute(0, 4, 1, 2, 3))
    sampled, ranked = tensors["pre70_mask90.noise"], tensors["pre70_mask90.ids_sorted"].long()
    noise = torch.zeros(2, 128).scatter_(1, ranked[:, : sampled.size(1)], sampled)
    out = our_model(clip, noise=noise)
    assert torch.equal(out.selection.visible, tensors["pre70_mask90.visible_idx"].long())
    assert out.loss.item() == pytest.approx(facts["loss"], abs=1e-6)


@pytest.mark.parametrize(("arguments", "keep"), [({}, None), ({"mcm": True, "mcm_ratio": 0.4}, 0.6)])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_released_classifier_keeps_every_tensor(tmp_path, arguments, keep, pooling):
    state = tiny("videomae_finetune_base")
    if pooling == "first":
        state = {name.replace("fc_norm.", "norm."): t.half() for name, t in state.items()}
    done = convert(read_foreign(saved(tmp_path / "x.pth", state, **arguments)), NARROW)
    tensors = done.weights.tensors
    assert len(tensors) == len(state)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    theirs = {"encoder.blocks.1.attn.qkv.weight": "blocks.1.attn.qkv.weight", "head.weight": "head.weight"}
    theirs["norm.bias"] = "fc_norm.bias" if pooling == "mean" else "norm.bias"
    assert all(torch.equal(tensors[ours], state[name].float()) for ours, name in theirs.items())
    assert getattr(done.identity.spec.selection, "keep_ratio", None) == keep
    assert done.identity.spec.model.pooling == pooling


PREFIXES = (
    "module.",
    "_orig_mod.module.",
    "model.",
    "backbone.",
    "encoder.model.",
    "encoder_q.encoder.model.",
)
INNER = (
    "_orig_mod",
    "_checkpoint_wrapped_module",
    "_fsdp_wrapped_module",
    "_orig_mod._checkpoint_wrapped_module",
)


def stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return strip_wrappers(state, source=Path("x.pth"))


@pytest.mark.parametrize("layout", ["videomae_finetune_base", "videomae_pretrain_base", "mme_pretrain_base"])
def test_prefixes_and_wrappers_are_removed(layout: str):
    state = tiny(layout)
    for prefix in (*PREFIXES, "net.", "student.", "net.model.", "_forward_module.", "any.name_2."):
        assert stripped({prefix + name: t for name, t in state.items()}).keys() == state.keys(), prefix
    for inner in INNER:
        named = {re.sub(r"(blocks\.\d+\.)", rf"\1{inner}.", name): t for name, t in state.items()}
        assert named.keys() != state.keys()
        assert stripped({f"net.{name}": t for name, t in named.items()}).keys() == state.keys(), inner


def test_transformers_names_lose_a_prefix_and_keep_their_own():
    for layout in ("hf_videomae_classification_base", "hf_videomae_pretraining_base"):
        state = tiny(layout)
        assert stripped({f"net.{name}": t for name, t in state.items()}).keys() == state.keys()


def test_an_encoder_under_a_prefix_keeps_the_head_next_to_it():
    state = tiny("mme_finetune_base")
    named = {n if n.startswith("head.") else f"encoder.model.{n}": t for n, t in state.items()}
    named = {n.replace("head.", "fc."): t for n, t in named.items()}
    done = convert(foreign(stripped(named)), NARROW)
    assert torch.equal(done.weights.tensors["head.bias"], state["head.bias"])


def test_several_models_in_a_file_are_named_and_a_part_of_the_model_is_none():
    state = tiny("videomae_finetune_base")
    both = {f"{prefix}{name}": t for prefix in ("student.", "teacher.") for name, t in state.items()}
    message = problem_of(stripped, both)
    assert "x.pth: several models, under student., teacher.; save the state dict of one alone" in message
    inner = state | {f"teacher.{name}": t for name, t in state.items()}
    assert stripped({f"module.{name}": t for name, t in inner.items()}).keys() == inner.keys()


@pytest.mark.parametrize("name", ["mme_pretrain_base", "mvd_pretrain_base"])
def test_foreign_decoders_are_refused_and_their_encoder_is_taken_on_request(name: str):
    state = tiny(name)
    if name.startswith("mvd"):
        grid = TokenGrid(t=8, h=14, w=14)
        state["pos_embed"] = position_table("separable", grid, 48).unsqueeze(0).half()
    with pytest.raises(CheckpointError, match=r"cannot be mapped fully: .*--partial` takes the encoder"):
        convert(foreign(state), NARROW)
    done = convert(foreign(state), NARROW, partial=True)
    prefix = "encoder." if name.startswith("mme") else ""
    for part in ("patch_embed.proj.weight", "blocks.1.mlp.fc2.bias", "norm.weight"):
        assert torch.equal(done.weights.tensors[f"encoder.{part}"], state[prefix + part])
    assert any(name.startswith("decoder") for name in done.weights.origin["fresh"])
    again = convert(foreign(state), NARROW, partial=True)
    assert all(torch.equal(t, again.weights.tensors[n]) for n, t in done.weights.tensors.items())
    encoder = model(done).encoder
    if name.startswith("mvd"):
        torch.testing.assert_close(encoder.position.table, state["pos_embed"][0].float(), atol=1e-3, rtol=0)


def test_stored_positions_that_are_learned_are_refused():
    state = tiny("videomae_finetune_base") | {"pos_embed": torch.randn(1, 1568, 48) * 0.02}
    assert "learned" in problem_of(convert, foreign(state), NARROW, partial=True)
    state["pos_embed"] = position_table("flat", TokenGrid(t=8, h=14, w=14), 48).unsqueeze(0)
    assert not convert(foreign(state), NARROW).identity.unexpected
    with pytest.raises(CheckpointError, match=r"\[1, 1568, 48\].*--frames and --size"):
        convert(foreign(state), Hints(heads=3, frames=8))


def spoiled(name: str, *shape: int, **options: Any) -> Callable[[dict[str, Tensor]], object]:
    """Replaces a tensor by zeros of a shape, or removes it."""
    if shape:
        return lambda state: state.update({name: torch.zeros(shape, **options)})
    return lambda state: state.pop(name)


FC1, EMBED = "blocks.1.mlp.fc1", "patch_embed.proj.weight"
WRONG = {
    "a value is no number": (lambda s: s["blocks.0.norm1.bias"].fill_(torch.nan), "48 values that are no"),
    "a tensor is missing": (spoiled(f"{FC1}.bias"), f"it lacks encoder.{FC1}.bias;"),
    "a tensor too many": (spoiled("blocks.0.gamma_1", 48), "no place for blocks.0.gamma_1;"),
    "quantized": (spoiled("head.weight", 400, 48, dtype=torch.int8), "torch.int8"),
    "a wider MLP in one block": (
        spoiled(f"{FC1}.weight", 209, 48),
        f"it lacks encoder.{FC1}.weight; no place for {FC1}.weight",
    ),
    "gray videos": (spoiled(EMBED, 48, 1, 2, 16, 16), "RGB"),
    "images": (spoiled(EMBED, 48, 3, 16, 16), "weights of an image model; name them timm:NAME="),
    "no embedding": (spoiled(EMBED), "not a checkpoint of a known family"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_weights_are_refused(case: str):
    spoil, message = WRONG[case]
    state = tiny("videomae_finetune_base")
    spoil(state)
    assert message in problem_of(convert, foreign(state), NARROW)


PARTS_OF_AN_ENCODER = {
    "LayerScale": ("videomae_pretrain_base", "encoder.blocks.{}.gamma_1", "encoder.blocks.N.gamma_1"),
    "norms of keys": ("mme_pretrain_base", "encoder.blocks.{}.attn.k_norm.weight", "encoder.blocks.N.attn"),
    "of a classifier": ("videomae_finetune_base", "blocks.{}.gamma_1", "blocks.N.gamma_1"),
    "of MVD": ("mvd_pretrain_base", "blocks.{}.gamma_1", "blocks.N.gamma_1"),
    "of transformers": (
        "hf_videomae_classification_base",
        "videomae.encoder.layer.{}.lambda_1",
        "videomae.encoder.layer.N.lambda_1",
    ),
    "a norm before the mean": ("videomae_finetune_base", "norm.weight", "norm.weight"),
    "a class token alone": ("videomae_finetune_base", "cls_token", "cls_token"),
    "positions alone": ("videomae_finetune_base", "pos_embed_temporal", "pos_embed_temporal"),
}


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("case", PARTS_OF_AN_ENCODER)
def test_an_encoder_with_parts_that_ours_lacks_is_refused(case: str, partial: bool):
    """Without them it computes other features."""
    name, part, group = PARTS_OF_AN_ENCODER[case]
    state = tiny(name) | {part.format(block): torch.ones(48) for block in range(2)}
    state.pop("pos_embed", None)
    message = problem_of(convert, foreign(state), NARROW, partial=partial)
    assert f"would compute other features without {group}" in message
    assert "take another checkpoint" in message
    assert "--partial" not in message


def test_heads_of_an_unknown_width_must_be_given():
    state = tiny("videomae_pretrain_base")
    with pytest.raises(CheckpointError, match=r"48 wide.*--heads N"):
        convert(foreign(state), Hints())
    with pytest.raises(CheckpointError, match=r"24 wide.*--heads N,M"):
        convert(foreign(state), Hints(heads=3))
    message = problem_of(convert, foreign(state), Hints(heads=7, decoder_heads=3))
    assert "7 heads do not divide a width of 48; set --heads N" in message


def test_class_names_come_from_the_config_and_must_be_as_many_as_classes():
    state = tiny("hf_videomae_classification_base")
    names = {str(i): f"class {i}" for i in range(400)}
    for given in (names, list(names.values())):
        done = convert(foreign(state, config={"id2label": given}), NARROW)
        assert done.weights.classes == tuple(names.values())
    two = foreign(state, config={"id2label": {"0": "a", "1": "b"}})
    assert "names 2 classes, its head has 400" in problem_of(convert, two, NARROW)
    message = problem_of(convert, foreign(state), NARROW, classes=("a", "b"))
    assert "its head has 400 classes, not the 2 of --classes" in message


def test_an_encoder_may_have_an_mlp_of_any_width_and_a_decoder_may_not():
    state, generator = tiny("videomae_finetune_base"), torch.Generator().manual_seed(1)
    for number in range(2):
        state[f"blocks.{number}.mlp.fc1.weight"] = torch.randn(100, 48, generator=generator)
        state[f"blocks.{number}.mlp.fc1.bias"] = torch.randn(100, generator=generator)
        state[f"blocks.{number}.mlp.fc2.weight"] = torch.randn(48, 100, generator=generator)
    done = convert(foreign(state), NARROW)
    assert done.weights.settings["model"]["mlp_width"] == done.identity.spec.model.backbone_size.mlp == 100
    built = model(done)
    assert torch.equal(built.encoder.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])
    usual = convert(foreign(tiny("videomae_finetune_base")), NARROW).weights
    assert usual.settings["model"]["mlp_width"] is None
    state = tiny("videomae_pretrain_base")
    state["decoder.blocks.0.mlp.fc1.weight"] = torch.zeros(97, 24)
    assert "has 97 rows; our decoder has 4 times 24" in problem_of(convert, foreign(state), NARROW)


@pytest.mark.parametrize("mean_pooling", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("stage", ["ForPreTraining", "ForVideoClassification"])
def test_a_checkpoint_of_transformers_gives_the_same_numbers(stage, mean_pooling, biased, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = BackboneSize(width=48, depth=2, heads=3, decoder_width=24, decoder_heads=3)
    shape = {"image_size": 32, "patch_size": 8, "num_frames": 4, "decoder_num_hidden_layers": 2}
    config = videomae_config(size, **shape, num_labels=5, use_mean_pooling=mean_pooling, qv_bias=biased)
    foreign_model = getattr(transformers, f"VideoMAE{stage}")(config).eval()
    randomized(foreign_model, 0.1)
    foreign_model.save_pretrained(tmp_path)
    our_model = model(convert(read_foreign(tmp_path), Hints()))
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        if isinstance(our_model, VideoClassifier):
            assert (our_model(clip) - foreign_model(clip.transpose(1, 2)).logits).abs().max() <= 1e-5
            return
        ids = torch.randperm(32)
        chosen = TokenSelection(*(part.sort().values.expand(2, -1) for part in (ids[:8], ids[8:])))
        masked = torch.ones(2, 32, dtype=torch.bool).scatter_(1, chosen.visible, False)
        out = our_model(clip, selection=chosen)
        reference = foreign_model(clip.transpose(1, 2), bool_masked_pos=masked)
    assert (out.prediction - reference.logits).abs().max() <= 1e-5
    assert (out.loss - reference.loss).abs() <= 1e-5
