import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import append, make_run
from small_runs import called
from typer.testing import Result

from everest.config.heads import Head, named_heads
from everest.config.recipe import load_recipe
from everest.figures.curves import Axis, RunCurves, draw_curves, name_runs, read_curves
from everest.models.clip_spec import ModelSpec
from everest.models.spec import classifier_spec, pretrain_spec
from everest.system.weights import Weights
from everest.tokenizer.spec import TokenizerSpec, tokenizer_spec
from everest_workflows.sweep.results import list_runs


def save_spec(run: Path, spec: ModelSpec | TokenizerSpec) -> None:
    """Save the header of weights: plots read no more."""
    weights = Weights(kind=spec.kind, settings=spec.dump(), classes=None, recipe="r", step=4)
    weights.save(run / "model.safetensors")


def read(runs: list[Path], *, x: Axis) -> list[RunCurves]:
    return read_curves(name_runs(runs), x=x)


def plot(*arguments: object, code: int = 0) -> Result:
    return called("plot", *arguments, code=code)


def test_steps_are_those_of_the_rows_and_hours_add_up_their_time(tmp_path: Path):
    run = make_run(tmp_path / "run", logged=3)  # 4 clips a step, 2 clips a second: 2 seconds
    append(run, '{"step": 3, "val_top1": 50.0, "val_top5": 100.0}\n')
    (curves,) = read([run], x="steps")
    assert curves.curves["loss"].x.tolist() == curves.curves["lr"].x.tolist() == [1, 2, 3]
    assert curves.curves["loss"].y.tolist() == [[1, 1 / 2, 1 / 3]]
    assert [values.tolist() for values in curves.curves["val_top1"]] == [[3], [[50]]]
    append(run, '{"step": 4, "loss": 0.1, "lr": 0.1, "clips_per_second": 0.5}\n')
    append(run, '{"step": 5, "loss": 0.1, "lr": 0.1, "clips_per_second": 0.0}\n')  # rounded: below 0.005
    (curves,) = read([run], x="hours")
    np.testing.assert_allclose(curves.curves["loss"].x * 3600, [2, 4, 6, 14, 814])
    np.testing.assert_allclose(curves.curves["val_top1"].x * 3600, [6])


def test_gmacs_count_every_clip_of_every_step(tmp_path: Path):
    pretrained, classifier = (make_run(tmp_path / name, logged=3) for name in ("pretrained", "classifier"))
    save_spec(pretrained, pretrain_spec(load_recipe("ucf101")))
    save_spec(classifier, classifier_spec(load_recipe("videomae-ucf101"), (Head(outputs=400),)))
    # EVEREST Tables 1 and 10, 16 frames of 224 x 224; four clips are a step.
    for curves, gmacs in zip(read([pretrained, classifier], x="gmacs"), (19.81, 180.49), strict=True):
        np.testing.assert_allclose(curves.curves["loss"].x / [4, 8, 12], gmacs, rtol=0, atol=0.005)


def test_axes_do_not_exaggerate(tmp_path: Path):
    """Accuracies from 0 to 100 %, with chance as a line; losses in their range, also below 0."""
    run = make_run(tmp_path / "run", logged=4)
    recipe = load_recipe("custom", overrides=["model.backbone=vit-tiny"])
    save_spec(run, classifier_spec(recipe, (Head(outputs=8),)))
    append(run, '{"step": 2, "val_top1": 12.5, "val_loss": 4.0}\n{"step": 4, "val_top1": 13.0}\n')
    (curves,) = read([run], x="steps")
    assert [values.tolist() for values in curves.curves["val_loss"]] == [[2], [[4]]]
    assert curves.chance == 12.5
    losses, accuracies, _ = draw_curves(tmp_path / "p.png", [curves], x="steps").axes
    assert losses.get_ylim() == pytest.approx((0.25 - 0.1875, 4 + 0.1875))  # a twentieth of the range
    assert accuracies.get_ylim() == (0, 100)
    assert "chance, 12.5 %" in accuracies.get_title(loc="left")
    assert [12.5, 12.5] in [list(line.get_ydata()) for line in accuracies.lines]
    append(run, '{"step": 5, "loss": -3.0, "lr": 0.1}\n{"step": 6, "loss": null, "lr": 0.1}\n')
    (curves,) = read([run], x="steps")
    limits = draw_curves(tmp_path / "p.png", [curves], x="steps").axes[0].get_ylim()
    assert limits == pytest.approx((-3.35, 4.35))


def test_runs_without_validation_or_finite_losses_are_drawn_and_heads_guessed_together(tmp_path: Path):
    run = make_run(tmp_path / "run", logged=1)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": null, "lr": 0.1}\n')
    (curves,) = read([run], x="steps")
    assert curves.chance is None
    assert len(draw_curves(tmp_path / "p.png", [curves], x="steps").axes) == 2
    append(run, '{"step": 1, "val_top1": 50.0}\n')  # no weights saved yet: the chance level is not known
    assert read([run], x="steps")[0].chance is None
    recipe = load_recipe("custom", overrides=["data.heads={verb: 4, noun: 5}", "data.num_classes=null"])
    save_spec(run, classifier_spec(recipe, named_heads({"verb": 4, "noun": 5})))
    assert read([run], x="steps")[0].chance == 5


def test_several_runs_share_a_figure(tmp_path: Path):
    one, two = (make_run(tmp_path / name, logged=9) for name in ("_a $x_1$", "b"))
    append(two, '{"step": 9, "val_top1": 50.0}\n')
    out = tmp_path / "new" / "curves.png"
    assert plot(one, two, "--out", out).stdout == f"{out}\n"
    with Image.open(out) as picture:
        assert (picture.format, picture.width > 1000) == ("PNG", True)
    document = tmp_path / "curves.pdf"
    plot(one, "--x", "hours", "--out", document)
    assert document.read_bytes().startswith(b"%PDF")


