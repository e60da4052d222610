import shutil
from pathlib import Path

import pytest
from small_runs import called, small_recipe
from tiny_models import save_model, tiny

from everest.config.settings import Recipe
from everest.config.yaml import split_values
from everest.errors import CheckpointError, DataError, RecipeError, UserError
from everest_workflows.sweep.request import (
    combine_values,
    read_request,
    read_seeds,
    read_stages,
)
from everest_workflows.sweep.results import JobNumbers, collect
from everest_workflows.sweep.sweep_jobs import PlannedVariant, SweepJobs, plan_sweep


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    return small_recipe(tmp_path, clip_files)


def planned(recipe: Path, *, data: str | None = None, **options) -> SweepJobs:
    return plan_sweep(read_request(str(recipe), **options), data=data)


def recover_recipe(variant: PlannedVariant) -> Recipe:
    return next(iter(variant.jobs.values()))[0].recipe


def counts(plan: SweepJobs) -> dict[str, int]:
    stages = [job.stage for job in plan.jobs().values()]
    return {stage: stages.count(stage) for stage in dict.fromkeys(stages)}


def test_a_dry_run_lists_steps_and_warns_of_few(recipe: Path, tmp_path: Path):
    options = ["--over", "pretrain.steps=5,600", "-o", tmp_path / "out"]
    shown = called("sweep", recipe, *options, "--dry-run")
    lines = [line.partition("  ")[2] for line in shown.stdout.splitlines()]
    assert lines[0] == "steps=5, seed 0, 5 steps"
    assert lines[1] == "steps=5, seed 0"  # epochs
    assert "steps=600, seed 0, 600 steps" in lines
    assert shown.stderr.count("steps are few") == shown.stderr.count("warning: 5 steps are few") == 1


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("finetune.base_lr=0.1,0.2,0.3", {"pretrain": 2, "finetune": 6, "eval": 6}),
        ("eval.clips=1,2", {"pretrain": 2, "finetune": 2, "eval": 4}),
        ("pretrain.base_lr=0.1,0.2", {"pretrain": 4, "finetune": 4, "eval": 4}),
        ("model.depth=1,2", {"pretrain": 4, "finetune": 4, "eval": 4}),
        ("train.ema=null,0.9", {"pretrain": 4, "finetune": 4, "eval": 4}),
        ("data.test=train.csv,clip0.mp4", {"pretrain": 2, "finetune": 2, "eval": 4}),
        ("data.val=null,train.csv", {"pretrain": 2, "finetune": 4, "eval": 4}),
        ("data.pretrain=null,train.csv", {"pretrain": 4, "finetune": 4, "eval": 4}),
    ],
)
def test_variants_share_the_stages_whose_settings_are_equal(
    recipe: Path, over: str, expected: dict[str, int]
):
    assert counts(planned(recipe, over=[over], seeds="2")) == expected


def test_a_variant_keeps_its_own_folder(recipe: Path, tmp_path: Path, clip_files: Path):
    own = shutil.copytree(clip_files, tmp_path / "影片 \U0001f600")
    plan = planned(recipe, over=[f"data.root={clip_files},{own}"], data=str(own))
    assert [recover_recipe(variant).data.root for variant in plan.variants] == [str(clip_files), str(own)]
    assert recover_recipe(planned(recipe, data=str(own)).variants[0]).data.root == str(own)


def test_moved_videos_are_the_same_work_and_a_variant_of_other_videos_is_not(recipe, tmp_path, clip_files):
    other = shutil.copytree(clip_files, tmp_path / "other")
    assert planned(recipe, data=str(other)).jobs().keys() == planned(recipe).jobs().keys()
    with_comma = shutil.copytree(other, tmp_path / "a, b")
    both = planned(recipe, over=[f"data.root={clip_files},'{with_comma}'"])
    assert counts(both) == {"pretrain": 2, "finetune": 2, "eval": 2}


