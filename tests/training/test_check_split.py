from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.training.preflight import check_shares, check_split


@pytest.mark.parametrize("faulty", [{"val": ["b"]}, {"train": [], "val": ["b"]}, {"train": ["a"]}])
def test_a_fold_without_training_or_validation_cases_is_refused(tmp_path: Path, faulty: dict[str, list[str]]) -> None:
    splits = [{"train": ["a"], "val": ["b"]}, faulty]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    assert check_split(str(tmp_path), str(tmp_path), 0) == []
    role = "val" if faulty.get("train") else "train"
    with pytest.raises(DualCLError, match=rf"splits_final\.json, fold 1: no '{role}' case\. Write it anew"):
        check_split(str(tmp_path), str(tmp_path), 1)


@pytest.mark.parametrize(("batch_size", "num_gpus", "fitting"), [(5, 2, 1), (12, 8, 6), (9, 4, 3), (2, 3, 2)])
def test_gpus_with_shares_of_different_size_are_refused_where_the_dice_is_pooled(
    batch_size: int, num_gpus: int, fitting: int
) -> None:
    check_shares(batch_size, num_gpus, batch_dice=False)
    check_shares(batch_size, fitting, batch_dice=True)
    with pytest.raises(DualCLError, match=rf"{num_gpus} GPUs cannot share .* Use -num_gpus {fitting}, or"):
        check_shares(batch_size, num_gpus, batch_dice=True)
