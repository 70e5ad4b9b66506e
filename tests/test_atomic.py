import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from nnunet_dualcl.atomic import alone, remove_leftovers, replacing, write_table, write_text
from nnunet_dualcl.errors import DualCLError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_success_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old", encoding="utf-8")
    with replacing(target) as partial:
        partial.write_text("new", encoding="utf-8")
        assert target.read_text(encoding="utf-8") == "old"
        assert (partial.parent, partial.suffix) == (tmp_path, ".csv")
    assert target.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_no_partial_one(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old", encoding="utf-8")

    def fail() -> None:
        with replacing(target) as partial:
            partial.write_text("half", encoding="utf-8")
            raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        fail()
    assert target.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["table.csv"]


def test_two_writers_at_a_time_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as first, replacing(tmp_path / "a.txt") as second:
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "first"  # the last to end
    assert names(tmp_path) == ["a.txt"]


def test_failure_without_an_old_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="before writing"), replacing(tmp_path / "table.csv"):
        raise ValueError("before writing")
    assert names(tmp_path) == []


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "table.csv", "old")
    with pytest.raises(FileNotFoundError, match="partial"), replacing(tmp_path / "table.csv"):
        pass
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == "old"


def test_a_durable_file_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, calls = tmp_path / "checkpoint.pth", []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append(os.fstat(number).st_size), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replaced"), replace(*paths)))
    for durable in (True, False):
        with replacing(target, durable=durable) as partial:
            partial.write_bytes(b"whole")
    assert calls == [5, "replaced", "replaced"]
    assert target.read_bytes() == b"whole"


def test_write_text_makes_folders_and_writes_utf8(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "note.txt"
    write_text(target, "Größe 3 µm\n")
    assert target.read_bytes() == "Größe 3 µm\n".encode()


def test_a_table_has_its_keys_as_header(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"a": 1, "b": "x,y"}, {"a": 0.5, "b": ""}])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == 'a,b\n1,"x,y"\n0.5,\n'


def test_what_a_killed_writer_left_of_a_file_goes(tmp_path: Path) -> None:
    for name in ("a[1].pth", "a[1].txt", "a1.pth"):
        with replacing(tmp_path / name) as partial:
            partial.touch()
            partial.with_name(partial.name.replace("partial-", "partial-x")).touch()
    remove_leftovers(tmp_path / "a[1].pth")
    left = [name for name in names(tmp_path) if name.startswith(".")]
    assert [name.split(".partial")[0] for name in left] == [".a1", ".a[1]"]
    assert left[1].endswith(".txt")
    assert (tmp_path / "a[1].pth").is_file()


# ---- one process at a time


def test_a_second_holder_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    lock = tmp_path / "new" / "work.lock"
    with alone(lock, "someone is at it"):
        with pytest.raises(DualCLError, match="someone is at it"), alone(lock, "someone is at it"):
            pass
    with pytest.raises(ValueError, match="in the middle"), alone(lock, ""):
        raise ValueError("in the middle")
    with alone(lock, ""):
        assert lock.is_file()


_HOLDER = """
import os, sys, time
from pathlib import Path
from nnunet_dualcl.atomic import alone
with alone(Path(sys.argv[1]), ""):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        time.sleep(300)
        os._exit(0)
    time.sleep(300)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system starts processes without fork")
def test_workers_that_outlive_a_killed_process_do_not_hold_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "work.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(lock)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())  # it has left the fork behind by now
    try:
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # still there
        with alone(lock, "held"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_a_disk_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FileLock, timeout: float) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match=r"work\.lock cannot be locked: .* Let no"), alone(tmp_path / "work.lock", ""):
        (tmp_path / "written").touch()
    assert (tmp_path / "written").is_file()


def test_a_disk_without_flock_is_one_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre, unless it is mounted with them; lock files without flock would outlive a killed process."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"work\.lock cannot be locked: Function not implemented\. Let no"):
            with alone(tmp_path / "work.lock", "held"), alone(tmp_path / "work.lock", "held"):
                pass
