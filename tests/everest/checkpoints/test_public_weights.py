"""The table of public weights: its layouts load, its settings fit, its commands exist."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from foreign import RELEASED, on_meta, videomae_config
from small_runs import json_of, refused, run

from everest.checkpoints.init import compare_settings
from everest.checkpoints.public_weights import PublicWeights, read_public_weights
from everest.config.heads import Head
from everest.config.model_settings import BACKBONES
from everest.config.recipe import load_recipe
from everest.converters.convert import identify
from everest.converters.foreign_checkpoint import ForeignCheckpoint
from everest.converters.recognition import Hints
from everest.converters.timm_images import convert_image_model
from everest.models.clip_spec import ModelSpec
from everest.models.spec import classifier_spec, read_model_spec
from everest_cli.weights import list_commands

TABLE = {weights.name: weights for weights in read_public_weights()}
GIVES = {"pretrain": "autoencoder", "encoder": "encoder", "classifier": "classifier"}  # by kind of weights


def transformers_model(weights: PublicWeights) -> ForeignCheckpoint:
    """A model of transformers of the size of the backbone, on the meta device."""
    transformers = pytest.importorskip("transformers")
    size = BACKBONES[weights.backbone]
    heads = next((int(s.partition("=")[2]) for s in weights.settings if "heads" in s), size.heads)
    shared = {"num_attention_heads": heads, "patch_size": 16, "tubelet_size": 2}
    if weights.layout == "VJEPA2Model":
        sizes = {"hidden_size": size.width, "num_hidden_layers": size.depth}
        clip = {"crop_size": weights.size, "frames_per_clip": weights.frames}
        config = transformers.VJEPA2Config(**shared, **sizes, **clip, mlp_ratio=size.mlp / size.width)
    else:
        clip = {"image_size": weights.size, "num_frames": weights.frames}
        config = videomae_config(size, **shared, **clip, num_labels=400)
    with torch.device("meta"):
        model = getattr(transformers, weights.layout)(config)
    return ForeignCheckpoint(
        path=Path(weights.name), tensors=model.state_dict(), config=json.loads(config.to_json_string())
    )


def spec_of(weights: PublicWeights) -> ModelSpec:
    """The model of weights, from names and shapes alone."""
    if weights.layout == "timm":
        name = weights.name.removeprefix("timm:")
        config = timm.get_pretrained_cfg(name)
        with torch.device("meta"):
            image = timm.create_model(name, num_classes=0)
            converted = convert_image_model(image, mean=config.mean, std=config.std, source=weights.name)
        return read_model_spec(converted.settings, source=Path(weights.name))
    if weights.layout in RELEASED:
        config = RELEASED[weights.layout].get("config", {})
        foreign = ForeignCheckpoint(path=Path(weights.name), tensors=on_meta(weights.layout), config=config)
    else:
        foreign = transformers_model(weights)
    hints = Hints(family="mvd" if weights.method == "MVD" else None)  # whose file has the positions
    found = identify(foreign, hints)
    encoder_only = weights.gives == "encoder"
    assert encoder_only or not (found.missing or found.unexpected)
    assert not any(name.startswith("encoder.") for name in found.missing)
    return found.spec


# One of those with the same names, shapes and settings.
DIFFERENT = {repr(replace(row, name="", data="", license="", method="")): name for name, row in TABLE.items()}


LARGE = ("vit-l", "vit-h", "vit-g")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (TABLE[name].backbone in LARGE))
        for name in DIFFERENT.values()
    ],
)
def test_weights_of_these_names_and_shapes_load_with_the_settings_of_the_table(name: str):
    weights = TABLE[name]
    spec = spec_of(weights)
    if weights.page is None:
        assert GIVES[spec.kind] == weights.gives
    assert (spec.frames, spec.size) == (weights.frames, (weights.size, weights.size))
    settings = [f"model.backbone={weights.backbone}", *weights.settings]
    recipe = load_recipe("custom", overrides=["data.classes=null", "data.num_classes=2", *settings])
    assert list(compare_settings(spec, classifier_spec(recipe, (Head(outputs=2),)))) == []


def test_the_commands_of_the_table_exist():
    helps = {name: run(name, "--help") for name in ("convert", "train", "pretrain", "finetune", "predict")}
    for weights in read_public_weights():
        for command in list_commands(weights):
            program, name, *options = shlex.split(command)
            assert program == "everest"
            for option in (part for part in options if part.startswith("--")):
                assert option in helps[name], command


def test_the_table_is_printed():
    table: list[dict[str, Any]] = json_of("weights", "list")
    assert [row["name"] for row in table] == list(TABLE)
    assert not any(row["downloaded"] for row in table)
    listed = run("weights", "list")
    assert [name for name in TABLE if name not in listed] == []
    shown = run("weights", "show", "videomae-base")
    assert "CC-BY-NC-4.0" in shown
    assert "never downloaded" in shown
    assert list_commands(TABLE["hf:MCG-NJU/videomae-base"])[0] in shown
    assert json_of("weights", "show", "mvd-checkpoint.pth")["commands"][0].endswith("--partial")


def test_names_that_are_not_in_the_table():
    assert "everest weights list" in refused("weights", "show", "videomae-bse", code=2)
    assert "timm:vit_base_patch14_dinov2.lvd142m" in refused("weights", "show", "dinov2", code=2)
    assert "everest weights list" in refused("weights", "show", "", code=2)