def test_a_sweep_file_has_variants_with_stages_of_their_own(recipe: Path, tmp_path: Path):
    path = tmp_path / "scratch.yaml"
    path.write_text(
        "recipe: tiny.yaml\nset: {model.depth: 1}\nseeds: [4]\nstages: 'pretrain,finetune'\nagainst: b\n"
        "variants:\n  a: {finetune.rand_augment: null}\n  b: {}\n  c: {stages: [finetune]}\n"
    )
    plan = planned(path)
    assert (plan.request.recipe.name, plan.request.seeds, plan.request.against) == ("tiny", (4,), "b")
    both = ("pretrain", "finetune")
    assert {variant.name: variant.stages for variant in plan.variants} == {
        "a": both,
        "b": both,
        "c": ("finetune",),
    }
    assert counts(plan) == {"pretrain": 1, "finetune": 3}
    assert [recover_recipe(variant).finetune.rand_augment is None for variant in plan.variants] == [
        True,
        False,
        False,
    ]
    assert {recover_recipe(variant).model.depth for variant in plan.variants} == {1}
    widths = planned(path, over=["model.width=24,48"])
    assert [variant.name for variant in widths.variants] == [
        f"{variant}, width={width}" for variant in "abc" for width in (24, 48)
    ]
    assert widths.request.against == "b, width=24"
    assert widths.variants[0].overrides == {"finetune.rand_augment": None, "model.width": 24}
    assert recover_recipe(planned(path, seeds="2", overrides=["model.depth=3"]).variants[0]).model.depth == 3
    path.write_text(
        "recipe: tiny.yaml\ninit:\nsummary:\nagainst: 0.3\nvariants: {b: {}, '0.3': {eval.clips: 1}}"
    )
    request = planned(path).request
    assert (request.against, request.variants[0].init, request.summary) == ("0.3", "none", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: tiny.yaml\nvarients: {}", r"varients: unknown key; did you mean 'variants'\?"),
        ("variants: {a: {}}", "recipe: "),
        ("recipe: gone.yaml\nvariants: {a: {}}", "recipe: .*gone.yaml: cannot be read"),
        ("recipe: tiny.yaml\nvariants: {a: 5}", "variants: a: give settings in one line"),
        ("recipe: tiny.yaml\nsummary: [a]", "summary: must be text"),
        ("recipe: tiny.yaml\nvariants: {'': {}}", "variants: give visible names"),
        ("recipe: tiny.yaml\nvariants: []", "variants: give visible names"),
        (
            "recipe: tiny.yaml\nvariants: {a: {depth: 5, b: 1, c: 1}}",
            "variants: a: give settings in one line",
        ),
        ("recipe: tiny.yaml\nset: {model: {depth: 1}}", "set: give settings in one line"),
        ("recipe: tiny.yaml\nseeds: many", "seeds: give a number of seeds"),
        ("recipe: tiny.yaml\nagainst: b\nvariants: {a: {}}", "against: unknown name 'b'; known: a"),
        ("recipe: tiny.yaml\nstages: [eval]", "stages: .*eval needs finetune"),
        ("recipe: tiny.yaml\nvariants: {a: {model.depht: 1}}", r"wrong\.yaml: a: model.depht: unknown key"),
    ],
)
def test_a_wrong_sweep_file_is_refused_in_a_line(recipe: Path, tmp_path: Path, text: str, message: str):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as refusal:
        planned(path)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_of_any_stage_is_noticed_before_any_job(recipe: Path):
    with pytest.raises(DataError, match=r"^train=gone.csv: data.train: .*gone.csv: no such list or folder"):
        planned(recipe, over=["data.train=gone.csv"])
    with pytest.raises(DataError, match=r"^val=gone.csv: data.val: .*gone.csv: no such list or folder"):
        planned(recipe, over=["data.val=train.csv,gone.csv"])
    with pytest.raises(DataError, match=r"data.classes: .*gone.txt: no such list or folder; \w+ reads it"):
        planned(recipe, overrides=["data.classes=gone.txt"])
    with pytest.raises(CheckpointError, match="gone: no such checkpoint"):
        planned(recipe, overrides=["pretrain.target={kind: features, teacher: gone}"])


def test_variants_that_run_the_same_jobs_are_refused(recipe: Path):
    for over, options in (
        ("train.workers=0,1", {"stages": "pretrain,finetune,eval"}),
        ("finetune.steps=5,9", {"stages": "pretrain"}),
        ("finetune.selection.keep_ratio=0.3,0.30", {"stages": "finetune"}),
    ):
        with pytest.raises(RecipeError, match=r"have the same jobs: none of the stages"):
            planned(recipe, over=[over], **options)


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ("{pretrain.stepps: 4}", "lost: pretrain.stepps: unknown key"),
        ("{data.train: cllips.csv}", "lost: .*cllips.csv: no such list or folder"),
        ("{init: nowhere.safetensors}", "lost: .*nowhere.safetensors"),
    ],
)
def test_problems_of_a_variant_name_the_file(recipe: Path, variant: str, problem: str):
    file = recipe.with_name("sweep.yaml")
    file.write_text(f"recipe: {recipe.name}\nvariants: {{here: {{}}, lost: {variant}}}\n")
    with pytest.raises(UserError, match=rf"^{file}: {problem}"):
        planned(file)


