import csv
from pathlib import Path

import pytest
from small_runs import STILL, json_of, metrics, refused, run
from task_runs import COLUMNS, write_list

import everest
from everest.config.heads import Head, named_heads
from everest.config.recipe import load_recipe
from everest.config.settings import DataSettings, Recipe
from everest.data.recipe_clips import finetune_dataset
from everest.lists.classes import Classes, empty_classes_notice
from everest.system.run_folder import RunFolder
from everest.system.weights_header import read_header


def test_a_run_with_heads_records_them_in_its_checkpoint_and_metrics(heads_run: Path, classifier_run: Path):
    model = everest.load_model(heads_run / "model.safetensors")
    assert (model.heads, model.num_classes) == (named_heads({"verb": 2, "noun": 3}), 5)
    saved = read_header(heads_run / "model.safetensors").settings["heads"]
    assert [(head["name"], head["outputs"]) for head in saved] == [("verb", 2), ("noun", 3)]
    validated = [row for row in RunFolder(heads_run).rows() if "val_top1" in row]
    assert {"val_verb_top1", "val_noun_top1"} <= set(validated[-1])
    assert all(row["val_top1"] <= min(row["val_verb_top1"], row["val_noun_top1"]) for row in validated)
    assert everest.load_model(classifier_run / "model.safetensors").heads == (Head(outputs=2),)


@pytest.mark.parametrize("segments", [False, True])
def test_eval_reports_each_head_and_the_fraction_with_all_correct(heads_run, clip_files, tmp_path, segments):
    predictions, listed = tmp_path / "predictions.csv", heads_run.parent / "train.csv"
    if segments:
        starts = (0, 0.25, 0.5, 0.75)
        times = {"start": starts, "end": tuple(1 + start for start in starts)}
        listed = write_list(tmp_path / "segments.csv", clip_files, **times, **COLUMNS["heads"])
    options = ["--predictions", predictions, "--set", f"data.test={listed}"]
    result = json_of("eval -q", "-c", heads_run, *options)
    names = {"top1", "top5", "mean_class_accuracy", "macro_f1", "clip_top1", "majority_top1"}
    names |= {"chance_top1", "chance_top5", "intervals", "per_class"}
    assert {name: set(head) for name, head in result["heads"].items()} == {"verb": names, "noun": names}
    assert result["videos"] == 4
    assert "top1" not in result
    rows = list(csv.DictReader(predictions.read_text().splitlines()))
    for name in ("verb", "noun"):
        right = sum(row[f"correct.{name}"] == "1" for row in rows)
        assert result["heads"][name]["top1"] == 100 * right / 4
    both = sum(row["correct.verb"] == row["correct.noun"] == "1" for row in rows)
    assert result["action_top1"] == 100 * both / 4
    if segments:
        assert all("s-" in row["video"].split("#")[1] for row in rows)
    assert "verb top-1" in run("eval", "-c", heads_run, "-q")


def test_a_head_starts_fresh_where_the_recipe_has_others(heads_run: Path, tmp_path: Path):
    recipe = heads_run.parent / "tiny.yaml"
    command = ["finetune", "--recipe", recipe, "--init", heads_run, *STILL]
    run(*command, "-o", tmp_path / "same")
    swapped = tmp_path / "swapped.yaml"
    swapped.write_text(recipe.read_text().replace("{verb: 2, noun: 3}", "{noun: 3, verb: 2}"))
    command[2] = swapped
    run(*command, "-o", tmp_path / "other")
    before, same, other = (
        everest.load_model(p).head.weight for p in (heads_run, tmp_path / "same", tmp_path / "other")
    )
    assert (before - same).abs().max() < 1e-6
    assert (before - other).abs().max() > 1e-5
    assert metrics(tmp_path / "other")


def test_other_heads_are_refused_and_classes_without_a_clip_are_listed_for_each(heads_run: Path):
    message = refused("eval", "-c", heads_run, "--set", "data.heads={verb: 2, noun: 4}", code=6)
    assert "trained with data.heads {'verb': 2, 'noun': 3}, the recipe has {'verb': 2, 'noun': 4}" in message
    data = DataSettings(root=str(heads_run.parent), heads={"verb": 3, "noun": 4})
    dataset, classes = finetune_dataset(Recipe(name="here", data=data))
    assert classes == Classes(heads=named_heads({"verb": 3, "noun": 4}))
    notice = empty_classes_notice("train", dataset.samples, classes)
    assert notice == "data.train has no video of 2 of 7 classes: 'verb 2', 'noun 3'"


def test_heads_given_later_take_the_place_of_the_others(tmp_path: Path):
    base = tmp_path / "two.yaml"
    base.write_text("base: k400\ndata: {heads: {verb: 97, noun: 300}, num_classes: null}\n")

    def heads(*overrides: str) -> dict[str, int] | None:
        return load_recipe(str(base), overrides=overrides).data.heads

    assert heads() == {"verb": 97, "noun": 300}
    assert heads("data.heads={action: 10}") == {"action": 10}
    assert heads("data.heads.verb=5") == {"verb": 5, "noun": 300}
    assert heads("data.heads={a: 2}", "data.heads.b=3") == {"a": 2, "b": 3}


def test_each_head_has_its_bouts(heads_run: Path, clip_files: Path, tmp_path: Path):
    options = ["-c", heads_run, "--window", 0.5, "-q", "--plot", tmp_path / "t.png"]
    (row,) = json_of("timeline", clip_files / "clip1.mp4", *options)
    assert row["bouts"].keys() == {"verb", "noun"}
    assert all((bouts[0]["start"], bouts[-1]["end"]) == (0, 2) for bouts in row["bouts"].values())
    assert (tmp_path / "t.png").is_file()
    file = tmp_path / "bouts.csv"
    run("timeline", clip_files / "clip1.mp4", *options[:-2], "-o", file)
    lines = [line.split(",")[1:4] for line in file.read_text().splitlines()[1:]]
    assert sorted(lines) == sorted(
        [str(bout["start"]), str(bout["end"]), f"{head} {bout['label']}"]
        for head, bouts in row["bouts"].items()
        for bout in bouts
    )
