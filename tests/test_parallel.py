import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

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


def sleeping(case: str, folder: str) -> None:
    Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(600)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_process(sent: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from test_parallel import sleeping\n"
        "from nnunet_dualcl.parallel import results\n"
        f"if __name__ == '__main__':\n    list(results(sleeping, dict.fromkeys('ab', {str(tmp_path)!r}), 2))\n",
        encoding="utf-8",
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": paths})
    try:
        workers = eventually(
            lambda: found if len(found := [int(path.stem) for path in tmp_path.glob("*.pid")]) == 2 else []
        )
        process.send_signal(sent)
        process.wait(60)
        assert eventually(lambda: not any(map(is_alive, workers)))
    finally:
        process.kill()
        for worker in filter(is_alive, (int(path.stem) for path in tmp_path.glob("*.pid"))):
            os.kill(worker, signal.SIGKILL)


def eventually(look: Callable[[], Any]) -> Any:
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.2)
    return look()


def is_alive(process: int) -> bool:
    """A zombie, which waits for somebody to ask for its exit status, is not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
