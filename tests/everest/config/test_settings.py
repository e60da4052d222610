"""Single values of the settings: types, ranges, and what follows from them."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from small_runs import problems_of

from everest.config.model_settings import BACKBONES, Backbone
from everest.config.recipe import dump_recipe, flat_values, load_recipe, recipe_values
from everest.config.settings import DataSettings, TrainSettings
from everest.config.tokenizer_settings import TOKENIZERS, TokenizerSize
from everest.errors import RecipeError
from everest.methods.strategies import STRATEGIES

LARGE = str(10**18)
FREEZE = "must be none, encoder, embedding or first:N, such as first:6, not {}"
BAD_VALUES = [
    ("data.size=0", "must be a number of pixels or [height, width], not 0"),
    ("model.depth=100000000", "must be at most 1000, not 100000000"),
    ("data.size=[224]", "must be a number of pixels or [height, width], not [224]"),
    ("data.size=[224, true]", "must be a number of pixels or [height, width], not [224, true]"),
    ("data.frames=0", "must be at least 1, not 0"),
    ("data.frames=16.0", "must be an integer, not 16.0"),
    ("data.num_classes=1", "must be at least 2, not 1"),
    ("data.heads={verb: 1}", "must be a number of classes from 2, {multi-label: N} or regression, not 1"),
    ("data.channels=2", "unknown value 2"),
    ("data.mean=[0.5, 0.5, 1.5]", ".2: must be at most 1.0, not 1.5"),
    ("data.std=[0.2, 0, 0.2]", ".1: must be at least 1e-06, not 0"),
    ("data.fps=0", "must be more than 0.0, not 0"),
    ("data.fps=fast", "must be a number, not 'fast'"),
    ("data.decoder=deford", "unknown value 'deford'; did you mean 'decord'?"),
    ("data.resize=devic", "unknown value 'devic'; did you mean 'device'?"),
    ("data.flip=1", "must be true or false, not 1"),
    ("data.flip=on", "must be true or false, not 'on'"),
    ("data.max_bad=.nan", "must be a finite number, not NaN"),
    ("data.root=3", "must be text, not 3"),
    ("model.backbone=vit-bb", "unknown value 'vit-bb'; did you mean 'vit-b'?"),
    ("model.tubelet=16", "must be a list, not 16"),
    ("model.embedding_layers=4", "must be at most 3, not 4"),
    ("model.embedding_layers=true", "must be an integer, not true"),
    ("train.precision=fp8", "unknown value 'fp8'; known: auto, bf16, fp16, fp32"),
    ("train.micro_batch=many", "must be 'auto' or an integer from 1, not 'many'"),
    ("train.save_every=10m", "must be a number of steps or a time such as '30s', '10min', '2h', not '10m'"),
    ("train.ema=1", "must be less than 1.0, not 1"),
    ("pretrain.base_lr=true", "must be a number, not true"),
    ("pretrain.base_lr=fast", "must be a number, not 'fast'"),
    ("pretrain.base_lr=0", "must be more than 0.0, not 0"),
    ("pretrain.betas=[0.9, 1]", "must be less than 1.0, not 1"),
    ("pretrain.frame_selection.alpha=0.9", "must be at least 1.0, not 0.9"),
    ("pretrain.selection.keep_ratio=1.5", "must be at most 1.0, not 1.5"),
    (
        "finetune.selection.strategy=frame",
        "known: all, frame-difference, redundancy-robust, sampled, tube-dropout",
    ),
    ("pretrain.selection=3", "must be a mapping of keys, not 3"),
    ("pretrain.selection.strategy=tub", "unknown value 'tub'; did you mean 'tube'?"),
    ("pretrain.selection.strategy=null", f"known: {', '.join(sorted(STRATEGIES))}"),
    ("pretrain.selection=$HOME", "must be a mapping of keys, not '$HOME'"),
    ("pretrain.selection={strategy: sampled, uniform: 1.5}", ".uniform: must be at most 1.0, not 1.5"),
    ("pretrain.selection.strategy=[tube]", "unknown value [\"tube\"]; did you mean 'tube'?"),
    ("pretrain.selection.keep_ratio=true", "must be a number, not true"),
    ("pretrain.target.kind=words", "unknown value 'words'; known: features, pixels, tokens"),
    ("pretrain.target.spac=codes", "unknown key; did you mean 'space'?"),
    ("pretrain.keep_ration=0.2", "unknown key; did you mean 'pretrain.selection.keep_ratio'?"),
    ("pretrain.base_lrr=0.2", "unknown key; did you mean 'base_lr'?"),
    ("sampler=sqrt", "unknown key; did you mean 'finetune.sampler'?"),
    ("pretrain.target.normalize=1", "must be true, false or 'token', not 1"),
    ("finetune.rand_augment.magnitude=11", "must be at most 10.0, not 11"),
    ("finetune.layer_decay=0", "must be more than 0.0, not 0"),
    ("eval.clips=0", "must be at least 1, not 0"),
    *((f"finetune.freeze={value}", FREEZE.format(value)) for value in ("'first:0'", "'head'", "3")),
    ("finetune.lora={rank: 8, layers: [q]}", ".layers.0: unknown value 'q'; known: fc1, fc2, proj, qkv"),
    ("finetune.lora={rank: 8, layers: []}", "must have at least 1 entry"),
    ("finetune.lora.rank=-1", "must be at least 0, not -1"),
    ("finetune.lora.rank=low_rank", "finetune.lora.rank: must be an integer, not 'low_rank'"),
    ("finetune.lora={rank: 8, dropout: 1}", "must be less than 1.0, not 1"),
    ("finetune.lora={rank: 8, alpha: 0}", "must be more than 0.0, not 0"),
    ("finetune.lora.ranks=8", "unknown key; did you mean 'rank'?"),
    ("data.size=" + LARGE, f"must be a number of pixels or [height, width], not {LARGE}"),
    ("train.workers=" + LARGE, f"must be 'auto' or an integer from 0 to 1024, not {LARGE}"),
    ("train.workers=100000", "must be 'auto' or an integer from 0 to 1024, not 100000"),  # each is a process
    ("pretrain.batch_size=" + LARGE, f"must be at most 2147483647, not {LARGE}"),
    ("pretrain.epochs=" + LARGE, f"must be at most 2147483647, not {LARGE}"),
    ("model.width=" + LARGE, f"must be at most 65536, not {LARGE}"),
    ("finetune.base_lr=1.0e+308", "must be at most 1e+30, not 1e+308"),  # else the peak rate may be infinite
    ("finetune.weight_decay=1.0e+300", "must be at most 1e+30, not 1e+300"),
    ("data.fps=1.0e+300", "must be at most 10000.0, not 1e+300"),  # nor could a clip's frames be numbered
]


@pytest.mark.parametrize(("override", "message"), BAD_VALUES)
def test_impossible_value_is_an_error_that_names_key_and_value(override, message):
    (problem,) = problems_of("ucf101", override)
    assert problem.endswith(message)
    assert problem.startswith(override.partition("=")[0])


def test_each_name_has_its_sizes():
    assert get_args(Backbone) == tuple(BACKBONES)
    assert get_args(TokenizerSize) == tuple(TOKENIZERS)


def test_settings_may_be_written_in_several_ways():
    for text in ("1e-3", "1.0e-3", ".001", "0.001"):
        assert load_recipe("ucf101", overrides=[f"pretrain.base_lr={text}"]).pretrain.base_lr == 0.001
    for size, frame_size in ((224, (224, 224)), ((96, 128), (96, 128))):
        assert DataSettings(size=size).frame_size == frame_size
    times = {500: math.inf, "30s": 30, "10min": 600, "2h": 7200}
    for save_every, seconds in times.items():
        assert TrainSettings(save_every=save_every).save_seconds == seconds
    for name in BACKBONES:
        recipe = load_recipe("ucf101", overrides=[f"model.backbone={name.replace('-', '_')}"])
        assert recipe.model.backbone == name
    underscores = ["pretrain.selection.strategy=redundancy_robust", "pretrain.selection.distance=neg_cka"]
    assert load_recipe("ucf101", overrides=underscores).pretrain.selection.distance == "neg-cka"


def test_a_name_is_one_folder(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    letters = "in printable characters and without '/'"
    for name in ("/tmp/x", "../..", "..", ".", "", "a/b", "a\\nb"):
        path.write_text(f'name: "{name}"\n')
        (problem,) = problems_of(path)
        assert problem.startswith(f"{path}: name: must be the name of a folder, {letters}, not '")
    for name in ("x" * 80, "\u4e00" * 26, "-x", "a b", ".x"):
        path.write_text(f'name: "{name}"\n')
        assert load_recipe(path).name == name
    for file in ("...yaml", "a\nb.yaml"):  # no names of folders
        path = tmp_path / file
        path.write_text("summary: x\n")
        assert "must be the name of a folder" in "".join(problems_of(path))
        path.write_text("name: mine\n")
        assert load_recipe(path).name == "mine"


def test_names_of_heads_are_short():
    (problem,) = problems_of("ucf101", f"data.heads={{{'x' * 81}: 3}}")
    assert problem.startswith("data.heads.xxx")
    assert load_recipe("ucf101", overrides=[f"data.heads={{{'x' * 80}: 3}}"]).data.heads == {"x" * 80: 3}


@pytest.mark.parametrize("number", [10**18, 1e308, 1e-320])
def test_an_extreme_number_is_an_error_of_the_recipe_or_can_be_written(number: float):
    recipes = {name: flat_values(recipe_values(load_recipe(name))) for name in ("lvmae-demo", "ucf101")}
    keys = {key: (name, value) for name, values in recipes.items() for key, value in values.items()}
    for key, (name, value) in keys.items():
        text = str([number] * len(value)) if isinstance(value, list) else str(number)
        with suppress(RecipeError):
            dump_recipe(load_recipe(name, overrides=[f"{key}={text}"]))


# --- settings of partial training, and those that contradict each other -------------------------------------


SMALL = "model.depth=4"
RANK = "finetune.lora.rank=8"
DIFFERENCES = "model.input=differences"
ROTARY = "model.positions=rotary"
VIEWS = "pretrain.objective=views"
SELECTION = "pretrain.selection"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.frames=15"], "data.frames: 15 is no multiple of the tubelet's 2"),
        (["data.size=[224, 100]"], "data.size: 100 is no multiple of the tubelet's 16"),
        (["model.tubelet=[2,6,6]", "model.embedding_layers=2", "data.size=96"], "embedding_layers"),
        (["model.heads=7"], "model.heads: 7 heads do not divide the width of 768"),
        (["finetune.min_lr=1"], "finetune.min_lr: 1.0 is more than base_lr (0.001)"),
        (["finetune.freeze=first:5", SMALL], "finetune.freeze: first:5 is more than the encoder's 4 blocks"),
        ([RANK, "finetune.freeze=encoder"], "finetune.freeze: is encoder, and finetune.lora freezes"),
        ([RANK, "finetune.freeze=first:2"], "finetune.freeze: is first:2, and finetune.lora freezes"),
        (["data.mean=[0.5]"], "data.mean: 1 values, and data.channels is 3; give one for each channel"),
        (["data.channels=1", "data.std=[0.2, 0.2, 0.2]"], "data.std: 3 values, and data.channels is 1"),
        (["pretrain.selection={strategy: sampled, order: ascending}"], "selection.order: must be descending"),
        ([DIFFERENCES, "pretrain.frame_selection.alpha=2"], "be frames with pretrain.frame_selection.alpha"),
        ([DIFFERENCES, "model.tubelet=[1,16,16]", "data.frames=1"], "clips of at least two frames"),
        ([ROTARY, "model.width=20", "model.heads=5"], "model.heads: 5 heads of 4 channels; rotary positions"),
        ([ROTARY, "model.width=21", "model.heads=3"], "model.heads: 3 heads of 7 channels; rotary"),
        ([ROTARY, "model.decoder_width=8", "model.decoder_heads=2"], "decoder_heads: 2 heads of 4 channels"),
        (["model.rotary=eva02"], "model.rotary: must be none, dinov3, rope-vit, eva02:N or pe:N"),
        (["model.rotary=dinov3", "model.width=36", "model.heads=6"], "model.heads: 6 heads of 6 channels;"),
        (["model.rotary=dinov3", ROTARY], "model.rotary: rotates by positions, and so does"),
        ([f"{SELECTION}.visible_ratio=0.4"], f"{SELECTION}.visible_ratio: 0.4 is more than keep_ratio"),
        ([f"{SELECTION}.visible_ratio=0.3"], f"{SELECTION}: leaves none of 1568 tokens to predict"),
        ([f"{SELECTION}.visible_ratio=1e-4"], f"{SELECTION}: lets the encoder see none of 1568 tokens"),
        ([f"{SELECTION}.strategy=all"], f"{SELECTION}: leaves none of 1568 tokens to predict"),
        ([f"{SELECTION}={{strategy: running-cell, mask_ratio: 0.004}}"], f"{SELECTION}: leaves none of 1568"),
        (["finetune.selection.keep_ratio=1e-4"], "finetune.selection: keeps none of 1568 tokens"),
        (["finetune.selection.visible_ratio=0.1"], "selection.visible_ratio: belongs to pre-training"),
        ([VIEWS, "pretrain.batch_size=3"], "3 clips are not two or more videos of 2 views"),
        ([VIEWS, "pretrain={batch_size: 16, views: {number: 5}}"], "16 clips are not two or more videos"),
        ([VIEWS, "pretrain.selection.strategy=learned-importance"], "pretrain.selection: needs a tokenizer"),
        ([VIEWS, "pretrain.views.number=1"], "pretrain.views.number: must be at least 2, not 1"),
        ([VIEWS, "pretrain.views.crop_area=[0.5,0.2]"], "views.crop_area: must be two fractions above 0"),
        ([VIEWS, "pretrain.views.temperature=0"], "pretrain.views.temperature: must be more than 0.0"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(overrides: list[str], message: str):
    (problem,) = problems_of("ucf101", *overrides)
    assert message in problem
