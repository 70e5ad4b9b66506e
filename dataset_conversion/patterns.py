"""File patterns of the user: a glob, or a regular expression with named groups, over paths relative to the source."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from nnunet_dualcl.errors import DualCLError


def compiled(pattern: str, *, groups: tuple[str, ...]) -> re.Pattern[str]:
    """A regular expression for whole relative paths with ``/``.

    Args:
        pattern: with ``(?P<`` a regular expression; otherwise a glob, in which ``**`` crosses folders, ``*`` and ``?``
            do not; the case is what the first ``*`` stands for in the last part of the path that has one.
        groups: names that a regular expression may use.

    Raises:
        DualCLError: it does not compile, or has a group of another name, or nothing that could tell cases apart.
    """
    text = pattern if "(?P<" in pattern else _from_glob(pattern)
    expression = regular_expression(text)
    odd = sorted(set(expression.groupindex) - set(groups))
    if odd:
        raise DualCLError(f"{pattern!r} has a group {', '.join(odd)}; known are {', '.join(groups)}.")
    if not {"case", "patient"} & set(expression.groupindex):
        raise DualCLError(
            f"{pattern!r} tells no cases apart. Put a * where the case's name is, or a group (?P<case>...) or "
            "(?P<patient>...) into a regular expression."
        )
    return expression


def regular_expression(text: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """``text`` compiled, or a :class:`DualCLError` that shows what is wrong with it."""
    try:
        return re.compile(text, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise DualCLError(f"{text!r} is no regular expression: {error}.") from None


def named_patterns(pairs: list[str], option: str) -> dict[str, str]:
    """``NAME=REGEX`` arguments as a dictionary in their order; ``NAME`` alone stands for anything.

    Raises:
        DualCLError: an empty name, or one given twice.
    """
    named: dict[str, str] = {}
    for pair in pairs:
        name, _, pattern = pair.partition("=")
        if not name or name in named:
            raise DualCLError(f"{option} {pair}: give each name once, as in {option} NAME=REGEX.")
        named[name] = pattern
    return named


def files_below(folder: Path) -> dict[str, Path]:
    """Relative path with ``/`` -> file, sorted; links are followed once, hidden files and folders passed over.

    Raises:
        DualCLError: there is no such folder.
    """
    if not folder.is_dir():
        raise DualCLError(f"{folder} is no folder. Give the one that holds the data.")
    found: dict[str, Path] = {}
    seen = {folder.resolve()}
    for place, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = Path(place, name).resolve()
            if not name.startswith(".") and real not in seen:  # a link to a folder above would never end
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in names:
            if not name.startswith("."):
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def safe_names(names: list[str]) -> Mapping[str, str]:
    """Each name -> letters, digits, underscores and hyphens, still unique: accents go, other signs become ``-``."""
    taken: dict[str, str] = {}
    result: dict[str, str] = {}
    for name in sorted(set(names)):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-") or "case"
        candidate, number = base, 2
        while candidate in taken:
            candidate, number = f"{base}-{number}", number + 1
        taken[candidate] = name
        result[name] = candidate
    return result


def _from_glob(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    stars = [index for index, part in enumerate(parts) if part == "*"]
    while len(stars) > 1 and any("/" in part for part in parts[stars[0] : stars[-1]]):
        stars = stars[1:]  # the case is in the last part of the path that has a star, and is the first one there
    stars = stars or [index for index, part in enumerate(parts) if part in ("**", "**/")][-1:]
    text = ""
    for index, part in enumerate(parts):
        inner = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        if inner is None:
            text += re.escape(part)
        elif stars and index == stars[0]:
            text += "(?:[^/]+/)*(?P<case>[^/]+)/" if part == "**/" else f"(?P<case>{'.+' if part == '**' else '[^/]+'})"
        else:
            text += inner
    return text