def test_a_sweep_has_a_line_for_each_variant_with_the_range_of_its_seeds(tmp_path: Path):
    variants = []
    for variant, losses in (("everest", [(4.0, 2.0), (2.0, 1.0, 0.5)]), ("videomae", [(8.0, 6.0)])):
        seeds = []
        for seed, values in enumerate(losses):
            run = make_run(tmp_path / "pretrain" / f"{variant}{seed}")
            for step, loss in enumerate(values, start=1):
                append(run, f'{{"step": {step}, "loss": {loss}, "lr": 0.1, "clips_per_second": 4}}\n')
            seeds.append({"seed": seed, "jobs": [f"pretrain/{variant}{seed}", f"eval/{variant}{seed}"]})
        variants.append({"variant": variant, "seeds": seeds})
    make_run(tmp_path / "pretrain" / "begun")  # without a step
    variants[1]["seeds"].append({"seed": 1, "jobs": ["pretrain/begun"]})
    (tmp_path / "results.json").write_text(json.dumps({"stages": ["pretrain", "eval"], "variants": variants}))
    everest, videomae = read_curves(list_runs(tmp_path, None), x="steps")
    assert (everest.name, videomae.name) == ("everest", "videomae")
    assert everest.curves["loss"].x.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(everest.curves["loss"].y, [[4, 2, np.nan], [2, 1, 0.5]])
    losses, rates = draw_curves(tmp_path / "c.png", [everest, videomae], x="steps").axes
    means = [np.ma.filled(line.get_ydata(), -1).tolist() for line in losses.lines]
    assert [3, 1.5, -1] in means  # one seed is unfinished: only the band goes on
    band = losses.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} == {(1, 4), (2, 2), (2, 1), (1, 2), (3, 0.5)}
    title = losses.get_title(loc="left")
    assert "losses of pre-training compare only where the same tokens are predicted" in title
    assert "circles" not in title  # no validation
    assert {line.get_marker() for line in rates.lines} == {""}
    assert "no run of finetune has a step yet" in plot(tmp_path, "--stage", "finetune", code=2).stderr
    assert plot(tmp_path, "--out", tmp_path / "s.png").stdout == f"{tmp_path / 's.png'}\n"


def test_runs_are_named_differently_and_drawn_once_and_may_be_more_than_colors(tmp_path: Path):
    runs = [make_run(tmp_path / name, logged=1) for name in ("a/run", "b/run", "c")]
    assert [run.name for run in read(runs[1:], x="steps")] == ["run", "c"]
    assert [run.name for run in read(runs, x="steps")] == [str(run) for run in runs]
    assert len(read([runs[0], runs[0] / "." / ".." / "run"], x="steps")) == 1
    plot(*(make_run(tmp_path / f"run{i}", logged=2) for i in range(9)), "--out", tmp_path / "c.png")


def test_runs_that_cannot_be_drawn_are_reported(tmp_path: Path):
    empty = make_run(tmp_path / "empty")
    damaged = make_run(tmp_path / "damaged", logged=2)
    append(damaged, "no row\n")
    for run, x, message in (
        (tmp_path, "steps", "not a run folder"),
        (tmp_path / "missing", "steps", "not a run folder"),
        (empty, "steps", "no step in metrics.jsonl"),
        (make_run(tmp_path / "unsaved", logged=2), "gmacs", "no transformer in model.safetensors yet"),
        (damaged, "steps", "metrics.jsonl:3"),
    ):
        shown = plot(run, "--x", x, "--out", tmp_path / "c.png", code=2)
        assert message in shown.stderr
        assert len(shown.stderr.splitlines()) == 1
        assert shown.stdout == ""
    assert not (tmp_path / "c.png").exists()


def test_a_tokenizer_is_drawn_next_to_a_model_but_not_by_gmacs(tmp_path: Path):
    tokenizer, model = (make_run(tmp_path / name, logged=2) for name in ("tokenizer", "model"))
    recipe = load_recipe("lvmae-128", overrides=["tokenizer.channels=8"])
    save_spec(tokenizer, tokenizer_spec(recipe))
    save_spec(model, pretrain_spec(load_recipe("ucf101")))
    assert plot(tokenizer, model, "--out", tmp_path / "c.png").stdout == f"{tmp_path / 'c.png'}\n"
    (curves,) = read([tokenizer], x="hours")
    assert curves.chance is None
    shown = plot(tokenizer, model, "--x", "gmacs", "--out", tmp_path / "d.png", code=2)
    (line,) = shown.stderr.splitlines()
    assert f"{tokenizer}: no transformer in model.safetensors yet, which --x gmacs needs" in line


def test_a_figure_replaces_a_file_only_with_overwrite(tmp_path: Path):
    run = make_run(tmp_path / "run", logged=2)
    (tmp_path / "folder.png").mkdir()
    for out, message in ((tmp_path / "c.jpg", ".png, .pdf, .svg"), (tmp_path / "folder.png", "is a folder")):
        assert message in plot(run, "--out", out, code=2).stderr
    (other := tmp_path / "c.png").write_text("not a picture")
    assert (
        "c.png: exists; choose another name, or use --overwrite" in plot(run, "--out", other, code=2).stderr
    )
    assert other.read_text() == "not a picture"
    plot(run, "--out", other, "--overwrite")
    assert other.read_bytes().startswith(b"\x89PNG")
