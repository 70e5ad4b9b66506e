import subprocess
from pathlib import Path

import pytest

from nnunet_dualcl import provenance


def repository(folder: Path) -> str:
    """A repository with one commit, and that commit."""
    folder.mkdir(parents=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository, in which :func:`place` puts the package."""
    return tmp_path / "repository"


def place(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))


def test_the_commit_is_that_of_the_packages_own_repository(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository(at)
    place(at / "nnunet_dualcl", monkeypatch)
    assert provenance.source_commit() == commit


def test_an_environment_inside_another_repository_has_no_commit(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(at)
    place(at / ".venv" / "site-packages" / "nnunet_dualcl", monkeypatch)
    assert provenance.source_commit() == "unknown"


def test_without_git_or_repository_it_is_unknown(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(at / "nnunet_dualcl", monkeypatch)
    assert provenance.source_commit() == "unknown"
    monkeypatch.setenv("PATH", str(at))
    assert provenance.source_commit() == "unknown"
