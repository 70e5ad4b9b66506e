"""Run a benchmark's jobs, each once and in a process of its own, on this machine or on Slurm through submitit.

Everything lies in one folder: nnU-Net's raw and preprocessed folders, and ``jobs/NAME/`` with the job's model,
predictions, ``cases.csv``, ``curves.csv`` and, last, ``job.json``, whose presence means the job is finished. A stopped
benchmark goes on where it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import submitit
import torch
from submitit.helpers import Checkpointable
from tqdm import tqdm

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.benchmark import job as one_job
from nnunet_dualcl.benchmark.prepare import check_source, prepare
from nnunet_dualcl.benchmark.protocol import Job, Protocol
from nnunet_dualcl.benchmark.results import JOBS_FOLDER, PROTOCOL_FILE, finished_seconds
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.training.environment import nnunet_folders, variables
from nnunet_dualcl.yaml_file import read_mapping

LOGS_FOLDER = "logs"
_MONTH_MINUTES = 30 * 24 * 60
_ON_SLURM = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "PREEMPTED", "REQUEUED")
_MOST_TIMEOUTS = 1000
"""How often a job that Slurm's time limit ended is queued again; submitit would give up after 3."""


@dataclass(frozen=True)
class Engine:
    """Where jobs run.

    Attributes:
        cluster: ``local`` (processes of this machine) or ``slurm``.
        at_once: jobs in flight at a time. On this machine they share its processors, and its GPUs take turns.
        slurm: parameters of submitit's Slurm executor without their prefix, such as ``partition`` or ``timeout_min``.
    """

    cluster: str = "local"
    at_once: int = 1
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cluster not in ("local", "slurm"):
            raise DualCLError(f"Jobs run 'local' or on 'slurm', got {self.cluster!r}.")
        if self.at_once < 1:
            raise DualCLError(f"At least 1 job must run at a time, got {self.at_once}.")
        if self.slurm and self.cluster != "slurm":
            raise DualCLError(f"{', '.join(self.slurm)}: for Slurm alone. Add --cluster slurm.")


class RunJob(Checkpointable):  # type: ignore[misc]
    """A job as submitit's function: queued again, and going on, where Slurm's time limit or preemption ends it.

    It starts another Python, because submitit's process and all it forks wave SIGTERM through, with which nnU-Net's
    pools end their workers.
    """

    def __call__(self, folder: str, job: Job, device: str, gpu: str | None = None) -> None:
        """Train, predict, evaluate; see :mod:`nnunet_dualcl.benchmark.job`. ``gpu``: the one to use on this machine."""
        chosen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        command = [sys.executable, "-m", one_job.__name__, folder, job.arm, str(job.labeled), str(job.draw)]
        command += ["--device", device, "--parent", str(os.getpid())]
        subprocess.run(command, check=True, env={**os.environ, **chosen})


def run_benchmark(
    protocol_file: Path,
    source: Path,
    folder: Path,
    *,
    device: str,
    only: Sequence[str] | None = None,
    engine: Engine | None = None,
) -> list[str]:
    """Prepare the data where that was not done, then run the jobs that are not finished.

    Args:
        protocol_file: see :class:`Protocol`; a copy is kept in ``folder`` and must not change after.
        source: dataset in nnU-Net's raw or in the Medical Segmentation Decathlon's layout, all cases labeled;
            ``unlabeled`` or ``imagesUnlabeled`` beside ``imagesTr`` holds further images without labels.
        folder: of the benchmark; on Slurm, on a disk that its nodes share.
        device: torch device type.
        only: arms to run; None for all.
        engine: None for one job at a time on this machine.

    Returns:
        Names of the jobs that failed; their output is in ``jobs/NAME/logs/``.

    Raises:
        DualCLError: before anything is written, where the protocol, the arms, their trainers or the device will not do
            or the source is no dataset; before any planning, where cases of the source will not do.
    """
    engine = engine or Engine()
    check_engine(engine, device)
    protocol = prepare_benchmark(protocol_file, source, folder, only=only)
    folder = folder.resolve()
    jobs = [job for job in protocol.jobs() if only is None or job.arm in only]
    exported = {job: replace(job, arm=arm) for job in jobs if (arm := protocol.arm(job.arm).exports)}
    return run_jobs(folder, jobs, device, engine, exported=exported)


