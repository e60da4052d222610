import pytest

from everest.errors import RecipeError
from everest.sweep.request import arms_of, read_seeds, read_stages, split_values


def test_arms_are_all_combinations_and_are_named_by_what_differs():
    keep, rate = "pretrain.selection.keep_ratio", "finetune.base_lr"
    arms = arms_of([f"{keep}=0.3,0.5", f"{rate}=1e-3,2e-3"])
    assert [(arm.name, arm.overrides) for arm in arms] == [
        (f"keep_ratio={one}, base_lr={other}", {keep: one, rate: other})
        for one in ("0.3", "0.5")
        for other in ("1e-3", "2e-3")
    ]
    # Keys with the same last part get longer names.
    ratios = (f"{keep}=0.3", "finetune.selection.keep_ratio=0.6")
    for keys in (ratios, ("pretrain.steps=9", "finetune.steps=8")):
        assert [arm.name for arm in arms_of(list(keys))] == [", ".join(keys)]


def test_values_are_divided_outside_brackets():
    for text, values in (
        ("0.3, 0.5", ["0.3", "0.5"]),
        ("[2, 8, 8],[4, 8, 8]", ["[2, 8, 8]", "[4, 8, 8]"]),
        ("{a: 1, b: 2},null", ["{a: 1, b: 2}", "null"]),
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
