"""The definitions of timeline metrics as plain loops, to compare recordings.bout_metrics with.

A line is a name for each frame, "-" where there is no class.
"""

from __future__ import annotations

from collections.abc import Sequence

Line = Sequence[str]
Pairs = Sequence[tuple[Line, Line]]  # truth and prediction of each video
Run = tuple[int, int, str]  # first frame, end, class


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


def metrics(pairs: Pairs) -> dict[str, float | None]:
    """The metrics of frames and segments, in percent."""
    same = [a == b for truth, predicted in pairs for a, b in zip(truth, predicted, strict=True)]
    edits = [edit(*([name for _, _, name in runs(line)] for line in pair)) for pair in pairs]
    return {
        "frame_accuracy": 100 * sum(same) / len(same),
        "edit": 100 * sum(edits) / len(edits),
        **{f"f1@{k}": f1_at(pairs, k / 100) for k in (10, 25, 50)},
    }
