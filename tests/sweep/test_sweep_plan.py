import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_recipe

from everest.config.recipe import load_recipe
from everest.errors import DataError, RecipeError, UserError
from everest.models.of_recipe import pretrain_spec
from everest.sweep.budgets import macs_of_clip
from everest.sweep.plan import SweepPlan, make_plan
from everest.sweep.plan_file import check_folder, write_plan
from everest.sweep.request import read_request
from everest.system.events import silent


@pytest.fixture
def recipe(tmp_path: Path, clip_files: Path) -> Path:
    return small_recipe(tmp_path, clip_files)


def planned(recipe: Path, *, notify=silent, data: str | None = None, **options) -> SweepPlan:
    return make_plan(read_request(str(recipe), **options), data=data, notify=notify)


def counts(plan: SweepPlan) -> dict[str, int]:
    stages = [work.stage for work in plan.works().values()]
    return {stage: stages.count(stage) for stage in dict.fromkeys(stages)}


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
def test_arms_share_the_stages_whose_settings_are_equal(recipe: Path, over: str, expected: dict[str, int]):
    assert counts(planned(recipe, over=[over], seeds="2")) == expected


def test_a_flip_of_the_pretraining_itself_is_shared_by_arms_with_another_flip(recipe: Path):
    over = ["data.flip=true,false"]
    assert counts(planned(recipe, over=over, seeds="1"))["pretrain"] == 2
    plan = planned(recipe, over=over, seeds="1", overrides=["pretrain.flip=false"])
    assert counts(plan) == {"pretrain": 1, "finetune": 2, "eval": 2}


def test_each_work_is_used_by_the_arms_that_need_it(recipe: Path):
    over = ["pretrain.base_lr=0.1,0.2", "finetune.steps=3,4"]
    plan = planned(recipe, over=over, seeds="5,")
    users = {}
    for work in plan.works().values():
        users.setdefault(work.stage, []).append(plan.users(work))
    names = [arm.name for arm in plan.arms]
    assert names == [f"base_lr={rate}, steps={steps}" for rate in (0.1, 0.2) for steps in (3, 4)]
    assert users == {
        "pretrain": [names[:2], names[2:]],
        "finetune": [[name] for name in names],
        "eval": [[name] for name in names],
    }
    assert {work.recipe.train.seed for work in plan.works().values()} == {5}


def test_a_seed_changes_every_work(recipe: Path):
    first, second = (planned(recipe, seeds=seeds).works().keys() for seeds in ("0,", "1,"))
    assert not first & second
    assert planned(recipe, seeds="2").works().keys() == first | second


def test_an_arm_keeps_its_own_folder(recipe: Path, tmp_path: Path, clip_files: Path):
    own = shutil.copytree(clip_files, tmp_path / "影片 \U0001f600")
    plan = planned(recipe, over=[f"data.root={clip_files},{own}"], data=str(own))
    assert [arm.recipe.data.root for arm in plan.arms] == [str(clip_files), str(own)]
    assert planned(recipe, data=str(own)).arms[0].recipe.data.root == str(own)


def test_moved_videos_are_the_same_work_and_an_arm_of_other_videos_is_not(recipe, tmp_path, clip_files):
    other = shutil.copytree(clip_files, tmp_path / "other")
    assert planned(recipe, data=str(other)).works().keys() == planned(recipe).works().keys()
    both = planned(recipe, over=[f"data.root={clip_files},{other}"])
    assert counts(both) == {"pretrain": 2, "finetune": 2, "eval": 2}


