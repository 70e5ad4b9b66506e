from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from nnunet_dualcl.training.environment import nnunet_folders, variables

NAMES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def test_the_three_folders_are_made_and_named_for_the_length_of_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", "before")
    for name in NAMES[1:]:
        monkeypatch.delenv(name, raising=False)
    with nnunet_folders(tmp_path, results=tmp_path / "job" / "model"):
        named = [Path(os.environ[name]) for name in NAMES]
        assert named == [tmp_path / "nnUNet_raw", tmp_path / "nnUNet_preprocessed", tmp_path / "job" / "model"]
        assert all(path.is_dir() for path in named)
    assert [os.environ.get(name) for name in NAMES] == ["before", None, None]


def test_variables_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALCL_ONE", "1")
    monkeypatch.delenv("DUALCL_TWO", raising=False)
    inside = {}
    with contextlib.suppress(KeyError), variables({"DUALCL_ONE": "a", "DUALCL_TWO": "b"}):
        inside.update({name: os.environ[name] for name in ("DUALCL_ONE", "DUALCL_TWO")})
        raise KeyError
    assert inside == {"DUALCL_ONE": "a", "DUALCL_TWO": "b"}
    assert (os.environ["DUALCL_ONE"], os.environ.get("DUALCL_TWO")) == ("1", None)
