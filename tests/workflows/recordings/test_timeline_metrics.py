from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import timeline_definitions as definitions
from hypothesis import given
from hypothesis import strategies as st

from everest_workflows.annotations.bout import Bout
from everest_workflows.recordings.bout_metrics import (
    Stretch,
    bout_average_precision,
    count_right,
    find_segments,
    frame_classes,
    timeline_metrics,
)

FPS = 10
Spans = dict[str, list[tuple[int, int]]]  # frames of each class, the end excluded


def bouts(spans: Spans) -> list[Bout]:
    return [
        Bout(video="v", start=first / FPS, end=end / FPS, label=name)
        for name, of_class in spans.items()
        for first, end in of_class
    ]


def video(truth: Spans, predicted: Spans, *, frames: int = 40, scores: Sequence[float] = ()) -> Stretch:
    guesses = bouts(predicted)
    return Stretch(
        times=np.arange(frames) / FPS,
        end=frames / FPS,
        labeled=bouts(truth),
        predicted=guesses,
        scores=scores or [1.0] * len(guesses),
    )


WALK_AND_REAR = video(
    {"walk": [(0, 10), (15, 25), (30, 36)], "rear": [(10, 15), (27, 30)]},
    {"walk": [(1, 9), (14, 20), (21, 26), (37, 40)], "rear": [(9, 15), (20, 22)]},
)


