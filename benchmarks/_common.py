"""What every measurement records about where it was made."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nnunet_dualcl.provenance import source_commit


def circumstances() -> dict[str, Any]:
    """Versions, hardware, date and commit."""
    return {
        "commit": source_commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "nnunetv2", "nnunet-dualcl")},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result where a path is given, and print it."""
    text = json.dumps({**result, "circumstances": circumstances()}, indent=2)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)
