import os
import re
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from nnunet_dualcl.parallel import results


def work(case: str, number: int) -> int:
    if case == "fails":
        raise ValueError("no good")
    if case == "dies" and number == 13:
        os._exit(9)
    return number**2


@pytest.mark.parametrize("processes", [1, 2])
def test_every_case_has_its_result_or_its_fault(processes: int) -> None:
    outcomes = dict(results(work, {"a": 2, "fails": 3, "b": 4}, processes))
    assert (outcomes["a"], outcomes["b"]) == (4, 16)
    assert isinstance(outcomes["fails"], ValueError)
    assert dict(results(work, {}, processes)) == {}


def test_a_case_that_kills_its_process_takes_no_other_along() -> None:
    outcomes = dict(results(work, {"a": 2, "dies": 13, "b": 4, "c": 5}, 2))
    assert isinstance(outcomes.pop("dies"), BrokenProcessPool)
    assert outcomes == {"a": 4, "b": 16, "c": 25}


def noted(case: str, folder: str) -> int:
    """The process that had the case; one kills it once another is at work."""
    Path(folder, case).touch()
    if case == "0":
        while not Path(folder, "1").exists():
            time.sleep(0.01)
        os._exit(9)
    time.sleep(0.2)  # a pool does not look whether it is broken while results come in
    return os.getpid()


def test_after_a_killed_worker_only_what_was_at_work_is_run_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = dict(results(noted, {str(number): str(tmp_path) for number in range(12)}, 2))
    assert isinstance(outcomes.pop("0"), BrokenProcessPool)
    assert len(outcomes) == 11
    assert len(set(outcomes.values())) <= 4  # one of the first pool, one of its own, two of a new pool
    assert re.search(r"ended a worker .* [12] case\(s\) were at work .* one by one, then", capsys.readouterr().out)
