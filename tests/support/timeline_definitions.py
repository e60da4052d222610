"""The definitions of timeline metrics as plain loops, to compare everest.metrics.timeline with.

A line is a name for each frame, "-" where there is no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Line = Sequence[str]
Pairs = Sequence[tuple[Line, Line]]  # truth and prediction of each video
Run = tuple[int, int, str]  # first frame, end, class
Span = tuple[float, float, float]  # start, end, score


def runs(line: Line) -> list[Run]:
    """The segments of a line, without background."""
    found, first = [], 0
    for frame in range(1, len(line) + 1):
        if frame == len(line) or line[frame] != line[first]:
            found.append((first, frame, line[first]))
            first = frame
    return [run for run in found if run[2] != "-"]


def edit(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """1 minus the normalized distance, by Levenshtein's table (Lea et al. 2017)."""
    n, m = len(truth) + 1, len(predicted) + 1
    table = [[0 if i * j else i + j for j in range(m)] for i in range(n)]
    for i, a in enumerate(truth, 1):
        for j, b in enumerate(predicted, 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a != b))
    return 1 - table[-1][-1] / max(len(truth), len(predicted), 1)


def f1_at(pairs: Pairs, overlap: float) -> float | None:
    """F1@k in percent, by sets of frames: MS-TCN's rule."""
    right = wrong = missing = 0
    for truth, predicted in ((runs(a), runs(b)) for a, b in pairs):
        hit = set()
        for first, end, name in predicted:
            frames, best = set(range(first, end)), (0.0, -1)
            for number, (start, stop, other) in enumerate(truth):
                true_frames = set(range(start, stop))
                if name == other and frames & true_frames:
                    best = max(best, (len(frames & true_frames) / len(frames | true_frames), -number))
            number = -best[1]
            if best[0] >= overlap and best[0] > 0 and number not in hit:
                hit.add(number)
                right += 1
            else:
                wrong += 1
        missing += len(truth) - len(hit)
    total = 2 * right + wrong + missing
    return 200 * right / total if total else None


def average_precision(videos: Sequence[tuple[Sequence[Span], Sequence[Span]]], tiou: float) -> float | None:
    """Average precision in percent: precision and recall after each prediction, then the area under the
    highest precision to the right (ActivityNet).

    Args:
        videos: the true and the predicted spans of a class in each video, in seconds.
    """
    total = sum(len(truth) for truth, _ in videos)
    if not total:
        return None
    ranked = sorted(
        ((number, span) for number, (_, predicted) in enumerate(videos) for span in predicted),
        key=lambda entry: -entry[1][2],
    )
    taken: set[tuple[int, int]] = set()
    points = []
    for rank, (number, (start, end, _)) in enumerate(ranked, start=1):
        best: Any = None
        for place, (first, last, _) in enumerate(videos[number][0]):
            shared = max(0.0, min(end, last) - max(start, first))
            ratio = shared / (max(end, last) - min(start, first))
            is_free = (number, place) not in taken
            if shared and is_free and ratio >= tiou - 1e-9 and (best is None or ratio > best[0]):
                best = (ratio, place)
        if best:
            taken.add((number, best[1]))
        points.append((len(taken) / total, len(taken) / rank))
    area = sum(
        max((high for recall, high in points if recall >= (step + 1) / total - 1e-9), default=0)
        for step in range(total)
    )
    return 100 * area / total


def metrics(pairs: Pairs) -> dict[str, float | None]:
    """The metrics of frames and segments, in percent."""
    same = [a == b for truth, predicted in pairs for a, b in zip(truth, predicted, strict=True)]
    edits = [edit(*([name for _, _, name in runs(line)] for line in pair)) for pair in pairs]
    return {
        "frame_accuracy": 100 * sum(same) / len(same),
        "edit": 100 * sum(edits) / len(edits),
        **{f"f1@{k}": f1_at(pairs, k / 100) for k in (10, 25, 50)},
    }
