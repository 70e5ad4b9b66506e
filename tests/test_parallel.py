import os
from concurrent.futures.process import BrokenProcessPool

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