def prepare_benchmark(
    protocol_file: Path, source: Path, folder: Path, *, only: Sequence[str] | None = None
) -> Protocol:
    """All that comes before the jobs of :func:`run_benchmark`, with its arguments and errors; the protocol."""
    protocol = Protocol.from_yaml(protocol_file)
    unknown = sorted(set(only or ()) - set(protocol.arms))
    if unknown:
        raise DualCLError(
            f"{protocol_file} has no arms {', '.join(unknown)}. It has: {', '.join(protocol.arms)}. Add them to it, "
            "or leave them out."
        )
    for arm in only or protocol.arms:  # its trainer is there and takes its settings
        protocol.training_config(protocol.arm(arm), draw=0)
    check_source(protocol, source)
    folder = folder.resolve()
    _keep_protocol(protocol_file, folder)
    with nnunet_folders(folder, results=folder / "unused"):
        prepare(protocol, source.resolve(), folder)
    return protocol


def check_engine(engine: Engine, device: str) -> None:
    """Raise a :class:`DualCLError` where no job could start: no GPU, no Slurm, or parameters unknown to it."""
    if engine.cluster == "local":
        if device == "cuda" and not torch.cuda.is_available():
            raise DualCLError("No CUDA device here. Add -device cpu (slow), or --cluster slurm.")
        return
    if shutil.which("srun") is None or shutil.which("sbatch") is None:
        raise DualCLError("There is no Slurm here (srun and sbatch are not in PATH). Leave --cluster slurm out.")
    if not {"timeout_min", "time"} & set(engine.slurm):
        raise DualCLError(
            "Jobs on Slurm need a time limit; without one submitit asks for 5 minutes. Add the minutes that the "
            "partition allows: --slurm timeout_min=600"
        )
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _executor(Path(scratch), "check", device, engine)
        except (NameError, TypeError) as error:
            raise DualCLError(f"--slurm: {error}") from None


def run_jobs(
    folder: Path,
    jobs: Sequence[Job],
    device: str,
    engine: Engine,
    *,
    exported: Mapping[Job, Job] | None = None,
    poll_seconds: float = 0.5,
) -> list[str]:
    """Run every job that is not finished; a failure stops no other job.

    An interrupt cancels the jobs in flight; repeat the call, and they go on from their last checkpoints. Jobs that a
    killed call has left on Slurm are waited for instead of queued again.

    Args:
        exported: the job whose model each export takes; where both are to run, the export waits, and holds no slot.

    Returns:
        Names of the jobs that failed, and of exports whose job failed.
    """
    waiting = [job for job in jobs if finished_seconds(folder, job.name) is None]
    source_of = exported or {}
    slots: list[tuple[Job, Any] | None] = [None] * engine.at_once
    failed: list[str] = []
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="benchmark", unit="job") as progress:

        def note_failure(job: Job, reason: str) -> None:
            failed.append(job.name)
            progress.write(f"FAILED {job.name}: {reason}")

        try:
            while waiting or any(slots):
                changed = False
                for slot, running in enumerate(slots):
                    if running is not None and running[1].done():
                        job = running[0]
                        if finished_seconds(folder, job.name) is None:
                            note_failure(job, f"see {folder / JOBS_FOLDER / job.name / LOGS_FOLDER}")
                            for export in [each for each in waiting if source_of.get(each) == job]:
                                waiting.remove(export)
                                note_failure(export, f"not run, for it exports {job.name}")
                                progress.update()
                        progress.update()
                        slots[slot] = running = None
                        changed = True
                    flying = [other[0] for other in slots if other is not None]
                    ready = [job for job in waiting if source_of.get(job) not in (*flying, *waiting)]
                    if running is None and ready:
                        waiting.remove(ready[0])
                        slots[slot] = (ready[0], _submit(folder, ready[0], device, engine, slot))
                        changed = True
                flying = [running[0] for running in slots if running is not None]
                if changed:  # the estimate reads every record, and a log file would get a line at each look
                    left = time_left(folder, jobs, [*flying, *waiting], engine.at_once)
                    progress.set_postfix_str(f"{' '.join(job.name for job in flying)}, {left}")
                time.sleep(poll_seconds if flying else 0)
        except BaseException:
            for running in slots:
                if running is not None:
                    running[1].cancel(check=False)
            raise
    return failed


