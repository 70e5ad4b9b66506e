"""What a multi-frame file says about its frames, in the groups it shares or in those of each frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom


def read_groups(path: Path) -> Any:
    """Header of a multi-frame file with its functional groups, without pixel data."""
    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def frame_groups(header: Any) -> list[tuple[Any, ...]]:
    """For each frame the data sets in which to look for a functional group: its own, then the shared one."""
    shared = tuple(header.get("SharedFunctionalGroupsSequence") or [])
    return [(own, *shared) for own in header.get("PerFrameFunctionalGroupsSequence") or []]


def functional_group(groups: tuple[Any, ...], sequence: str, name: str) -> Any | None:
    """The value of tag ``name`` in the group ``sequence``, None where no group has it."""
    for group in groups:
        for item in group.get(sequence) or []:
            if item.get(name) is not None:
                return item.get(name)
    return None
