from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.training.preflight import check_split


@pytest.mark.parametrize("faulty", [{"val": ["b"]}, {"train": [], "val": ["b"]}, {"train": ["a"]}])
def test_a_fold_without_training_or_validation_cases_is_refused(tmp_path: Path, faulty: dict[str, list[str]]) -> None:
    splits = [{"train": ["a"], "val": ["b"]}, faulty]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    assert check_split(str(tmp_path), str(tmp_path), 0) == []
    role = "val" if faulty.get("train") else "train"
    with pytest.raises(DualCLError, match=rf"splits_final\.json, fold 1: no '{role}' case\. Write it anew"):
        check_split(str(tmp_path), str(tmp_path), 1)