def time_left(folder: Path, jobs: Sequence[Job], unfinished: Sequence[Job], at_once: int) -> str:
    """Estimate from the trainings of finished jobs: those of the same arm, else all."""
    by_arm: dict[str, list[float]] = {}
    for job in jobs:
        seconds = finished_seconds(folder, job.name)
        if seconds is not None:
            by_arm.setdefault(job.arm, []).append(seconds)
    if not by_arm:
        return "time left not known before a job is finished"
    overall = mean(mean(spent) for spent in by_arm.values())
    total = sum(mean(by_arm.get(job.arm, [overall])) for job in unfinished) / at_once
    return f"about {total / 3600:.1f} h left"


def _submit(folder: Path, job: Job, device: str, engine: Engine, slot: int) -> Any:
    logs = folder / JOBS_FOLDER / job.name / LOGS_FOLDER
    if engine.cluster == "slurm" and (left := _left_on_slurm(logs)) is not None:
        tqdm.write(f"{job.name} is still on Slurm, as {left.job_id}: not queued again.")
        return left
    executor = _executor(logs, job.name, device, engine)
    environment = {}
    gpu = None
    if engine.cluster == "local":
        environment = _share(device, engine.at_once)
        if device == "cuda":
            visible = _visible_gpus()
            gpu = visible[slot % len(visible)]
    with variables(environment):
        return executor.submit(RunJob(), str(folder), job, device, gpu)


def _left_on_slurm(logs: Path) -> Any:
    """The job of a call that ended without cancelling it (it was killed, or its machine restarted), or None."""
    submitted = max(logs.glob("*_submitted.pkl"), key=lambda path: path.stat().st_mtime, default=None)
    if submitted is None:
        return None
    left: submitit.SlurmJob[None] = submitit.SlurmJob(logs, submitted.name.removesuffix("_submitted.pkl"))
    return left if left.watcher.get_state(left.job_id, mode="force") in _ON_SLURM else None


def _executor(logs: Path, name: str, device: str, engine: Engine) -> Any:
    if engine.cluster == "slurm":
        executor = submitit.AutoExecutor(folder=logs, cluster="slurm", slurm_max_num_timeout=_MOST_TIMEOUTS)
        gpus = 1 if device == "cuda" else 0
        executor.update_parameters(name=name, gpus_per_node=gpus, stderr_to_stdout=True)
        executor.update_parameters(**{f"slurm_{key}": value for key, value in engine.slurm.items()})
    else:  # its job gets a GPU by RunJob: submitit takes none but by number
        executor = submitit.AutoExecutor(folder=logs, cluster="local")
        executor.update_parameters(name=name, timeout_min=_MONTH_MINUTES, stderr_to_stdout=True)
    return executor


def _visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` names (numbers, identifiers of GPUs or of parts of them), or the number of each."""
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return [part for part in named if part] or [str(number) for number in range(torch.cuda.device_count())]


def _share(device: str, at_once: int) -> dict[str, str]:
    """A job's share of this machine's processors, where the user did not set it."""
    if at_once == 1:
        return {}
    share = str(max(1, (os.cpu_count() or 1) // at_once))
    names = ["OMP_NUM_THREADS", "nnUNet_def_n_proc"] + (["nnUNet_n_proc_DA"] if device == "cuda" else [])
    return {name: share for name in names if name not in os.environ}


def _keep_protocol(protocol_file: Path, folder: Path) -> None:
    kept = folder / PROTOCOL_FILE
    if kept.is_file() and read_mapping(kept, "protocol") != read_mapping(protocol_file, "protocol"):
        raise DualCLError(
            f"{folder} holds results of another protocol. Give -o another folder, or go on with {kept} as it is."
        )
    write_text(kept, protocol_file.read_text(encoding="utf-8"))
