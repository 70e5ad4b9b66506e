"""Head and neck CT of OpenKBP: five organs, and a pool of patients without all of their contours."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

from nnunet_dualcl.cli.main import main

DATA = Path(os.environ.get("DUALCL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
OPENKBP = DATA / "openkbp_oar"
ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible")

pytestmark = pytest.mark.skipif(
    not OPENKBP.is_dir(), reason=f"no {OPENKBP.name} in {DATA}; name its parent in DUALCL_TEST_DATA"
)


def test_labeled_patients_and_the_unlabeled_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    few = r"(?P<case>kbp_00\d)"
    labels = [part for value, organ in enumerate(ORGANS, 1) for part in ("--label", f"{organ}={value}")]
    arguments = ["-d", "36", "-n", "OpenKBP", "-np", "1", "--channel", "CT", *labels]
    images = rf"(imagesTr|unlabeled)/{few}_0000\.nii\.gz"
    assert (
        main(
            ["convert", "folder", str(OPENKBP), "--images", images, "--labels", rf"labelsTr/{few}\.nii\.gz", *arguments]
        )
        == 0
    )
    target = tmp_path / "Dataset036_OpenKBP"
    verify_dataset_integrity(str(target), num_processes=1)
    for folder, source in (("imagesTr", "imagesTr"), ("imagesUnlabeled", "unlabeled")):
        names = sorted(path.name for path in (target / folder).iterdir())
        assert names == sorted(path.name for path in (OPENKBP / source).glob("kbp_00?_0000.nii.gz"))
        for name in names:
            written, given = (sitk.ReadImage(str(place / name)) for place in (target / folder, OPENKBP / source))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(given))
            np.testing.assert_allclose(written.GetDirection(), given.GetDirection(), atol=1e-6)
    report = json.loads((target / "conversion" / "report.json").read_text(encoding="utf-8"))
    assert report["counts"]["unlabeled"] > 0
    for case in report["cases"]:
        assert case["role"] == "unlabeled" or min(case["voxels"].values()) > 0