def test_the_interval_of_frames_is_over_groups_of_recordings():
    right, wrong = video({"a": [(0, 40)]}, {"a": [(0, 40)]}), video({"a": [(0, 40)]}, {})
    assert timeline_metrics([right, wrong])["frame_interval"] is None  # of one group
    apart = [replace(each, group=str(number)) for number, each in enumerate([right] * 19 + [wrong])]
    low, high = timeline_metrics(apart)["frame_interval"]
    assert 80 <= low < 95 < high == 100
    pairs = [replace(each, group=str(number // 10)) for number, each in enumerate([right] * 19 + [wrong])]
    low, high = timeline_metrics(pairs)["frame_interval"]  # 90 to 100, widened by t
    assert low == pytest.approx(95 - 5 * 2**0.5 * 12.7062 / 1.95996, abs=0.01)
    assert high == 100


def test_metrics_computed_by_hand():
    # 20 frames; ten are a, six b. The prediction moves the border by two frames, and adds a short b.
    case = video({"a": [(0, 10)], "b": [(10, 16)]}, {"a": [(0, 8)], "b": [(8, 16), (18, 20)]}, frames=20)
    scores = timeline_metrics([case])
    assert scores["frame_accuracy"] == 80  # 16 of 20: frames 8, 9, 18, 19 are wrong
    assert scores["mean_class_accuracy"] == pytest.approx(76.6667)  # a 8 of 10, b 6 of 6, background 2 of 4
    assert scores["edit"] == pytest.approx(66.6667)  # a b against a b b: one insertion, 1 - 1 / 3
    # tIoU: a 8 / 10, b 6 / 8, the short b 0.
    for key in ("f1@10", "f1@25", "f1@50"):
        assert scores[key] == 80  # 2 right, 1 wrong: 4 / 5
    assert scores["map@0.5"] == 100  # the right b is first among equals
    a, b = scores["classes"]
    assert a["f1"] == pytest.approx(88.8889)  # 8 right, 2 missing: 16 / 18
    assert b["f1"] == 75  # 6 right, 4 wrong: 12 / 16
    assert b["truth"] == {"bouts": 1, "seconds": 0.6}
    assert b["predicted"] == {"bouts": 2, "seconds": 1.0}


def test_a_class_with_little_truth_is_left_out_of_the_mean_and_named():
    truth = {"walk": [(0, 40)], "rear": [(40, 80)]}
    case = video(truth, {"walk": [(0, 40)], "rear": [(44, 86)]}, frames=86)  # the last 0.6 s are background
    scores = timeline_metrics([case])
    assert scores["mean_class_accuracy"] == 95  # of 100 and 90 %; with the background it was 63 %
    assert scores["too_short"] == {"background": 0.6}
    longer = timeline_metrics([video(truth, {"walk": [(0, 40)], "rear": [(40, 80)]}, frames=100)])
    assert (longer["mean_class_accuracy"], longer["too_short"]) == (100, {})  # 2 s of background
    scores = timeline_metrics([case] * 10)  # the ends of ten recordings are no class either
    assert (scores["mean_class_accuracy"], scores["too_short"]) == (95, {"background": 6})


def test_the_more_certain_prediction_takes_the_bout():
    truth, predicted = {"a": [(0, 10), (20, 30)]}, {"a": [(0, 10), (0, 9), (20, 30)]}
    # Ranks: right, wrong (taken), right: 1 and 2 / 3, of two bouts.
    case = video(truth, predicted, scores=[0.9, 0.8, 0.7])
    assert bout_average_precision([case], "a", tiou=0.5) == pytest.approx((1 + 2 / 3) / 2 * 100, abs=1e-3)
    case = video(truth, predicted, scores=[0.8, 0.7, 0.9])
    assert bout_average_precision([case], "a", tiou=0.5) == 100
    # The rank of 0.9 is wrong at tIoU 0.95 (0.9), and the interpolated precision of both later ones is 2 / 3.
    case = video(truth, predicted, scores=[0.8, 0.9, 0.7])
    assert bout_average_precision([case], "a", tiou=0.95) == pytest.approx(66.6667)


def test_f1_at_any_overlap_is_that_of_banos():
    """banos 1.0.0 (MIT), `banos.score(predicted, truth)` of these frames: greedy and optimal agree."""
    frames = [frame_classes(WALK_AND_REAR, of, ["walk", "rear"]) for of in
              (WALK_AND_REAR.labeled, WALK_AND_REAR.predicted)]  # fmt: skip
    for column, (precision, recall, f1) in enumerate([(0.5, 0.6666666666666666, 0.5714285714285715),
                                                      (0.5, 0.5, 0.5)]):  # fmt: skip
        truth, predicted = (find_segments(of[:, [column]]) for of in frames)
        right = count_right(truth, predicted, 1e-9)
        assert right / len(predicted) == precision
        assert right / len(truth) == recall
        assert 2 * right / (len(truth) + len(predicted)) == pytest.approx(f1, abs=1e-6)
    scores = timeline_metrics([WALK_AND_REAR])
    assert scores["frame_accuracy"] == pytest.approx(55)  # (truth.values == predicted.values).all(1).mean()


def test_classes_may_overlap_and_background_is_no_class():
    both = {"walk": [(0, 20)], "groom": [(10, 30)], "background": [(30, 40)]}
    scores = timeline_metrics([video(both, {"walk": [(0, 20)], "groom": [(10, 30)]})])
    assert [entry["name"] for entry in scores["classes"]] == ["groom", "walk"]
    assert {scores[key] for key in ("frame_accuracy", "edit", "f1@50", "map@0.5")} == {100}
    one = timeline_metrics([video(both, {"walk": [(0, 20)]})])
    assert one["frame_accuracy"] == 50  # frames with the same set of classes
    assert one["edit"] == 50
    assert one["map@0.5"] == 50
    nothing = timeline_metrics([video({}, {})])
    assert (nothing["frame_accuracy"], nothing["edit"]) == (100, 100)
    assert (nothing["f1@50"], nothing["map@0.5"], nothing["classes"]) == (None, None, [])


def test_touching_bouts_of_a_class_are_one_segment_and_gaps_are_background():
    split = video({"a": [(0, 5), (5, 10)]}, {"a": [(0, 10)]})
    assert timeline_metrics([split])["f1@50"] == 100
    gap = video({"a": [(0, 5), (6, 10)]}, {"a": [(0, 10)]})
    assert timeline_metrics([gap])["edit"] == 50


def test_times_in_milliseconds_are_those_of_frames():
    times = np.arange(300) / 29.97
    starts = range(0, 290, 7)
    spans = [Bout(video="v", start=round(times[i], 3), end=round(times[i + 3], 3), label="a") for i in starts]
    expected = np.zeros(300, dtype=bool)
    for i in starts:
        expected[i : i + 3] = True
    case = Stretch(times=times, end=300 / 29.97, labeled=spans, predicted=[], scores=[])
    assert (frame_classes(case, spans, ["a"])[:, 0] == expected).all()


def as_video(truth: list[str], predicted: list[str]) -> Stretch:
    spans: list[Spans] = [{}, {}]
    for of, line in zip(spans, (truth, predicted), strict=True):
        for first, end, name in definitions.runs(line):
            of.setdefault(name, []).append((first, end))
    return video(*spans, frames=len(truth))


LINES = st.integers(1, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from("-ab"), min_size=n, max_size=n)] * 2)
)


@given(pairs=st.lists(LINES, min_size=1, max_size=3))
def test_metrics_of_frames_equal_the_slow_definitions(pairs: list[tuple[list[str], list[str]]]):
    scores = timeline_metrics([as_video(*pair) for pair in pairs])
    for key, expected in definitions.metrics(pairs).items():
        assert scores[key] == (None if expected is None else pytest.approx(expected, abs=1e-3)), key
    for entry in scores["classes"]:
        name = entry["name"]
        frames = [(a == name, b == name) for pair in pairs for a, b in zip(*pair, strict=True)]
        right, either = frames.count((True, True)), sum(a + b for a, b in frames)
        assert entry["f1"] == pytest.approx(200 * right / either, abs=1e-3)