def test_a_sweep_file_has_arms_with_stages_of_their_own(recipe: Path, tmp_path: Path):
    path = tmp_path / "scratch.yaml"
    path.write_text(
        "recipe: tiny.yaml\nset: {model.depth: 1}\nseeds: [4]\nstages: 'pretrain,finetune'\nagainst: b\n"
        "arms:\n  a: {finetune.rand_augment: null}\n  b: {}\n  c: {stages: [finetune]}\n"
    )
    plan = planned(path)
    assert (plan.header["recipe"], plan.header["seeds"], plan.header["against"]) == ("tiny", [4], "b")
    both = ("pretrain", "finetune")
    assert {arm.name: arm.stages for arm in plan.arms} == {"a": both, "b": both, "c": ("finetune",)}
    assert counts(plan) == {"pretrain": 1, "finetune": 3}
    assert [arm.recipe.finetune.rand_augment is None for arm in plan.arms] == [True, False, False]
    assert {arm.recipe.model.depth for arm in plan.arms} == {1}
    widths = planned(path, over=["model.width=24,48"], against="width=48").arms
    assert [arm.name for arm in widths] == ["width=24", "width=48"]
    assert planned(path, over=["model.width=24,48"]).request.against == "width=24"
    assert planned(path, seeds="2", overrides=["model.depth=3"]).arms[0].recipe.model.depth == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: tiny.yaml\narmz: {}", r"armz: unknown key; did you mean 'arms'\?"),
        ("arms: {a: {}}", "recipe: give the name or the path"),
        ("seeds: 3\nstages: [pretrain]", "recipe: give the name or the path"),
        ("recipe: gone.yaml\narms: {a: {}}", "recipe: .*gone.yaml: cannot be read"),
        ("recipe: tiny.yaml\narms: {a: 5}", "arms: a: must be a mapping"),
        ("recipe: tiny.yaml\narms: []", "arms: must be a mapping"),
        ("recipe: tiny.yaml\narms: {a: {depth: 5, b: 1, c: 1}}", "arms: a: depth: give stages, init, or "),
        ("recipe: tiny.yaml\nset: {model: {depth: 1}}", "set: must be a mapping of section.key"),
        ("recipe: tiny.yaml\nseeds: many", "seeds: give a number of seeds"),
        ("recipe: tiny.yaml\nagainst: b\narms: {a: {}}", "against: unknown name 'b'; known: a"),
        ("recipe: tiny.yaml\nequal: flops", "equal: unknown name 'flops'; known: gmacs, steps"),
        ("recipe: tiny.yaml\nstages: [eval]", "stages: eval needs finetune"),
        ("recipe: tiny.yaml\nsummary: 5", "summary: must be text"),
        ("recipe: tiny.yaml\narms: {a: {model.depht: 1}}", r"wrong\.yaml: a: model.depht: unknown key"),
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
    for over in ("data.val=train.csv,gone.csv", "data.classes=gone.txt"):
        with pytest.raises(DataError, match=r"gone.*: no such list or folder; finetune reads it"):
            planned(recipe, over=[over])


def test_a_headline_that_no_job_measures_is_noticed_before_any_job(recipe: Path):
    notices: list[str] = []
    plan = planned(recipe, overrides=["data.val=null"], stages="finetune", notify=notices.append)
    assert plan.headline == "val_top1"
    assert [text for text in notices if "no job measures without data.val" in text]


def test_the_headline_is_that_of_the_stages_of_the_arm_compared_with(recipe: Path, tmp_path: Path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"recipe: {recipe}\nstages: [pretrain]\narms:\n  a: {{stages: [finetune, eval]}}\n")
    assert planned(sweep).headline == "top1"


def test_the_headline_of_windows_with_background_is_the_mean_class_accuracy(
    recipe: Path, clip_files: Path, tmp_path: Path
):
    lines = [f"{clip_files / f'clip{at}.mp4'},{name}" for at, name in enumerate(["background", "run"] * 2)]
    windows = tmp_path / "windows.csv"
    windows.write_text("\n".join(["path,label", *lines, ""]))
    lists = [f"data.{key}={windows}" for key in ("train", "val", "test")]
    for stages, metric in {
        "finetune,eval": "mean_class_accuracy",
        "finetune": "val_mean_class_accuracy",
        "pretrain,probe": "probe.linear.mean_class_accuracy",
        "pretrain": "pretrain_loss",
    }.items():
        assert planned(recipe, overrides=lists, stages=stages).headline == metric


