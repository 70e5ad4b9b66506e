"""Jobs on Slurm, with stand-ins for its commands that run a submitted script at once on this machine."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from nnunet_dualcl.benchmark.protocol import Job
from nnunet_dualcl.benchmark.run import Engine, _executor, _submit, check_engine, run_jobs
from nnunet_dualcl.errors import DualCLError

COMMANDS = {
    "sbatch": """cp "${@: -1}" "$KEPT"
(SLURM_JOB_ID=12 bash "${@: -1}"; touch "$KEPT.ended") > /dev/null 2>&1 &
echo "Submitted batch job 12\"""",
    "srun": """while [[ $1 == -* ]]; do if [[ $1 == --output ]]; then out=$2; shift; fi; shift; done
export SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1
exec "$@" > "$(sed "s/%j/12/; s/%t/0/" <<< "$out")" 2>&1""",
    "sacct": """[ -e "$KEPT.ended" ] && state=COMPLETED || state=RUNNING
printf "JobID|State|NodeList\\n12|$state|here\\n\"""",
    "scancel": "true",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins come first in PATH; returns where the submitted script is kept."""
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KEPT", str(tmp_path / "submitted.sh"))
    return tmp_path / "submitted.sh"


@pytest.mark.slow
def test_a_job_goes_through_slurm_with_the_users_parameters(slurm: Path, tmp_path: Path) -> None:
    """The folder holds no protocol, so the job fails where it begins: after all that lies between."""
    engine = Engine("slurm", 1, {"partition": "gpu", "timeout_min": 7})
    folder = tmp_path / "out"
    assert run_jobs(folder, [Job("stock", 2, 0)], "cuda", engine) == ["stock_2_0"]
    lines = slurm.read_text(encoding="utf-8").splitlines()
    assert {"#SBATCH --partition=gpu", "#SBATCH --time=7", "#SBATCH --gpus-per-node=1"} <= set(lines)
    (log,) = (folder / "jobs" / "stock_2_0" / "logs").glob("*_log.out")
    assert f"Cannot read the protocol {folder / 'protocol.yaml'}" in log.read_text(encoding="utf-8")


def test_a_job_that_a_killed_call_left_on_slurm_is_not_queued_again(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sbatch").write_text('#!/bin/bash\necho again >> "$KEPT.calls"\necho "Submitted batch job 12"\n')
    calls = slurm.with_name(f"{slurm.name}.calls")
    submit = partial(_submit, tmp_path / "out", Job("stock", 2, 0), "cuda", Engine("slurm", 1, {"timeout_min": 7}), 0)
    first = submit()
    left = submit()
    assert (left.job_id, left.paths.stdout, left.done()) == (first.job_id, first.paths.stdout, False)
    assert "stock_2_0 is still on Slurm, as 12: not queued again." in capsys.readouterr().out
    assert len(calls.read_text(encoding="utf-8").splitlines()) == 1
    slurm.with_name(f"{slurm.name}.ended").touch()  # it ended, without a record: the next call tries again
    submit()
    assert len(calls.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.usefixtures("slurm")
def test_a_job_outlasts_more_time_limits_than_submitit_allows_by_itself(tmp_path: Path) -> None:
    executor = _executor(tmp_path, "a", "cuda", Engine("slurm", 1, {"timeout_min": 600}))
    assert executor._executor.max_num_timeout == 1000


@pytest.mark.usefixtures("slurm")
def test_a_parameter_that_slurm_does_not_have_is_refused() -> None:
    with pytest.raises(DualCLError, match="Unknown argument 'no_such'"):
        check_engine(Engine("slurm", 1, {"no_such": 1, "timeout_min": 60}), "cuda")


@pytest.mark.usefixtures("slurm")
def test_jobs_without_a_time_limit_are_refused() -> None:
    """They would get submitit's 5 minutes, and be queued again for ever."""
    with pytest.raises(DualCLError, match=r"without one submitit asks for 5 minutes.* --slurm timeout_min=600"):
        check_engine(Engine("slurm", 1, {"partition": "gpu"}), "cuda")
    for limit in ({"timeout_min": 60}, {"time": "1-00:00:00"}):
        check_engine(Engine("slurm", 1, limit), "cuda")


def test_slurm_without_its_commands_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DualCLError, match="no Slurm here"):
        check_engine(Engine("slurm"), "cuda")
