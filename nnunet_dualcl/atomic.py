"""Writing files so that an interrupted run leaves the old file or the new one, never half of it, by one process."""

from __future__ import annotations

import csv
import errno
import glob
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnunet_dualcl.errors import DualCLError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file ``path``, whose folder is made; a process that ends, however it ends, gives it back.

    On a disk that has no locks there is a warning instead.

    Args:
        refusal: what to say where another process holds it.

    Raises:
        DualCLError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a process that is killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DualCLError(refusal) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(f"{path} cannot be locked: {error.strerror}. Let no other process work there.", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it takes the place of ``path``, on failure it goes.

    ``durable``: not before the disk has it, so that a crash of the machine leaves the old file or the new one, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # no process number: containers that share a disk have the same ones
    partial = path.with_name(_partial_name(path, uuid.uuid4().hex[:12]))
    try:
        yield partial
        if durable:
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Delete what processes that were killed while they wrote ``path`` left; for files that one process writes."""
    for partial in sorted(path.parent.glob(_partial_name(Path(glob.escape(path.name)), "*"))):
        partial.unlink(missing_ok=True)


def _partial_name(path: Path, mark: str) -> str:
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix  # writers go by the ending
    return f".{path.name.removesuffix(suffix)}.partial-{mark}{suffix}"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rows``, all with the keys of the first and at least one, as CSV with a header, in one step."""
    with replacing(path) as partial:
        write_rows(partial, rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As :func:`write_table`, straight into ``path``."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
