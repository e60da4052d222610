"""benchmarks/public_weights.py: the table of public weights on a labeled set."""

import json

import public_weights


def test_differences_are_paired_by_seed_and_baselines_come_last():
    results = {
        "difference image": {"knn": 40.0, "linear": 50.0},
        "from scratch": {"finetuned": {"0": 50.0, "1": 52.0, "2": 54.0}},
        "hf:a/b": {"knn": 60.0, "linear": 70.0, "finetuned": {"2": 65.0, "0": 60.0, "1": 62.5}},
    }
    rows = public_weights.table(results).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| hf:a/b", "| difference image", "| from scratch"]
    assert rows[0] == "| hf:a/b | 60.0 | 70.0 | 62.5 | **+10.5 (+9.3 to +11.7)** |"


def test_one_call_compares_weights_and_continues(recipe, classifier_run, clip_files, tmp_path, monkeypatch):
    command = ["", recipe, clip_files, tmp_path / "out", classifier_run, "--seeds", "2"]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    public_weights.main()
    path = tmp_path / "out" / "results.json"
    results = json.loads(path.read_text())
    assert set(results) == {str(classifier_run), "difference image", "from scratch"}
    assert set(results["from scratch"]["finetuned"]) == {"0", "1"}
    path.write_text(json.dumps(results | {"from scratch": {"finetuned": {"0": 12.5, "1": 13.5}}}))
    public_weights.main()  # nothing is measured again
    assert "| from scratch |  |  | 13.0 |" in (tmp_path / "out" / "public_weights.md").read_text()
