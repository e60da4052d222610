"""Runs a plan: one process for each work that has not finished, as many at once as requested."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from everest.config.recipe import dump_recipe, load_recipe
from everest.config.settings import Recipe
from everest.errors import RecipeError
from everest.sweep.jobs import Ended, Job, run_jobs
from everest.sweep.metric_names import VALIDATION, headline, metric_text
from everest.sweep.plan import Plan
from everest.sweep.plan_file import PLAN_FILE, check_folder, write_plan
from everest.sweep.request import NO_INIT
from everest.sweep.results import WorkRow, collect, read_work, write_results
from everest.sweep.works import RUNS, Work
from everest.system.cores import num_cores
from everest.system.events import Report, notice
from everest.system.files import write_text
from everest.system.json_text import parse_json
from everest.system.launch import Devices, visible_gpus
from everest.system.locks import sole_writer
from everest.system.run_lock import running_here

JOB_FAILED: Final = 69  # exit code of a sweep, some of whose jobs have failed
LAST_LINES: Final = 200  # of a log, in which the error of a job is searched
NO_LINE: Final = "no message"


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How the jobs of a sweep are started."""

    program: Sequence[str]  # the words that start `everest`
    devices: Devices
    jobs: int = 1  # at once

    @property
    def gpus(self) -> str:
        """The option --gpus of each job."""
        if self.devices.kind != "cuda":
            return self.devices.kind
        return "auto" if self.jobs == 1 else "1"

    @property
    def environments(self) -> list[dict[str, str]]:
        """The variables of each job at once: its GPU, round robin, or its share of the cores."""
        if self.devices.kind != "cuda":
            cores = max(1, num_cores() // self.jobs)
            return [{"OMP_NUM_THREADS": str(cores)} if self.jobs > 1 else {}] * self.jobs
        ids = self.devices.ids or tuple(range(self.devices.processes))
        if self.jobs == 1:
            return [visible_gpus(ids)]
        return [visible_gpus((ids[slot % len(ids)],)) for slot in range(self.jobs)]


@dataclass(kw_only=True)
class _Sweep:
    """The state of a call."""

    plan: Plan
    folder: Path
    processes: Processes
    report: Report
    rows: dict[str, WorkRow]  # the numbers of finished works, by their names
    total: int
    done: int
    failures: dict[str, str] = field(default_factory=dict)  # errors by the names of works
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of finished jobs, by stage

    def job(self, work: Work) -> Job:
        needs = None if work.needs is None else work.needs.name
        return Job(
            name=work.name,
            command=(*self.processes.program, *command_of(work, self.folder, gpus=self.processes.gpus)),
            needs=needs,
            log=work.file(self.folder, "log"),
            output=work.file(self.folder, "out"),
        )

    def ended(self, works: dict[str, Work], ended: Ended) -> bool:
        """Record and report the end of a job; returns whether its work is finished."""
        work = works[ended.job.name]
        error = self._error(work, ended)
        self.done += 1
        if error is None:
            self.seconds.setdefault(work.stage, []).append(ended.seconds)
            text = self._result(self.rows[work.name])
        else:
            self.failures[work.name] = error
            text = error if ended.state == "skipped" else f"failed: {error}"
        del works[ended.job.name]
        ended.job.output.unlink(missing_ok=True)
        title = f"[{self.done}/{self.total}] {self.label(work)}: {work.stage}"
        self.report(notice(f"{title}, {text}{self._remaining(works)}"))
        if error is not None and ended.state == "failed":
            self.report(notice(f"its messages: {ended.job.log}"))
        self.write()
        return error is None

    def write(self) -> dict[str, Any]:
        """Write `results.json`; returns its document."""
        document = collect(self.plan, self.rows, self.failures)
        write_results(self.folder, document)
        return document

    def label(self, work: Work) -> str:
        """The arms of a work in a few words, and its seed."""
        first, *others = self.plan.users(work)
        more = f" and {len(others)} more arm{'s' if len(others) > 1 else ''}" if others else ""
        return f"{first}{more}, seed {work.seed}"

    def _error(self, work: Work, ended: Ended) -> str | None:
        if ended.state == "skipped":
            assert work.needs is not None
            return f"skipped, because its {work.needs.stage} has failed"
        if ended.state == "failed":
            return last_error(ended.job.log) if ended.code > 0 else f"killed by signal {-ended.code}"
        if work.stage not in RUNS:
            try:
                document = parse_json(ended.job.output.read_bytes())
            except (OSError, ValueError) as error:
                return f"printed no JSON document ({error})"
            write_text(work.file(self.folder, "json"), json.dumps(document, indent=2))
        row = read_work(work, self.folder)
        if row is None:
            return "ended before its last step"
        self.rows[work.name] = row
        return None

    def _result(self, row: WorkRow) -> str:
        metrics, wanted = row.metrics, headline(self.plan.arms[0].recipe, self.plan.stages)
        names = (wanted, f"{VALIDATION}{wanted}", *metrics)
        name = next((name for name in names if metrics.get(name) is not None), None)
        return "finished" if name is None else metric_text(name, metrics[name])

    def _remaining(self, works: Mapping[str, Work]) -> str:
        """The time that the other jobs need, once a job of each stage has finished."""
        stages = [work.stage for work in works.values()]
        if not stages or not set(stages) <= self.seconds.keys():
            return ""
        means = {stage: sum(seconds) / len(seconds) for stage, seconds in self.seconds.items()}
        left = sum(means[stage] for stage in stages) / self.processes.jobs
        return f"; about {timedelta(seconds=round(left))} left"


def run_sweep(plan: Plan, folder: Path, processes: Processes, report: Report) -> dict[str, Any]:
    """Run the work of a plan that has not finished; returns the document of `results.json`.

    Raises:
        RecipeError: the folder may not be used, or another sweep runs there.
        EnvironmentProblem: the folder cannot be written.
        Stopped: a signal has stopped it; the same call resumes.
    """
    check_folder(folder, plan)
    busy = f"--output {folder}: another sweep runs there now; wait for it, or stop it first"
    with sole_writer(folder / PLAN_FILE, busy=busy):
        for name in check_folder(folder, plan):
            report(notice(f"the arm '{name}' of the earlier call is not compared any more; its runs stay"))
        write_plan(folder, plan)
        every = plan.works()
        rows = {name: row for name, work in every.items() if (row := read_work(work, folder)) is not None}
        works = {name: work for name, work in every.items() if name not in rows}
        sweep = _Sweep(
            plan=plan,
            folder=folder,
            processes=processes,
            report=report,
            rows=rows,
            total=len(every),
            done=len(rows),
        )
        if works and rows:
            report(notice(f"{len(rows)} of {len(every)} jobs have finished before"))
        for work in works.values():
            _write_recipe(work, folder)
        sweep.write()
        waits: set[str] = set()
        run_jobs(
            [sweep.job(work) for work in works.values()],
            environments=processes.environments,
            can_start=lambda job: _is_free(sweep, works[job.name], waits),
            on_end=lambda ended: sweep.ended(works, ended),
            resume="the same command resumes",
        )
        return sweep.write()


def _is_free(sweep: _Sweep, work: Work, waits: set[str]) -> bool:
    """Whether no process of an earlier call trains the run; it saves its state and ends by itself."""
    run = work.run(sweep.folder)
    process = running_here(run) if work.stage in RUNS and run.is_dir() else None
    if process is not None and work.name not in waits:
        waits.add(work.name)
        sweep.report(notice(f"{run}: process {process} trains it now; it starts after that"))
    return process is None


def command_of(work: Work, folder: Path, *, gpus: str) -> list[str]:
    """The command of a work, without the program."""
    start = work.init if work.needs is None else str(work.needs.run(folder))
    recipe = str(work.file(folder, "yaml"))
    shared = ["--recipe", recipe, "--data", work.recipe.data.root]
    if work.stage == "probe":
        return ["probe", "--checkpoint", start, *shared, "--json", *(["--cpu"] if gpus == "cpu" else [])]
    if work.stage == "eval":
        return ["eval", "--checkpoint", start, *shared, "--json", "--gpus", gpus]
    init = ["--init", start] if work.stage == "finetune" or start != NO_INIT else []
    return [work.stage, *shared, *init, "--output", str(work.run(folder)), "--gpus", gpus]


def _write_recipe(work: Work, folder: Path) -> None:
    """Write the recipe of a work. A run keeps its settings of other stages, which a resume compares."""
    path, recipe = work.file(folder, "yaml"), work.recipe
    if work.stage in RUNS and path.is_file():
        recipe = _as_started(path, recipe)
    write_text(path, dump_recipe(recipe))


def _as_started(path: Path, recipe: Recipe) -> Recipe:
    """The recipe that a run was started with, with the folder of videos and the section train of `recipe`."""
    try:
        before = load_recipe(path, imports=False)
    except RecipeError:  # damaged: the run itself has a copy, and refuses another
        return recipe
    return replace(before, data=replace(before.data, root=recipe.data.root), train=recipe.train)


def last_error(log: Path) -> str:
    """The error in the messages of a failed command, in one line."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        return NO_LINE
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [NO_LINE])[-1]
