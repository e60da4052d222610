"""Runs a plan: one process for each job that has not finished, as many at once as requested.

Each process has its fraction of the devices and cores, and a log in which its error is found.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from everest.config.recipe import dump_recipe, load_recipe
from everest.config.settings import Recipe
from everest.config.stage_settings import STAGES
from everest.config.yaml import write_yaml
from everest.errors import RecipeError
from everest.metrics.names import value_text
from everest.system.events import Emit, notice
from everest.system.files import check_new_folder, write_errors, write_text
from everest.system.launch import Devices, visible_gpus
from everest.system.locks import is_running, sole_writer
from everest.system.processes import JOBS_VARIABLE, num_cores
from everest.system.run_folder import TOKENIZER_FOLDER
from everest.system.signals import SignalForwarder, Stopped, signal_name
from everest.system.text import json_text, parse_json
from everest_workflows.sweep.results import RESULTS_FILE, JobNumbers, collect, make_metric_title, read_job
from everest_workflows.sweep.sweep_jobs import Job, SweepJobs

PLAN_FILE: Final = "sweep.yaml"
JOB_FAILED: Final = 69  # exit code of a sweep, some of whose jobs have failed


@dataclass(frozen=True, kw_only=True)
class JobLauncher:
    """How the jobs of a sweep are started."""

    program: Sequence[str]  # the words that start `everest`
    devices: Devices
    parallel: int = 1  # jobs at once

    @property
    def gpus(self) -> str:
        """The option --gpus of each job."""
        if self.devices.type != "cuda":
            return self.devices.type
        return "auto" if self.parallel == 1 else "1"

    @property
    def environments(self) -> list[dict[str, str]]:
        """The variables of each concurrent job: the number of jobs, and its GPU, in turn, or its threads."""
        if self.parallel == 1:
            return [self.devices.environment]
        common = {JOBS_VARIABLE: str(self.parallel)}
        if self.devices.type == "cuda":
            return [
                common | visible_gpus([slot % self.devices.num_processes]) for slot in range(self.parallel)
            ]
        if "OMP_NUM_THREADS" not in os.environ:
            common["OMP_NUM_THREADS"] = str(max(1, num_cores() // self.parallel))
        return [common] * self.parallel


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen[Any]
    log_start: int  # bytes of the log that earlier calls wrote


@dataclass(kw_only=True)
class _Sweep:
    """The state of a call."""

    sweep: SweepJobs
    folder: Path
    launcher: JobLauncher
    emit: Emit
    rows: dict[str, JobNumbers]  # of finished jobs, by their names
    waiting: list[Job]
    running: dict[int, _Running] = field(default_factory=dict)  # by slot, from 0
    trained_elsewhere: set[str] = field(default_factory=set)  # jobs, by a process of an earlier call
    failures: dict[str, str] = field(default_factory=dict)  # errors by the names of jobs

    def run(self) -> None:
        """Run all jobs, the first that is possible first; a signal is forwarded to the running ones."""
        with SignalForwarder() as signals:
            while (self.waiting and not signals.received) or self.running:
                for slot, (job, process, _) in list(self.running.items()):
                    if process.poll() is not None:
                        ended = self.running.pop(slot)
                        if not (signals.received and process.returncode):  # stopped with this process
                            self._record_end(job, self._finish(ended))
                        job.file(self.folder, "out").unlink(missing_ok=True)
                for job in list(self.waiting):
                    if job.needs and job.needs.name in self.failures:
                        self.waiting.remove(job)
                        self._record_end(job, f"skipped, because its {job.needs.stage} has failed")
                slots = range(self.launcher.parallel)
                free = next((slot for slot in slots if slot not in self.running), None)
                job = next(filter(self._can_start, self.waiting), None)
                if job is None or free is None or signals.received:
                    time.sleep(0.05)
                else:
                    self.waiting.remove(job)
                    self.running[free] = self._start(job, free, signals)
        if signals.received:
            done = f"{len(self.rows)} of {len(self.sweep.jobs())} jobs finished"
            raise Stopped(signals.received, f"stopped: {done}; the same command resumes")

    def write(self) -> dict[str, Any]:
        document = collect(self.sweep, self.rows, self.failures)
        write_text(self.folder / RESULTS_FILE, json_text(document, indent=2))
        return document

    def _can_start(self, job: Job) -> bool:
        """Whether the stage before has finished, and no process of a killed call still saves the run."""
        if job.needs is not None and job.needs.name not in self.rows:
            return False
        run = self.folder / job.name
        is_trained = any(is_running(path) for path in (run, run / TOKENIZER_FOLDER) if path.is_dir())
        if is_trained and job.name not in self.trained_elsewhere:
            self.trained_elsewhere.add(job.name)
            self.emit(notice(f"{run}: another process is training this run; waiting for it"))
        return not is_trained

    def _start(self, job: Job, slot: int, signals: SignalForwarder) -> _Running:
        environment = {**os.environ, **self.launcher.environments[slot]}
        command = [*self.launcher.program, *job.command(self.folder, gpus=self.launcher.gpus)]
        log_file, output_file = job.file(self.folder, "log"), job.file(self.folder, "out")
        with write_errors(log_file):
            output_file.unlink(missing_ok=True)  # a process of an earlier call may still write into it
            with log_file.open("ab") as log, output_file.open("wb") as output:
                log_start = log.tell()
                streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": log}
                return _Running(job, signals.start(command, env=environment, **streams), log_start)

    def _finish(self, ended: _Running) -> str | None:
        """Keep the result and the numbers of a job that has ended; returns its error, None without any.

        The error is the last one in its log, or the last line.
        """
        job, code = ended.job, ended.process.returncode
        if code:
            log = job.file(self.folder, "log")
            text = ""
            with suppress(OSError):  # it was deleted
                text = log.read_bytes()[ended.log_start :].decode(errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            error = (errors or lines or ["no message"])[-1]
            return f"failed: {error if code > 0 else f'killed by {signal_name(code)}'} (messages: {log})"
        if job.stage not in STAGES:
            try:
                document = parse_json(job.file(self.folder, "out").read_bytes())
            except (OSError, ValueError) as error:
                return f"failed: printed no JSON document ({error})"
            write_text(job.file(self.folder, "json"), json.dumps(document, indent=2))
        row = read_job(job, self.folder)
        if row is None:
            return f"failed: ended {'before its last step' if job.stage in STAGES else 'without a result'}"
        self.rows[job.name] = row
        return None

    def _record_end(self, job: Job, error: str | None) -> None:
        if error is not None:
            self.failures[job.name] = error
        text = error or "finished"
        if error is None and (metrics := self.rows[job.name].metrics):
            name, value = next(iter(metrics.items()))
            text = f"{make_metric_title(name)} {value_text(name, value)}"
        first, *others = self.sweep.variants_using(job)
        more = f" (and {len(others)} more)" if others else ""
        done = f"[{len(self.rows) + len(self.failures)}/{len(self.sweep.jobs())}]"
        self.emit(notice(f"{done} {first}{more}, seed {job.seed}: {job.stage}, {text}"))
        self.write()


def run_sweep(sweep: SweepJobs, folder: Path, launcher: JobLauncher, emit: Emit) -> dict[str, Any]:
    """Run the jobs of a plan that have not finished; returns the document of `results.json`.

    The folder keeps all finished jobs, also of variants that a later plan lacks.
    """
    check_folder(folder)
    busy = f"--output {folder}: another sweep runs there now; wait for it, or stop it first"
    with sole_writer(folder / PLAN_FILE, message=busy):
        # jobs are recognized by their settings
        write_text(folder / PLAN_FILE, write_yaml(replace(sweep.request, variants=sweep.variants).dump()))
        jobs = sweep.jobs()
        rows = {name: row for name, job in jobs.items() if (row := read_job(job, folder)) is not None}
        waiting = [job for name, job in jobs.items() if name not in rows]
        for job in waiting:
            write_text(job.file(folder, "yaml"), dump_recipe(_choose_recipe(job, folder)))
        state = _Sweep(sweep=sweep, folder=folder, launcher=launcher, emit=emit, rows=rows, waiting=waiting)
        state.write()
        if waiting:
            logs = folder / "*" / "*.log"
            emit(notice(f"{len(rows)} of {len(jobs)} jobs have finished; messages of the others: {logs}"))
        state.run()
        return state.write()


def _choose_recipe(job: Job, folder: Path) -> Recipe:
    """The recipe of a job; of a run that was begun, with its settings of other stages.

    A resume compares all settings, except the folder of videos and the section `train`.
    """
    path = job.file(folder, "yaml")
    if job.stage in STAGES and path.is_file():
        with suppress(RecipeError):  # damaged: the run itself has a copy, and refuses another
            saved = load_recipe(path, imports=False)
            data = replace(saved.data, root=job.recipe.data.root)
            return replace(saved, data=data, train=job.recipe.train)
    return job.recipe


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds other files than those of a sweep."""
    check_new_folder(folder, is_output=lambda name: name == PLAN_FILE, fix="choose another folder")
