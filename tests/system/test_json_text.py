"""JSON that any program reads: written without NaN, and refused with it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everest.system.json_text import json_text, nonfinite_as_null, parse_json
from everest.system.run_folder import RunFolder
from everest_cli.output import print_json
from everest_cli.prediction_text import as_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def refuse(name: str) -> None:
    raise AssertionError(name)


@given(VALUES)
def test_a_document_of_measured_numbers_is_json_in_every_program(value):
    text = json_text(nonfinite_as_null(value))
    assert json.loads(text, parse_constant=refuse) == parse_json(text)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_command_prints_a_number_that_is_not_finite(number: float, capsys: pytest.CaptureFixture[str]):
    for write in (print_json, as_json):
        with pytest.raises(ValueError, match="JSON"):
            write([{"top1": number}])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"loss": NaN}', "NaN is no JSON value"),
        ("[-Infinity]", "-Infinity is no JSON value"),
        ("1e999", "1e999 is too large"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
        ("{", "Expecting property name"),
    ],
)
def test_text_that_is_no_json_is_a_value_error(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_metrics_that_are_not_finite_are_logged_as_null(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.log({"step": 1, "loss": math.nan, "val_top1": math.inf, "lr": 0.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": None, "val_top1": None, "lr": 0.5}
    (tmp_path / "metrics.jsonl").write_text(line + '{"step": 2, "loss": NaN}\n')
    rows, problems = run.read_metrics()
    assert [row["step"] for row in rows] == [1]
    assert problems == [f"{tmp_path}/metrics.jsonl:2: not a row of metrics (NaN is no JSON value)"]
