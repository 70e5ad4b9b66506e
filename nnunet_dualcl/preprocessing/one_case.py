"""One unlabeled case through nnU-Net's preprocessor, behind a look at its images."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl.preprocessing.record import MADE_OF, changed, identity

PROPERTIES_ENDING = ".pkl"
"""Properties move last, so a case whose properties file exists is complete."""

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE)


@dataclass(frozen=True)
class Job:
    """Everything a worker needs, in plain values."""

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    folder: Path


def fault_of(job: Job, case: str, files: list[Path]) -> str | None:
    """Preprocess one case, all of it or nothing; what is wrong with it, or None. Made for worker processes.

    Raises:
        OSError: no fault of the case; see :func:`of_the_disk`.
    """
    printed = io.StringIO()  # nnU-Net's readers print the reason and raise an empty error
    try:
        with contextlib.redirect_stdout(printed):
            _preprocess_case(job, case, files)
    except Exception as error:
        if of_the_disk(error):
            raise
        names = ", ".join(str(path) for path in files)
        return f"{names}: {str(error).strip() or printed.getvalue().strip() or type(error).__name__}"
    sys.stdout.write(printed.getvalue())
    return None


def of_the_disk(error: object) -> bool:
    """Whether the disk is full, over its quota, read-only or gone, which every further case would meet, too."""
    return isinstance(error, OSError) and error.errno in _DISK_FAULTS


@contextlib.contextmanager
def whole_case(folder: Path, case: str, is_finished: Callable[[], bool]) -> Iterator[str]:
    """Yield where nnU-Net is to save a case; its files then move into ``folder``, unless it is finished by then."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{case}.partial-") as partial_folder:
        try:
            yield os.path.join(partial_folder, case)
        except RuntimeError:  # all that blosc2 says of a full disk; this says it better
            Path(partial_folder, "probe").write_bytes(bytes(2**20))
            raise
        if is_finished():
            return
        written = sorted(Path(partial_folder).iterdir(), key=lambda path: path.suffix == PROPERTIES_ENDING)
        for path in written:
            os.replace(path, folder / path.name)


def _preprocess_case(job: Job, case: str, files: list[Path]) -> None:
    # folds that start together preprocess the same cases: what one has finished may be in use by its training
    is_finished = partial(_is_finished, job.folder / f"{case}{PROPERTIES_ENDING}", files)
    if is_finished():
        return
    plans_manager = PlansManager(job.plans)
    configuration = plans_manager.get_configuration(job.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    for path in files:
        _check_nifti_voxels(path)
    # run_case_save reads, processes and saves; the check sits between reading and processing
    channels = len(job.dataset_json.get("channel_names", job.dataset_json.get("modality", {})))
    preprocessor.run_case_npy = partial(
        _checked_run, preprocessor.run_case_npy, channels, len(configuration.patch_size), identity(files)
    )
    with whole_case(job.folder, case, is_finished) as place:
        preprocessor.run_case_save(
            place, [str(path) for path in files], None, plans_manager, configuration, job.dataset_json
        )


def _is_finished(properties: Path, files: list[Path]) -> bool:
    return properties.is_file() and not changed(properties, files)


def _check_nifti_voxels(path: Path) -> None:
    """Look at the stored numbers of a floating point NIfTI: SimpleITK hands out NaN and infinity as 0."""
    if not path.name.endswith((".nii", ".nii.gz")):
        return
    stored = nibabel.load(path).dataobj  # type: ignore[attr-defined]
    if stored.dtype.kind == "f":
        _check_finite(np.asanyarray(stored.get_unscaled()))


def _check_finite(voxels: np.ndarray) -> None:
    finite = np.isfinite(voxels)
    if not finite.all():
        raise ValueError(f"{finite.size - finite.sum()} voxels are NaN or infinite; mend the image or take it out")


def _checked_run(
    run_case_npy: Any,
    channels: int,
    patch_dimension: int,
    made_of: list[dict[str, Any]],
    data: np.ndarray,
    *rest: Any,
) -> Any:
    """nnU-Net's ``run_case_npy`` behind a look at the image (channels, z, y, x); notes which files it came from."""
    if data.shape[0] != channels:
        fix = "split 4D images into one file a channel" if data.shape[0] > channels else "add what is missing"
        raise ValueError(f"{data.shape[0]} channels in these files, dataset.json names {channels}; {fix}")
    if patch_dimension == 3 and 1 in data.shape[1:]:
        raise ValueError(
            f"a single slice (shape {data.shape[1:]}) among 3D images; take it out or use a 2d configuration"
        )
    _check_finite(data)
    if data.min() == data.max():
        raise ValueError("all voxels have the same value, so it shows nothing; take it out")
    data, segmentation, properties = run_case_npy(data, *rest)
    return data, segmentation, {**properties, MADE_OF: made_of}
