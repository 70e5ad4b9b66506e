"""The same work on many cases, some at a time; one that brings its process down does not take the others along."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def results(
    function: Callable[[str, Argument], Result], cases: Mapping[str, Argument], processes: int
) -> Iterator[tuple[str, Result | Exception]]:
    """``function(case, argument)`` for every case: (case, its result or what it raised), as they finish.

    With one process, or one case, all happens in this one. A worker that the system kills (for lack of memory) breaks
    its pool and all that waits in it; those cases are run again, each in a process of its own, and only those that
    kill that one too come out as a :class:`BrokenProcessPool`.
    """
    if processes <= 1 or len(cases) <= 1:
        for case, argument in cases.items():
            yield case, _outcome(function, case, argument)
        return
    suspects = {}
    for case, outcome in _pooled(function, cases, processes):
        if isinstance(outcome, BrokenProcessPool):
            suspects[case] = cases[case]
        else:
            yield case, outcome
    for case in [name for name in cases if name in suspects]:
        yield from _pooled(function, {case: suspects[case]}, 1)


def _pooled(
    function: Callable[[str, Argument], Result], cases: Mapping[str, Argument], processes: int
) -> Iterator[tuple[str, Result | Exception]]:
    # spawn, as nnU-Net does: forking after torch and SimpleITK started threads can deadlock
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(processes, len(cases)), mp_context=context)
    try:
        futures: dict[Any, str] = {}
        for case, argument in cases.items():
            try:
                futures[executor.submit(_outcome, function, case, argument)] = case
            except BrokenProcessPool as error:  # broken while the rest was still being handed over
                yield case, error
        for future in as_completed(futures):
            broken = future.exception()
            yield futures[future], broken if isinstance(broken, Exception) else future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _outcome(function: Callable[[str, Argument], Result], case: str, argument: Argument) -> Result | Exception:
    try:
        return function(case, argument)
    except Exception as error:
        return error