def test_each_seed_can_start_from_a_run_of_its_own(recipe: Path, tmp_path: Path):
    for seed in (0, 1):
        save_model(tmp_path / f"run{seed}.safetensors", tiny("pretrain").spec)
    named = str(tmp_path / "run{seed}.safetensors")
    (variant,) = planned(recipe, seeds="2", stages="finetune", init=named).variants
    starts = [job.init for jobs in variant.jobs.values() for job in jobs]
    assert (variant.init, starts) == (named, [named.format(seed=seed) for seed in (0, 1)])
    with pytest.raises(CheckpointError, match="run2"):
        planned(recipe, seeds="3", stages="finetune", init=named)


def test_the_sweep_file_of_the_benchmarks_is_planned(clip_files: Path, tmp_path: Path):
    shutil.copytree(clip_files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "classes.txt").write_text("\n".join("abcdef"))
    for name in ("test", "pretrain"):
        shutil.copy(clip_files / "train.csv", tmp_path / f"{name}.csv")
    file = Path(__file__).resolve().parents[3] / "benchmarks" / "evidence" / "lvmae.yaml"
    plan = planned(file, data=str(tmp_path))
    # Each of eight variants but one has a pre-training of its own.
    assert counts(plan) == {"pretrain": 21, "finetune": 24, "eval": 24}


def test_variants_are_compared_by_a_measured_metric_also_if_the_first_has_failed(recipe: Path):
    plan = planned(recipe, over=["finetune.base_lr=1e30,0.01"], stages="finetune")
    measured = JobNumbers({"map": None, "top1": 60.0, "chance_top1": 50.0}, 0.0, 0.0)
    assert collect(plan, {list(plan.jobs())[1]: measured}, {})["metric"] == "top1"


def test_variants_are_all_combinations_and_are_named_by_what_differs():
    keep, rate = "pretrain.selection.keep_ratio", "finetune.base_lr"
    assert combine_values([f"{keep}=0.3,0.5", f"{rate}=1e-3,2e-3"]) == {
        f"keep_ratio={one}, base_lr={other}": {keep: float(one), rate: float(other)}
        for one in ("0.3", "0.5")
        for other in ("1e-3", "2e-3")
    }
    # Keys with the same last part get longer names.
    ratios = (f"{keep}=0.3", "finetune.selection.keep_ratio=0.6")
    for keys in (ratios, ("pretrain.steps=9", "finetune.steps=8")):
        assert [*combine_values(keys)] == [", ".join(keys)]


def test_values_are_divided_outside_brackets_and_quotes():
    for text, values in (
        ("0.3, 0.5", ["0.3", "0.5"]),
        ("[2, 8, 8],[4, 8, 8]", ["[2, 8, 8]", "[4, 8, 8]"]),
        ("{a: 1, b: 2},null", ["{a: 1, b: 2}", "null"]),
        ("'a,b.csv', c.csv", ["'a,b.csv'", "c.csv"]),
        ('"a,\\",b",c', ['"a,\\",b"', "c"]),
        ("'it''s, here','d]'", ["'it''s, here'", "'d]'"]),
        ("[x, 'a],b'],{c: \"d}\"}", ["[x, 'a],b']", '{c: "d}"}']),
        ("it's,mine's", ["it's", "mine's"]),  # no quotes for YAML either
        ("'a,b", []),  # a quote that is not closed
    ):
        assert split_values(text) == values


def test_seeds_are_a_number_or_a_list_and_others_are_refused_in_a_line():
    several = {"3": (0, 1, 2), 2: (0, 1), "3,7,11": (3, 7, 11), "7,": (7,), "1": (0,)}
    for value, seeds in (*several.items(), ([4, 0], (4, 0))):
        assert read_seeds(value, "--seeds") == seeds
    wrong = ("0", "-1", "", ",", "a", "1,1", "1.5", 0, True, [], [True], ["x"], None, "1001", {}, "9" * 99)
    for value in wrong:
        with pytest.raises(RecipeError, match=r"^--seeds: give a number of seeds from 1 to 1000, or .*11$"):
            read_seeds(value, "--seeds")


def test_stages_are_read_in_their_order_and_others_are_refused():
    every = "pretrain,finetune,eval,probe"
    for value, stages in ((every, every.split(",")), ("pretrain", ["pretrain"]), (["finetune", "eval"],) * 2):
        assert list(read_stages(value, "--stages")) == stages
    for value, message in (
        ("finetune,pretrain", "in the order pretrain, finetune, eval, probe"),
        ("pretrain,pretrain", "give each stage once"),
        ("eval", "eval needs finetune"),
        ("finetune,eval,probe", "probe needs pretrain"),
        ("pretrian", "did you mean 'pretrain'"),
        ([], "give each stage once"),
        (5, "unknown name '5'"),
    ):
        with pytest.raises(RecipeError, match=rf"^--stages: .*{message}"):
            read_stages(value, "--stages")
