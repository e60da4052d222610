"""The processes of a run, one per device: their ranks.

A run of several processes is the same command several times; each process reads its rank from the
environment variables of torch.distributed and Accelerate, which everest (everest.system.launch), torchrun,
accelerate or Slurm has set.
"""

from __future__ import annotations

import os
import re
from typing import Final

from everest.errors import EnvironmentProblem, shown

NUMBERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")  # variables of a launcher
LAUNCHER: Final = (*NUMBERS, "MASTER_ADDR")


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    adopt_slurm(os.environ)
    # torch takes LOCAL_RANK=-1 for no rank.
    present = [name for name in LAUNCHER if os.environ.get(name, "-1") != "-1"]
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"}.intersection(present):
        return False
    missing = [name for name in LAUNCHER if name not in present]
    if missing:
        raise EnvironmentProblem(
            f"the environment has {', '.join(present)}, but not {', '.join(missing)}: a launcher such as "
            f"torchrun sets all of them; without one, unset {' '.join(present)}"
        )
    for name in (*NUMBERS, "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name, "1")
        if not (value.isascii() and value.isdecimal()):
            raise EnvironmentProblem(f"{name}={shown(value)} in the environment is not a number; unset it")
    return True


def is_main() -> bool:
    """Whether this process is the one that writes files and messages."""
    adopt_slurm(os.environ)
    return os.environ.get("RANK", "0") == "0"


def local_processes() -> int:
    """The number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def adopt_slurm(environment: dict[str, str] | os._Environ[str]) -> None:
    """Give a task of `srun` the variables that torch.distributed reads."""
    # The variables of the step, not of the job: an sbatch script has the job's, and is one process.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or int(tasks) < 2 or not environment.keys() >= {"SLURM_PROCID", "SLURM_LOCALID"}:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = tasks
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    tasks_here = environment.get("SLURM_STEP_TASKS_PER_NODE", tasks)  # such as 8(x2)
    environment["LOCAL_WORLD_SIZE"] = tasks_here.split("(")[0].split(",")[0]
    nodes = environment.get("SLURM_STEP_NODELIST", "localhost")  # such as node[03-05,9]: node03 is the first
    first = "".join(re.findall(r"^([^\[,]*)(?:\[(\d+))?", nodes)[0])
    environment.setdefault("MASTER_ADDR", first)
    environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))
