"""Runs a plan: one process for each work that has not finished, as many at once as requested.

Each process has its share of the devices and cores, and a log in which its error is found.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from everest.config.recipe import dump_recipe, load_recipe
from everest.config.yaml import write_yaml
from everest.errors import RecipeError
from everest.metrics.names import value_text
from everest.sweep.plan import RUNS, SweepPlan, Work
from everest.sweep.results import RESULTS, WorkRow, collect, metric_title, read_work
from everest.system.events import Report, notice
from everest.system.files import check_new_folder, write_text, writing
from everest.system.launch import Devices, visible_gpus
from everest.system.locks import is_running, sole_writer
from everest.system.processes import JOBS_VARIABLE, num_cores
from everest.system.run_folder import TOKENIZER
from everest.system.signals import SignalForwarder, Stopped, signal_name
from everest.system.text import json_text, parse_json

PLAN_FILE: Final = "sweep.yaml"
JOB_FAILED: Final = 69  # exit code of a sweep, some of whose jobs have failed
POLL_SECONDS: Final = 0.05
THREADS: Final = "OMP_NUM_THREADS"


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
        """The variables of each job at once: how many there are, and its GPU, round robin, or its threads."""
        if self.jobs == 1:
            return [self.devices.environment]
        shared = {JOBS_VARIABLE: str(self.jobs)}
        if self.devices.kind == "cuda":
            return [shared | visible_gpus([slot % self.devices.processes]) for slot in range(self.jobs)]
        if THREADS not in os.environ:
            shared[THREADS] = str(max(1, num_cores() // self.jobs))
        return [shared] * self.jobs


@dataclass(kw_only=True)
class _Job:
    """A running process."""

    work: Work
    process: subprocess.Popen[Any]
    slot: int
    log_start: int  # bytes of the log that earlier calls wrote


@dataclass(kw_only=True)
class _Sweep:
    """The state of a call."""

    plan: SweepPlan
    folder: Path
    processes: Processes
    report: Report
    rows: dict[str, WorkRow]  # the numbers of finished works, by their names
    waiting: list[Work]
    running: list[_Job] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # errors by the names of works
    foreign: set[str] = field(default_factory=set)  # works that a process of an earlier call still trains

    def run(self) -> None:
        """Run all works, the first that is possible first; a signal is forwarded to the running jobs."""
        environments = self.processes.environments
        with SignalForwarder() as signals:
            while (self.waiting and not signals.number) or self.running:
                for job in [job for job in self.running if job.process.poll() is not None]:
                    self.running.remove(job)
                    if not (signals.number and job.process.returncode):  # stopped with this process
                        self._end(job.work, self._error(job))
                    job.work.file(self.folder, "out").unlink(missing_ok=True)
                for work in list(self.waiting):
                    if work.needs and work.needs.name in self.failures:
                        self.waiting.remove(work)
                        self._end(work, f"skipped, because its {work.needs.stage} has failed")
                busy = {job.slot for job in self.running}
                slot = next((slot for slot in range(len(environments)) if slot not in busy), None)
                may_start = slot is not None and not signals.number
                work = next(filter(self._can_start, self.waiting), None) if may_start else None
                if slot is None or work is None:
                    time.sleep(POLL_SECONDS)
                    continue
                self.waiting.remove(work)
                self.running.append(self._start(work, slot, environments[slot], signals))
        if signals.number:
            done = f"{len(self.rows)} of {len(self.plan.works())} jobs finished"
            raise Stopped(signals.number, f"stopped: {done}; the same command resumes")

    def write(self) -> dict[str, Any]:
        """Write `results.json`; returns its document."""
        document = collect(self.plan, self.rows, self.failures)
        write_text(self.folder / RESULTS, json_text(document, indent=2))
        return document

    def _can_start(self, work: Work) -> bool:
        """Whether its stage before has finished, and no process of an earlier call still saves the run."""
        if work.needs is not None and work.needs.name not in self.rows:
            return False
        run = self.folder / work.name
        folders = [folder for folder in (run, run / TOKENIZER) if work.stage in RUNS and folder.is_dir()]
        is_trained = any(map(is_running, folders))
        if is_trained and work.name not in self.foreign:
            self.foreign.add(work.name)
            self.report(notice(f"{run}: another process is training this run; waiting for it"))
        return not is_trained

    def _start(self, work: Work, slot: int, environment: Mapping[str, str], signals: SignalForwarder) -> _Job:
        command = [*self.processes.program, *work.command(self.folder, gpus=self.processes.gpus)]
        log_file, output_file = work.file(self.folder, "log"), work.file(self.folder, "out")
        with writing(log_file):
            output_file.unlink(missing_ok=True)  # a process of an earlier call may still write into it
            with log_file.open("ab") as log, output_file.open("wb") as output:
                log_start = log.tell()
                process = signals.start(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=log,
                    env={**os.environ, **environment},
                )
        return _Job(work=work, process=process, slot=slot, log_start=log_start)

    def _error(self, job: _Job) -> str | None:
        """The error of a job that has ended; None, and its numbers are kept, if it has finished its work."""
        code, work = job.process.returncode, job.work
        if code:
            log, text = work.file(self.folder, "log"), ""
            with suppress(OSError):  # it was deleted
                text = log.read_bytes()[job.log_start :].decode(errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            error = (errors or lines or ["no message"])[-1]
            return f"failed: {error if code > 0 else f'killed by {signal_name(code)}'} (messages: {log})"
        if work.stage not in RUNS:
            try:
                document = parse_json(work.file(self.folder, "out").read_bytes())
            except (OSError, ValueError) as error:
                return f"failed: printed no JSON document ({error})"
            write_text(work.file(self.folder, "json"), json.dumps(document, indent=2))
        row = read_work(work, self.folder)
        if row is None:
            return "failed: ended before its last step"
        self.rows[work.name] = row
        return None

    def _end(self, work: Work, error: str | None) -> None:
        """Record and report the end of a work."""
        if error is not None:
            self.failures[work.name] = error
        text = error or "finished"
        if error is None and (metrics := self.rows[work.name].metrics):
            name, value = next(iter(metrics.items()))
            text = f"{metric_title(name)} {value_text(name, value)}"
        first, *others = self.plan.users(work)
        more = f" (and {len(others)} more)" if others else ""
        done = f"[{len(self.rows) + len(self.failures)}/{len(self.plan.works())}]"
        self.report(notice(f"{done} {first}{more}, seed {work.seed}: {work.stage}, {text}"))
        self.write()


def run_sweep(plan: SweepPlan, folder: Path, processes: Processes, report: Report) -> dict[str, Any]:
    """Run the work of a plan that has not finished; returns the document of `results.json`.

    The folder keeps all finished work, also that of arms which a later plan does not have.
    """
    check_folder(folder)
    request = plan.request
    arms = {
        arm.name: {"stages": list(arm.stages), "init": arm.works[request.seeds[0]][0].init, **arm.overrides}
        for arm in plan.arms
    }
    record = {
        "recipe": request.recipe.label,
        "set": list(request.overrides),
        "seeds": list(request.seeds),
        "against": request.against,
        "summary": request.summary,
        "arms": arms,
    }
    busy = f"--output {folder}: another sweep runs there now; wait for it, or stop it first"
    with sole_writer(folder / PLAN_FILE, busy=busy):
        write_text(folder / PLAN_FILE, write_yaml(record))  # jobs are recognized by their settings

        works = plan.works()
        rows = {name: row for name, work in works.items() if (row := read_work(work, folder)) is not None}
        waiting = [work for name, work in works.items() if name not in rows]
        sweep = _Sweep(
            plan=plan, folder=folder, processes=processes, report=report, rows=rows, waiting=waiting
        )
        for work in waiting:
            path, recipe = work.file(folder, "yaml"), work.recipe
            # A run keeps its settings of other stages, which a resume compares; its folder of videos and its
            # section `train` may change.
            if work.stage in RUNS and path.is_file():
                with suppress(RecipeError):  # damaged: the run itself has a copy, and refuses another
                    saved = load_recipe(path, imports=False)
                    data = replace(saved.data, root=recipe.data.root)
                    recipe = replace(saved, data=data, train=recipe.train)
            write_text(path, dump_recipe(recipe))
        sweep.write()
        if waiting:
            logs = folder / "*" / "*.log"
            report(notice(f"{len(rows)} of {len(works)} jobs have finished; messages of the others: {logs}"))
        sweep.run()
        return sweep.write()


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds other files than those of a sweep."""
    check_new_folder(folder, is_own=lambda name: name == PLAN_FILE, fix="choose another folder")
