"""YAML files that people write; a key that is there twice is a fault, where YAML's own loader takes the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nnunet_dualcl.errors import DualCLError


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str) -> dict[Any, Any]:
    """``key: value`` lines of a file; an empty file has none.

    Args:
        path: the file.
        what: the file's name in messages, such as "configuration".

    Raises:
        DualCLError: it is missing, no YAML, no mapping, or has a key twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except OSError as error:
        raise DualCLError(f"Cannot read the {what} {path}: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, an impossible date
        raise DualCLError(f"The {what} {path} is no valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise DualCLError(f"The {what} {path} must hold 'key: value' lines, found {type(values).__name__}.")
    return values