def test_arms_that_run_the_same_jobs_are_refused(recipe: Path):
    for over, options in (
        ("train.workers=0,1", {"stages": "pretrain,finetune,eval"}),
        ("finetune.steps=5,9", {"stages": "pretrain"}),
        ("finetune.selection.keep_ratio=0.3,0.30", {"stages": "finetune"}),
        ("finetune.steps=300,600", {"equal": "gmacs"}),
    ):
        reason = r": .* \(equal: gmacs sets their steps\)" if "equal" in options else ""
        with pytest.raises(RecipeError, match=f"have the same jobs{reason}"):
            planned(recipe, over=[over], **options)


def test_equal_gmacs_scale_the_steps_of_both_stages(recipe: Path):
    notices: list[str] = []
    over = ["pretrain.selection.keep_ratio=0.3,0.6", "finetune.selection.keep_ratio=0.6,0.3"]
    budget = ["pretrain.steps=400", "finetune.steps=200", "finetune.warmup_steps=20"]
    plan = planned(recipe, over=over, overrides=budget, equal="gmacs", notify=notices.append)
    totals = []
    for arm in plan.arms:
        spec = pretrain_spec(arm.recipe, tokenizer=None)
        steps = arm.recipe.pretrain.steps
        assert steps is not None
        totals.append(steps * macs_of_clip(spec))
    assert totals == pytest.approx([totals[0]] * 4, rel=0.002)
    assert [arm.recipe.pretrain.steps == 400 for arm in plan.arms] == [True, True, False, False]
    finetune = [arm.recipe.finetune for arm in plan.arms]
    assert (finetune[0].steps, finetune[0].warmup_steps) == (200, 20)
    assert finetune[1].steps is not None
    assert finetune[1].steps > 200
    assert finetune[1].warmup_steps == round(20 * finetune[1].steps / 200)
    assert len([line for line in notices if ": pretrain 400 -> " in line]) == 4
    scaled = plan.arms[1].budgets["finetune"]
    assert (scaled.steps_before, scaled.steps) == (200, finetune[1].steps)
    text = rf"finetune 200 -> {scaled.steps} steps, x [\d.]+ \(.*, batch \d+\), warm-up 20 -> \d+$"
    assert [line for line in notices if re.search(text, line)]
    # The same cost: the two arms share their pre-training.
    assert counts(plan)["pretrain"] == 2


def test_equal_gmacs_need_steps_only_if_costs_differ(recipe: Path):
    notices: list[str] = []
    over = ["pretrain.base_lr=0.1,0.2"]
    assert planned(recipe, over=over, equal="gmacs", notify=notices.append).request.equal == "gmacs"
    assert [line for line in notices if "equal: gmacs changes nothing" in line]
    with pytest.raises(RecipeError, match=r"pretrain.epochs: arms of equal GMACs need steps"):
        planned(recipe, over=["pretrain.selection.keep_ratio=0.3,0.6"], equal="gmacs")


def test_equal_gmacs_name_the_arms_that_they_do_not_scale(recipe: Path):
    file = recipe.with_name("sweep.yaml")
    arms = "{few: {}, many: {pretrain.selection.keep_ratio: 0.9}, scratch: {stages: [finetune, eval]}}"
    file.write_text(f"recipe: {recipe.name}\nset: {{pretrain.steps: 4}}\nequal: gmacs\narms: {arms}\n")
    notices: list[str] = []
    planned(file, notify=notices.append)
    text = "costs fewer GMACs, because it has no pretrain and its other stages get no more steps"
    assert f"scratch: {text}" in notices
    file.write_text(file.read_text().replace("many: {pretrain.selection.keep_ratio: 0.9}, ", ""))
    notices.clear()
    planned(file, notify=notices.append)
    assert f"scratch: {text}" in notices


@pytest.mark.parametrize(
    ("arm", "problem"),
    [
        ("{pretrain.stepps: 4}", "lost: pretrain.stepps: unknown key"),
        ("{data.train: cllips.csv}", "lost: .*cllips.csv: no such list or folder"),
        ("{init: nowhere.safetensors}", "lost: .*nowhere.safetensors"),
        ("{pretrain.selection.keep_ratio: 0.9}", "here: pretrain.epochs: arms of equal GMACs need steps"),
    ],
)
def test_problems_of_an_arm_name_the_file(recipe: Path, arm: str, problem: str):
    file = recipe.with_name("sweep.yaml")
    file.write_text(f"recipe: {recipe.name}\nequal: gmacs\narms: {{here: {{}}, lost: {arm}}}\n")
    with pytest.raises(UserError, match=rf"^{file}: {problem}"):
        planned(file)


