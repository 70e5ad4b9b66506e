"""The same work on many cases, some at a time; one that brings its process down does not take the others along."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from tqdm import tqdm

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def results(
    function: Callable[[str, Argument], Result], cases: Mapping[str, Argument], processes: int
) -> Iterator[tuple[str, Result | Exception]]:
    """``function(case, argument)`` for every case: (case, its result or what it raised), as they finish.

    With one process, or one case, all happens in this one. A worker that the system kills (for lack of memory) breaks
    its pool; the cases that were at work then are run again, each in a process of its own, and only those that kill
    that one too come out as a :class:`BrokenProcessPool`. The others go on in a new pool.
    """
    if processes <= 1 or len(cases) <= 1:
        for case, argument in cases.items():
            yield case, _outcome(function, case, argument)
        return
    waiting = deque(cases)
    while waiting:
        suspects = yield from _pooled(function, cases, waiting, processes)
        if suspects:
            tqdm.write(
                f"The system ended a worker process, perhaps for lack of memory. {len(suspects)} case(s) were at work "
                f"and are run again one by one, then the other {len(waiting)} as before."
            )
        for case in suspects:
            yield from (yield from _pooled(function, cases, deque([case]), 1)).items()


def _pooled(
    function: Callable[[str, Argument], Result], cases: Mapping[str, Argument], waiting: deque[str], processes: int
) -> Generator[tuple[str, Result | Exception], None, dict[str, BrokenProcessPool]]:
    """Take cases from ``waiting`` until there are none or the pool breaks; returns those at work when it broke."""
    # spawn, as nnU-Net does: forking after torch and SimpleITK started threads can deadlock
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(processes, len(waiting)), mp_context=context, initializer=_end_with_the_parent)
    broken: dict[str, BrokenProcessPool] = {}
    flying: dict[Future[Any], str] = {}
    try:
        while flying or (waiting and not broken):
            # no more than there are processes: a pool that breaks does not say which cases its workers had begun
            while waiting and not broken and len(flying) < processes:
                try:
                    flying[executor.submit(_outcome, function, waiting[0], cases[waiting[0]])] = waiting[0]
                except BrokenProcessPool:  # while nothing was at work, or what was says so below
                    break
                waiting.popleft()
            if not flying:
                break
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                case, error = flying.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken[case] = error
                else:
                    yield case, error if isinstance(error, Exception) else future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return broken


def _end_with_the_parent() -> None:
    """Workers of a pool whose process was killed would wait for ever, with all their memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _outcome(function: Callable[[str, Argument], Result], case: str, argument: Argument) -> Result | Exception:
    try:
        return function(case, argument)
    except Exception as error:
        return error
