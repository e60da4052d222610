"""Reading recipes: layers, errors, and the shipped files against the paper's tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_runs import called, problems_of

from everest.config.recipe import dump_recipe, flat_values, load_recipe, recipe_values
from everest.config.recipe_files import shipped_names, shipped_recipe
from everest.config.stage_settings import AutoencoderSettings, ViewPretrainSettings, ViewsSettings
from everest.config.yaml import write_yaml
from everest.errors import RecipeError
from everest.methods.strategies import (
    AllTokens,
    FrameDifference,
    RandomSpaceTime,
    RedundancyRobust,
    Sampled,
    Tube,
)
from everest.methods.targets import PixelTargets
from everest_workflows.sweep.request import is_sweep_file, read_request
from everest_workflows.sweep.sweep_jobs import resolve_variants

RECIPES = [name for name in shipped_names() if not is_sweep_file(shipped_recipe(name))]

# EVEREST Table 7: base_lr, flip, batch_size, warmup_epochs, keep_ratio, stride, epochs
TABLE_7 = {
    ("k400", "vit-s"): (1.5e-4, True, 1024, 40, 0.3, 4, 200),
    ("k400", "vit-b"): (3e-4, True, 1024, 40, 0.3, 4, 200),
    ("k400", "vit-l"): (1.5e-4, True, 512, 40, 0.3, 4, 200),
    ("ssv2", "vit-b"): (1.5e-4, False, 256, 40, 0.3, 2, 200),
    ("ucf101", "vit-b"): (1e-3, True, 192, 40, 0.3, 4, 3200),
    ("hmdb51", "vit-b"): (1e-3, True, 192, 40, 0.3, 2, 4800),
    ("oscc", "vit-b"): (1e-3, True, 256, 20, 0.5, 4, 400),
}
# EVEREST Table 8: base_lr, batch_size, keep_ratio (None: all), sampling, stride, epochs, clips, classes
TABLE_8 = {
    ("k400", "vit-s"): (5e-4, 384, 0.6, "dense", 4, 75, 2, 400),
    ("k400", "vit-b"): (1e-3, 384, 0.6, "dense", 4, 35, 2, 400),
    ("k400", "vit-l"): (2e-3, 128, 0.6, "dense", 4, 35, 2, 400),
    ("ssv2", "vit-b"): (5e-4, 48, 0.8, "segment", 4, 50, 2, 174),
    ("ucf101", "vit-b"): (1e-3, 128, 0.6, "dense", 4, 100, 5, 101),
    ("hmdb51", "vit-b"): (1e-3, 128, 0.6, "dense", 2, 50, 10, 51),
    ("oscc", "vit-b"): (1e-4, 32, None, "dense", 10, 30, 2, 2),
}


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "backbone"), TABLE_7)
def test_pretraining_follows_table_7(name, backbone):
    recipe = load_recipe(name, overrides=[f"model.backbone={backbone}"])
    section = recipe.pretrain
    numbers = (section.base_lr, recipe.data.flip, section.batch_size, section.warmup_epochs)
    assert (*numbers, section.selection.keep_ratio, section.stride, section.epochs) == TABLE_7[name, backbone]
    assert (section.betas, section.weight_decay, section.selection.visible_ratio) == ((0.9, 0.95), 0.05, 0.1)


@pytest.mark.parametrize(("name", "backbone"), TABLE_8)
def test_fine_tuning_follows_table_8(name, backbone):
    recipe = load_recipe(name, overrides=[f"model.backbone={backbone}"])
    section = recipe.finetune
    keep_ratio = getattr(section.selection, "keep_ratio", None)
    numbers = (
        section.base_lr,
        section.batch_size,
        keep_ratio,
        section.sampling,
        section.stride,
        section.epochs,
    )
    assert (*numbers, recipe.eval.clips, recipe.data.num_classes) == TABLE_8[name, backbone]
    assert (section.betas, section.weight_decay, section.layer_decay) == ((0.9, 0.999), 0.05, 0.75)
    assert (section.rand_augment.magnitude, section.rand_augment.std) == (9, 0.5)
    assert (section.warmup_epochs, section.label_smoothing, section.drop_path) == (5, 0.1, 0.1)
    assert recipe.eval.crops == 3


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_reads_back_from_its_dump_and_has_no_keys_without_effect(name, tmp_path):
    recipe = load_recipe(name)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    assert recipe.summary


def test_baseline_changes_only_what_it_states():
    everest, videomae = load_recipe("ucf101"), load_recipe("videomae-ucf101")
    assert videomae.pretrain.selection == Tube(mask_ratio=0.9)
    assert videomae.finetune.selection == AllTokens()
    assert videomae.name == "videomae-ucf101"
    assert load_recipe("videomae_ucf101") == videomae
    assert (videomae.pretrain.epochs, videomae.data) == (everest.pretrain.epochs, everest.data)


def test_everest_and_the_matched_videomae_differ_in_the_method_alone():
    everest, videomae = (recipe_values(load_recipe(name)) for name in ("k400", "videomae-k400-matched"))
    ours, theirs = (flat_values(values) for values in (everest, videomae))
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    method = ("pretrain.selection.", "finetune.selection.")
    assert {key for key in differing if not key.startswith(method)} == {"name", "summary"}
    assert videomae["pretrain"]["selection"] == {"strategy": "tube", "mask_ratio": 0.9}
    assert videomae["finetune"]["selection"]["strategy"] == "all"
    variants = resolve_variants(read_request("everest-vs-videomae"), data=None)
    for variant, values in (("EVEREST", everest), ("VideoMAE", videomae)):
        data = load_recipe("k400").data  # that of the variant has an absolute root
        written = recipe_values(replace(variants[variant], data=data))
        assert {key for key in values if written[key] != values[key]} <= {"name", "summary"}
    paper = load_recipe("videomae-k400")
    assert (paper.finetune.mixup, paper.finetune.cutmix) == (0.8, 1.0)


def test_a_sweep_file_is_no_recipe():
    problem = "everest-vs-videomae.yaml: a sweep file, not a recipe; run `everest sweep everest-vs-videomae`"
    ended = called("pretrain", "--recipe", "everest-vs-videomae", code=2)
    assert ended.stderr == f"error: {problem}\n"


def test_empty_file_is_the_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, "# nothing\ndata:\n"))
    assert recipe.finetune.selection == RedundancyRobust(keep_ratio=0.6, visible_ratio=None)


def test_all_problems_come_at_once_each_with_its_place(tmp_path):
    base = write(tmp_path, "data: {frame: 16}\n", "base.yaml")
    mine = write(tmp_path, "base: base.yaml\nmodle: {}\neval: {clips: none}\n")
    assert set(problems_of(mine, "pretrain.selection.keep_rate=0.3", "epochs", "base=k400", "base.x=1")) == {
        f"{base}: data.frame: unknown key; did you mean 'frames'?",
        f"{mine}: modle: unknown key; did you mean 'model'?",
        f"{mine}: eval.clips: must be an integer, not 'none'",
        "pretrain.selection.keep_rate: unknown key; did you mean 'keep_ratio'?",
        "--set: 'epochs' must be section.key=value",
        "--set: base: belongs in a recipe file; choose another --recipe",
    }


def test_circle_of_bases_is_an_error(tmp_path):
    (folder := tmp_path / "recipes").mkdir()
    write(folder, "base: ../recipes/b.yaml\n", "a.yaml")
    write(folder, "base: ../recipes/a.yaml\n", "b.yaml")
    (problem,) = problems_of(folder / "a.yaml")
    assert "base: refers to itself" in problem


def test_file_may_be_called_like_its_shipped_base(tmp_path):
    path = write(tmp_path, "base: ucf101\nmodel: {backbone: vit-s}\n", "ucf101.yaml")
    assert load_recipe(path).model.backbone == "vit-s"


def test_by_backbone_follows_set_and_loses_to_set_and_to_a_later_recipe(tmp_path):
    assert load_recipe("k400", overrides=["model.backbone=vit-s"]).pretrain.base_lr == 1.5e-4
    overrides = ["pretrain.base_lr=2e-4", "model.backbone=vit_s"]
    assert load_recipe("k400", overrides=overrides).pretrain.base_lr == 2e-4
    text = "base: k400\nmodel: {backbone: vit-l}\npretrain: {base_lr: 2e-4}\n"
    section = load_recipe(write(tmp_path, text)).pretrain
    assert (section.base_lr, section.batch_size) == (2e-4, 512)


def test_backbones_and_the_chosen_values_in_by_backbone_are_checked(tmp_path):
    path = write(tmp_path, "pretrain: {by_backbone: {vit-x: {epochs: 2}, vit-l: {epochs: 2}}}\n")
    (problem,) = problems_of(path)
    assert problem == f"{path}: pretrain.by_backbone: unknown backbone 'vit-x'; did you mean 'vit-s'?"
    path.write_text("pretrain: {by_backbone: 3}\n")
    assert "unknown backbone" in "".join(problems_of(path))
    path.write_text("model: {backbone: vit-l}\npretrain: {by_backbone: {vit-l: {epochs: many}}}\n")
    (problem,) = problems_of(path)
    assert problem == f"{path}: pretrain.by_backbone.vit-l.epochs: must be an integer, not 'many'"


# --- settings that exclude each other -----------------------------------------------------------------------


STRATEGY, OF_FINETUNING = "pretrain.selection.strategy", "finetune.selection.strategy"
ALL_TOKENS = "base: videomae-ucf101\nfinetune: {selection: {strategy: all}}\n"
HALF = "base: lvmae-128\npretrain: {target: {kind: pixels, frames: half}}\n"
KEEP_40 = "base: k400\npretrain: {selection: {keep_ratio: 0.4}}\n"
VARIANTS = {  # a recipe, another choice, and what is then in a place
    "a fraction of both strategies": (
        "base: ucf101",
        f"{STRATEGY}=random",
        RandomSpaceTime(visible_ratio=0.1),
    ),
    "a fraction of a template": ("base: custom", f"{STRATEGY}=random", RandomSpaceTime(visible_ratio=0.1)),
    "a fraction of views": ("base: small-views", f"{STRATEGY}=random", RandomSpaceTime()),
    "a fraction of a class": ("base: lvmae-128", f"{STRATEGY}=redundancy-robust", RedundancyRobust()),
    "kept tokens": (KEEP_40, f"{STRATEGY}=frame-difference", FrameDifference(keep_ratio=0.4)),
    "another objective": ("base: small-views", "pretrain.objective=reconstruct", RedundancyRobust()),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_another_choice_inherits_the_settings_that_both_have(name: str, tmp_path: Path):
    text, override, expected = VARIANTS[name]
    assert load_recipe(write(tmp_path, text), overrides=[override]).pretrain.selection == expected


def test_a_strategy_of_fine_tuning_takes_its_defaults_after_one_without_settings(tmp_path: Path):
    recipe = load_recipe(write(tmp_path, ALL_TOKENS), overrides=[f"{OF_FINETUNING}=sampled"])
    assert recipe.finetune.selection == Sampled(keep_ratio=0.6, visible_ratio=None)


def test_epochs_take_their_default_where_steps_are_taken_away():
    assert load_recipe("small", overrides=["pretrain.steps=null"]).pretrain.epochs == 800


def test_another_target_drops_the_settings_of_the_first(tmp_path: Path):
    pixels = load_recipe(write(tmp_path, HALF)).pretrain
    assert pixels == replace(pixels, target=PixelTargets(frames="half"))
    codes = write(tmp_path, "base: lvmae-128\npretrain: {target: {space: codes}}\n", "codes.yaml")
    found = load_recipe(write(tmp_path, f"base: {codes}\n"), overrides=["pretrain.target.kind=pixels"])
    assert isinstance(found.pretrain, AutoencoderSettings)


def test_another_objective_has_its_own_section():
    views = load_recipe("demo", overrides=["pretrain.objective=views"]).pretrain
    assert (type(views), views.views) == (ViewPretrainSettings, ViewsSettings())


def test_another_task_drops_the_classes(tmp_path: Path):
    text = "base: ucf101\ndata: {classes: a.txt}\n"
    numbers = load_recipe(write(tmp_path, text), overrides=["data.task=regression"]).data
    assert (numbers.classes, numbers.num_classes) == (None, None)


HEADS = "data.heads={verb: 97, noun: 300}"
WITHOUT_EFFECT = [  # of the first override, with a choice of the recipe or the second override
    ("custom", ("pretrain.selection.keep_ratio=0.2", "pretrain.selection.strategy=random")),
    ("videomae-ucf101", ("pretrain.selection.keep_ratio=0.2",), "pretrain.selection.strategy=tube"),
    ("ucf101", ("pretrain.target.space=codes",), "pretrain.target.kind=pixels"),
    ("lvmae-128", ("pretrain.target.frames=banana",), "pretrain.target.kind=tokens"),
    ("ucf101", ("pretrain.views={number: 2}",), "pretrain.objective=reconstruct"),
    ("small-views", ("pretrain.target={normalize: false}",), "pretrain.objective=views"),
    ("small-views", ("pretrain.target={kind: features, teacher: runs/x}",), "pretrain.objective=views"),
    ("small-views", ("pretrain.views_per_decode=2",), "pretrain.objective=views"),
    ("small-views", ("pretrain.frame_selection={alpha: 2}",), "pretrain.objective=views"),
    ("ssv2", ("data.num_classes=3", HEADS), "data.heads"),
    ("small", ("data.num_classes=3", "data.task=regression")),
    ("ucf101", ("pretrain.warmup_epochs=3", "pretrain.steps=100")),
    ("ucf101", ("finetune.warmup_steps=5",), "finetune.epochs=100"),
]


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_keys_of_another_variant_that_are_written_are_errors(case: tuple):
    recipe, overrides, *named = case
    (problem,) = problems_of(recipe, *overrides)
    key, choice = overrides[0].partition("=")[0], named[0] if named else overrides[1]
    assert problem == f"{key}: has no effect with {choice}; leave it out"


def test_a_key_of_another_variant_is_an_error_in_the_file_of_the_choice(tmp_path):
    path = write(
        tmp_path, "base: custom\npretrain: {target: {kind: pixels, space: codes, normalize: token}}\n"
    )
    problem = f"{path}: pretrain.target.space: has no effect with pretrain.target.kind=pixels; leave it out"
    assert problems_of(path) == [problem]
    path.write_text("base: ucf101\npretrain: {views: {}}\n")  # a section without values
    assert load_recipe(path).pretrain.objective == "reconstruct"


def test_whole_numbers_as_keys_are_names():
    overrides = ["finetune.class_weights={0: 1, 1: 5}", "data.num_classes=2"]
    assert load_recipe("small", overrides=overrides).finetune.class_weights == {"0": 1, "1": 5}


# PyYAML loses the line breaks of Unicode beyond \n, which no path or summary holds.
texts = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=20)


@given(
    root=texts,
    summary=texts,
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    base_lr=st.floats(1e-4, 1e6),
    heads=st.dictionaries(texts, st.integers(2, 10**6), min_size=1, max_size=3),
)
@example(root="1\u0660.5", summary="1\u0660", size=(3, 3), base_lr=1e-3, heads={"1\u0660": 2})  # Arabic
def test_dump_reads_back_as_written(tmp_path_factory, root, summary, size, base_lr, heads):
    values = {
        "summary": summary,
        "data": {"root": root, "size": [16 * side for side in size], "heads": heads},
        "finetune": {"base_lr": base_lr},
    }
    path = write(tmp_path_factory.mktemp("recipe"), write_yaml(values))
    recipe = load_recipe(path)
    assert (recipe.data.root, recipe.summary, recipe.data.heads) == (root, summary, heads)
    assert load_recipe(write(path.parent, dump_recipe(recipe))) == recipe


# --- budgets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("below", "overrides", "epochs", "steps"),
    [
        ("{epochs: 7}", (), 7, None),
        ("{steps: 9}", (), None, 9),
        ("{steps: 9}", ["pretrain.epochs=4"], 4, None),
        ("{epochs: 7}", ["pretrain.steps=5"], None, 5),
        ("{epochs: 7}", ["pretrain.steps=5", "pretrain.epochs=6"], 6, None),
        ("{steps: 9}", ["pretrain.steps=null", "pretrain.epochs=2"], 2, None),
    ],
)
def test_the_last_layer_decides_between_epochs_and_steps(tmp_path, below, overrides, epochs, steps):
    recipe = load_recipe(write(tmp_path, f"base: ucf101\npretrain: {below}\n"), overrides=overrides)
    assert (recipe.pretrain.epochs, recipe.pretrain.steps) == (epochs, steps)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))).pretrain == recipe.pretrain


def test_a_layer_cannot_have_epochs_and_steps_or_neither(tmp_path):
    steps = [f"{stage}.steps=9" for stage in ("tokenizer", "pretrain", "finetune")]
    recipe = load_recipe("lvmae-demo", overrides=steps)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    for section in ("{steps: 5, epochs: 7}", "{epochs: null}"):
        path = write(tmp_path, f"base: ucf101\npretrain: {section}\n")
        assert "pretrain.steps: give either epochs or steps" in "".join(problems_of(path))


def test_the_draw_of_views_is_short_for_a_selection():
    def selection(*changes: str) -> object:
        return load_recipe("small", overrides=["pretrain.objective=views", *changes]).pretrain.selection

    written = "pretrain.selection={strategy: sampled, keep_ratio: 0.2, visible_ratio: null, uniform: 0.7}"
    assert selection("pretrain.views={view_ratio: 0.2, uniform: 0.7}") == selection(written)
    assert selection() == Sampled(keep_ratio=0.25, visible_ratio=None, uniform=0.5)
    assert selection("pretrain.views.uniform=1") == Sampled(keep_ratio=0.25, visible_ratio=None, uniform=1)
    assert selection("pretrain.selection.distance=l1") == replace(selection(), distance="l1")
    assert isinstance(selection("pretrain.selection.strategy=tube"), Tube)
    replaced = ("pretrain.selection=null", "pretrain.selection={strategy: tube}")
    assert isinstance(selection(*replaced), Tube)
    both = selection("pretrain.views.view_ratio=0.2", "pretrain.selection.keep_ratio=0.4")
    assert both == Sampled(keep_ratio=0.4, visible_ratio=None)
    with pytest.raises(RecipeError, match=r"pretrain\.selection\.keep_ratio: must be more than 0"):
        selection("pretrain.views.view_ratio=0")