def test_a_folder_takes_more_seeds_arms_and_stages(recipe: Path, tmp_path: Path):
    folder = tmp_path / "sweep"
    write_plan(folder, planned(recipe, over=["finetune.steps=3,4"], seeds="2", stages="pretrain,finetune"))
    assert check_folder(folder, planned(recipe, over=["finetune.steps=3,4,5"], seeds="9,8")) == []
    assert check_folder(folder, planned(recipe, over=["finetune.steps=4"])) == ["steps=3"]
    # A stage that was not in the plan may have any settings.
    plan = planned(recipe, over=["finetune.steps=3"], overrides=["eval.clips=1"])
    assert check_folder(folder, plan) == ["steps=4"]


def test_a_folder_refuses_arms_with_other_settings(recipe: Path, tmp_path: Path):
    def refused(folder: Path, message: str, **options: Any) -> None:
        with pytest.raises(RecipeError, match=message):
            check_folder(folder, planned(recipe, **options))

    folder, steps = tmp_path / "sweep", ["finetune.steps=3"]
    write_plan(folder, planned(recipe, over=["finetune.steps=3,4"]))
    rate = r"arm 'steps=3' has other settings: pretrain.base_lr \(0.1, now 0.2\)"
    refused(folder, rate, over=["finetune.steps=3,4"], overrides=["pretrain.base_lr=0.2"])
    for before, now in (("null", "{magnitude: 5}"), ("{magnitude: 9}", "null")):
        own = tmp_path / f"augment {now}"
        write_plan(own, planned(recipe, overrides=[f"finetune.rand_augment={before}"]))
        refused(own, r"finetune\.rand_augment", overrides=[f"finetune.rand_augment={now}"])
    decay = r'finetune.weight_decay \("default", now 0.1\)'
    refused(folder, decay, over=steps, overrides=["finetune.weight_decay=0.1"])
    refused(folder, r'first stage \("pretrain", now "finetune"\)', over=steps, stages="finetune,eval")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").touch()
    refused(tmp_path / "other", "holds other files")
    for damage in ("[]", "arms: {a: 5}\nsettings: {}", "\0", "settings: 5"):
        (folder / "sweep.yaml").write_text(damage)
        refused(folder, r"sweep.yaml: damaged")


def test_the_plan_of_a_folder_is_read_back_as_it_was_written(recipe: Path, tmp_path: Path):
    overrides = ["finetune.rand_augment=null", "data.mean=[0.1, 0.2, 0.3]", "data.fps=12.5"]
    plan = planned(recipe, over=["pretrain.betas=[0.9, 0.95],[0.8, 0.9]"], overrides=overrides)
    write_plan(tmp_path / "sweep", plan)
    assert check_folder(tmp_path / "sweep", plan) == []


def test_a_setting_at_its_default_is_not_part_of_the_identity(recipe: Path):
    """A later version adds settings, whose default changes nothing."""
    default = load_recipe("custom").pretrain.weight_decay
    given = planned(recipe, overrides=[f"pretrain.weight_decay={default}"])
    assert given.works().keys() == planned(recipe).works().keys()


def test_the_sweep_file_of_the_benchmarks_is_planned(clip_files: Path, tmp_path: Path):
    shutil.copytree(clip_files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "classes.txt").write_text("\n".join("abcdef"))
    for name in ("test", "pretrain"):
        shutil.copy(clip_files / "train.csv", tmp_path / f"{name}.csv")
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence" / "lvmae.yaml"
    plan = planned(file, data=str(tmp_path))
    # Each of ten arms but one has a pre-training of its own.
    assert counts(plan) == {"pretrain": 27, "finetune": 30, "eval": 30}
