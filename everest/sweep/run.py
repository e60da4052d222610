"""Runs a plan: one process for each work that has not finished, as many at once as requested."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from everest.metrics.names import value_text
from everest.sweep.jobs import Ended, Job, Processes, last_error, run_jobs
from everest.sweep.metric_names import VALIDATION, metric_title
from everest.sweep.plan import SweepPlan
from everest.sweep.plan_file import PLAN_FILE, check_folder, write_plan
from everest.sweep.results import RESULTS, Metrics, WorkRow, collect, read_work
from everest.sweep.works import RUNS, Work
from everest.system.events import Report, notice
from everest.system.files import write_text
from everest.system.json_text import json_text, parse_json
from everest.system.locks import is_running, sole_writer
from everest.system.run_folder import TOKENIZER
from everest.system.text import counted

JOB_FAILED: Final = 69  # exit code of a sweep, some of whose jobs have failed


@dataclass(kw_only=True)
class _Sweep:
    """The state of a call."""

    plan: SweepPlan
    folder: Path
    processes: Processes
    report: Report
    rows: dict[str, WorkRow]  # the numbers of finished works, by their names
    works: dict[str, Work]  # the others, by their names
    done: int  # jobs that have ended
    failures: dict[str, str] = field(default_factory=dict)  # errors by the names of works
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of finished jobs, by stage
    waits: set[str] = field(default_factory=set)  # works that another process still trains

    def job(self, work: Work) -> Job:
        return Job(
            name=work.name,
            command=(*self.processes.program, *work.command(self.folder, gpus=self.processes.gpus)),
            needs=None if work.needs is None else work.needs.name,
            log=work.file(self.folder, "log"),
            output=work.file(self.folder, "out"),
        )

    def can_start(self, job: Job) -> bool:
        """Whether no process of an earlier call still trains the run or its tokenizer; it saves, and ends."""
        work = self.works[job.name]
        run = work.run(self.folder)
        folders = [folder for folder in (run, run / TOKENIZER) if work.stage in RUNS and folder.is_dir()]
        is_trained = any(map(is_running, folders))
        if is_trained and work.name not in self.waits:
            self.waits.add(work.name)
            self.report(notice(f"{run}: another process trains this run; the job starts when that ends"))
        return not is_trained

    def on_end(self, ended: Ended) -> bool:
        """Record and report the end of a job; returns whether its work is finished."""
        work = self.works.pop(ended.job.name)
        error = self._error(work, ended)
        self.done += 1
        if error is None:
            self.seconds.setdefault(work.stage, []).append(ended.seconds)
            text = self._result(self.rows[work.name].metrics)
        else:
            self.failures[work.name] = error
            text = error if ended.state == "skipped" else f"failed: {error}"
        ended.job.output.unlink(missing_ok=True)
        first, *others = self.plan.users(work)
        more = f" and {counted(len(others), 'more arm')}" if others else ""
        title = f"[{self.done}/{self.done + len(self.works)}] {first}{more}, seed {work.seed}: {work.stage}"
        self.report(notice(f"{title}, {text}{self._remaining()}"))
        if error is not None and ended.state == "failed":
            self.report(notice(f"its messages: {ended.job.log}"))
        self.write()
        return error is None

    def write(self) -> dict[str, Any]:
        """Write `results.json`; returns its document."""
        document = collect(self.plan, self.rows, self.failures)
        write_text(self.folder / RESULTS, json_text(document, indent=2))
        return document

    def _error(self, work: Work, ended: Ended) -> str | None:
        if ended.state == "skipped":
            assert work.needs is not None
            return f"skipped, because its {work.needs.stage} has failed"
        if ended.state == "failed":
            if ended.code < 0:
                return f"killed by signal {-ended.code}"
            return last_error(ended.job.log, ended.log_start)
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

    def _result(self, metrics: Metrics) -> str:
        """The metric of the sweep, if the work has it, else another one."""
        names = (self.plan.headline, f"{VALIDATION}{self.plan.headline}", *metrics)
        name = next((name for name in names if metrics.get(name) is not None), None)
        return "finished" if name is None else f"{metric_title(name)} {value_text(name, metrics[name])}"

    def _remaining(self) -> str:
        """The time that the other jobs need, once a job of each stage has finished."""
        stages = [work.stage for work in self.works.values()]
        if not stages or not set(stages) <= self.seconds.keys():
            return ""
        means = {stage: sum(seconds) / len(seconds) for stage, seconds in self.seconds.items()}
        left = sum(means[stage] for stage in stages) / self.processes.jobs
        return f"; about {timedelta(seconds=round(left))} left"


def run_sweep(plan: SweepPlan, folder: Path, processes: Processes, report: Report) -> dict[str, Any]:
    """Run the work of a plan that has not finished; returns the document of `results.json`."""
    check_folder(folder, plan)
    busy = f"--output {folder}: another sweep runs there now; wait for it, or stop it first"
    with sole_writer(folder / PLAN_FILE, busy=busy):
        for name in check_folder(folder, plan):
            report(notice(f"the arm '{name}' of the earlier call is not compared any more; its runs stay"))
        write_plan(folder, plan)
        every = plan.works()
        rows = {name: row for name, work in every.items() if (row := read_work(work, folder)) is not None}
        sweep = _Sweep(
            plan=plan,
            folder=folder,
            processes=processes,
            report=report,
            rows=rows,
            works={name: work for name, work in every.items() if name not in rows},
            done=len(rows),
        )
        if sweep.works and rows:
            report(notice(f"{len(rows)} of {len(every)} jobs have finished before"))
        for work in sweep.works.values():
            work.write_recipe(folder)
        sweep.write()
        if sweep.works:
            waiting = counted(len(sweep.works), "job")
            report(notice(f"{waiting} to run; their messages are in {folder / '*' / '*.log'}"))
        run_jobs(
            [sweep.job(work) for work in sweep.works.values()],
            environments=processes.environments,
            can_start=sweep.can_start,
            on_end=sweep.on_end,
            resume="the same command resumes",
            before=len(rows),
        )
        return sweep.write()
