import os
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from everest.sweep.jobs import NO_LINE, Ended, Job, last_error, run_jobs
from everest.system.signals import Stopped


def job(folder: Path, name: str, code: str, needs: str | None = None) -> Job:
    files = {"log": folder / f"{name}.log", "output": folder / f"{name}.out"}
    return Job(name=name, command=(sys.executable, "-c", code), needs=needs, **files)


def run(jobs: list[Job], *, slots: int = 1, can_start=lambda job: True, on_end=None) -> list[Ended]:
    ended: list[Ended] = []

    def keep(end: Ended) -> bool:
        ended.append(end)
        return end.state == "finished" if on_end is None else on_end(end)

    environments = [{"SLOT": str(slot)} for slot in range(slots)]
    run_jobs(jobs, environments=environments, can_start=can_start, on_end=keep, resume="repeat it")
    return ended


def test_jobs_run_after_the_one_they_need_and_are_skipped_if_it_fails(tmp_path: Path):
    jobs = [
        job(tmp_path, "fails", "import sys; print('why', file=sys.stderr); sys.exit(4)"),
        job(tmp_path, "skipped", "print()", needs="fails"),
        job(tmp_path, "skipped too", "print()", needs="skipped"),
        job(tmp_path, "first", "print('out')"),
        job(tmp_path, "second", f"print(open({str(tmp_path / 'first.out')!r}).read())", needs="first"),
        job(tmp_path, "needs an earlier one", "print()", needs="done before"),
    ]
    ended = {end.job.name: (end.state, end.code) for end in run(jobs)}
    states = dict.fromkeys(("first", "second", "needs an earlier one"), ("finished", 0))
    states |= dict.fromkeys(("skipped", "skipped too"), ("skipped", 0))
    assert ended == {"fails": ("failed", 4), **states}
    assert (tmp_path / "fails.log").read_text() == "why\n"
    assert (tmp_path / "second.out").read_text() == "out\n\n"
    assert not (tmp_path / "skipped.out").exists()
    # A job that is not accepted counts as failed.
    jobs = [job(tmp_path, "a", "print()"), job(tmp_path, "b", "print()", needs="a")]
    assert [end.state for end in run(jobs, on_end=lambda end: False)] == ["finished", "skipped"]


def test_the_error_of_a_job_is_that_of_its_last_start(tmp_path: Path):
    fails = job(tmp_path, "fails", "import sys; sys.exit('error: a list is missing')")
    (first,) = run([fails])
    assert last_error(fails.log, first.log_start) == "a list is missing"
    (second,) = run([job(tmp_path, "fails", "import os; os._exit(3)")])
    assert second.log_start == len("error: a list is missing\n")
    assert last_error(fails.log, second.log_start) == NO_LINE


def test_each_slot_has_one_job_at_a_time(tmp_path: Path):
    code = "import os, time; print(os.environ['SLOT'], time.time(), flush=True)"
    code += "; time.sleep(0.3); print(time.time())"
    run([job(tmp_path, str(number), code) for number in range(5)], slots=2)
    texts = [(tmp_path / f"{number}.out").read_text().split() for number in range(5)]
    for slot in ("0", "1"):
        times = sorted((float(began), float(end)) for of, began, end in texts if of == slot)
        assert all(before[1] <= after[0] for before, after in pairwise(times))
    assert {of for of, _, _ in texts} == {"0", "1"}


def test_a_job_waits_until_it_may_start(tmp_path: Path):
    jobs = [job(tmp_path, name, "print()") for name in "ab"]
    looked: list[str] = []

    def can_start(job: Job) -> bool:
        looked.append(job.name)
        return job.name == "b" or looked.count("a") > 3

    assert [end.job.name for end in run(jobs, can_start=can_start)] == ["b", "a"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_jobs_and_starts_no_others(tmp_path: Path, number: signal.Signals):
    code = (
        "import os, signal, time\n"
        "def stop(*_): os.write(1, b'saved\\n'); os._exit(5)\n"  # print may be interrupted by itself
        f"signal.signal({int(number)}, stop)\n"
        "os.write(1, b'ready\\n')\n"
        "while True: time.sleep(0.05)"  # not once: a signal just before a sleep is handled after it
    )
    jobs = [job(tmp_path, name, code) for name in "abc"]

    def stop() -> None:
        outputs = [tmp_path / f"{name}.out" for name in "ab"]
        while not all(path.exists() and "ready" in path.read_text() for path in outputs):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped, match="stopped: 0 of 3 jobs finished; repeat it") as stopped:
        run(jobs, slots=2)
    thread.join()
    assert stopped.value.exit_code == 128 + number
    assert [(tmp_path / f"{name}.out").read_text() for name in "ab"] == ["ready\nsaved\n"] * 2
    assert not (tmp_path / "c.out").exists()
    assert signal.getsignal(number) == before


def test_an_error_of_the_caller_ends_the_jobs(tmp_path: Path):
    pids: list[int] = []
    wait = f"import os, time\nwhile not os.path.getsize({str(tmp_path / 'long.out')!r}): time.sleep(0.01)"
    jobs = [
        job(tmp_path, "long", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"),
        job(tmp_path, "short", wait),
    ]

    def fail(end: Ended) -> bool:
        pids.append(int((tmp_path / "long.out").read_text()))
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        run(jobs, slots=2, on_end=fail)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pids[0]) and psutil.Process(pids[0]).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
