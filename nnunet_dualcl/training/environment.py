"""Environment variables set for the length of a block; nnU-Net reads several of its options from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def variable(name: str, value: str | None) -> Iterator[None]:
    """Set ``name`` to ``value`` (None: leave it) inside the block and restore it after."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextmanager
def variables(settings: Mapping[str, str]) -> Iterator[None]:
    """Several of them at once."""
    with ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(variable(name, value))
        yield


@contextmanager
def nnunet_folders(
    folder: Path, *, raw: Path | None = None, preprocessed: Path | None = None, results: Path | None = None
) -> Iterator[None]:
    """nnU-Net's three folders inside ``folder`` unless they are given, made and named in its variables."""
    places = {
        "nnUNet_raw": raw or folder / "nnUNet_raw",
        "nnUNet_preprocessed": preprocessed or folder / "nnUNet_preprocessed",
        "nnUNet_results": results or folder / "nnUNet_results",
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    with variables({name: str(place) for name, place in places.items()}):
        yield
