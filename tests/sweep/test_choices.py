"""Arms, seeds and stages as a user writes them."""

from __future__ import annotations

import pytest

from everest.errors import RecipeError
from everest.sweep.choices import arms_of, read_seeds, read_stages, split_values
from everest.sweep.jobs import Processes
from everest.system.cores import num_cores
from everest.system.launch import Devices


def test_arms_are_all_combinations_and_are_named_by_what_differs():
    arms = arms_of(["pretrain.selection.keep_ratio=0.3,0.5", "finetune.base_lr=1e-3,2e-3"])
    assert [(arm.name, arm.overrides) for arm in arms] == [
        (
            f"keep_ratio={keep}, base_lr={rate}",
            {"pretrain.selection.keep_ratio": keep, "finetune.base_lr": rate},
        )
        for keep in ("0.3", "0.5")
        for rate in ("1e-3", "2e-3")
    ]


def test_keys_with_the_same_last_part_get_longer_names():
    arms = arms_of(["pretrain.selection.keep_ratio=0.3", "finetune.selection.keep_ratio=0.6"])
    assert [arm.name for arm in arms] == [
        "pretrain.selection.keep_ratio=0.3, finetune.selection.keep_ratio=0.6"
    ]
    assert [arm.name for arm in arms_of(["pretrain.steps=9", "finetune.steps=8"])] == [
        "pretrain.steps=9, finetune.steps=8"
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.3, 0.5", ["0.3", "0.5"]),
        ("[2, 8, 8],[4, 8, 8]", ["[2, 8, 8]", "[4, 8, 8]"]),
        ("{a: 1, b: 2},null", ["{a: 1, b: 2}", "null"]),
        ('"a,b",c', ['"a,b"', "c"]),
    ],
)
def test_values_are_divided_outside_brackets_and_quotes(text: str, values: list[str]):
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("value", "seeds"),
    [("3", (0, 1, 2)), (2, (0, 1)), ("3,7,11", (3, 7, 11)), ("7,", (7,)), ([4, 0], (4, 0)), ("1", (0,))],
)
def test_seeds_are_a_number_or_a_list(value: object, seeds: tuple[int, ...]):
    assert read_seeds(value, "--seeds") == seeds


@pytest.mark.parametrize(
    "value", ["0", "-1", "", ",", "a", "1,1", "1.5", 0, True, [], [True], ["x"], None, "1001", {}, "9" * 99]
)
def test_other_seeds_are_refused_in_a_line(value: object):
    with pytest.raises(RecipeError, match=r"^--seeds: give a number of seeds from 1 to 1000, or .*11$"):
        read_seeds(value, "--seeds")


@pytest.mark.parametrize("value", ["pretrain,finetune,eval,probe", "pretrain", ["finetune", "eval"]])
def test_stages_are_read_in_their_order(value: object):
    names = value.split(",") if isinstance(value, str) else value
    assert list(read_stages(value, "--stages")) == names


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("finetune,pretrain", "in the order pretrain, finetune, eval, probe"),
        ("pretrain,pretrain", "give each stage once"),
        ("eval", "eval needs finetune"),
        ("finetune,eval,probe", "probe needs pretrain"),
        ("pretrian", "did you mean 'pretrain'"),
        ([], "such as pretrain,finetune,eval"),
        (5, "such as pretrain,finetune,eval"),
    ],
)
def test_other_stages_are_refused(value: object, message: str):
    with pytest.raises(RecipeError, match=message) as refusal:
        read_stages(value, "--stages")
    assert str(refusal.value).startswith("--stages: ")


@pytest.mark.parametrize(
    ("devices", "jobs", "gpus", "environments"),
    [
        (Devices(kind="cuda", processes=4), 1, "auto", [{"CUDA_VISIBLE_DEVICES": "0,1,2,3"}]),
        (Devices(kind="cuda", processes=2, ids=(1, 3)), 1, "auto", [{"CUDA_VISIBLE_DEVICES": "1,3"}]),
        (
            Devices(kind="cuda", processes=2, ids=(1, 3)),
            3,
            "1",
            [{"EVEREST_JOBS": "3", "CUDA_VISIBLE_DEVICES": name} for name in ("1", "3", "1")],
        ),
        (Devices(kind="cpu"), 1, "cpu", [{}]),
        (
            Devices(kind="cpu"),
            2,
            "cpu",
            [{"EVEREST_JOBS": "2", "OMP_NUM_THREADS": str(max(1, num_cores() // 2))}] * 2,
        ),
    ],
)
def test_each_job_at_once_has_its_device(
    devices: Devices,
    jobs: int,
    gpus: str,
    environments: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processes = Processes(program=["everest"], devices=devices, jobs=jobs)
    assert (processes.gpus, processes.environments) == (gpus, environments)
    if devices.kind == "cpu":
        monkeypatch.setenv("OMP_NUM_THREADS", "7")  # the user's own choice
        assert processes.environments == [{} if jobs == 1 else {"EVEREST_JOBS": str(jobs)}] * jobs
