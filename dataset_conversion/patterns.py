"""File patterns of the user: a glob, or a regular expression with named groups, over paths relative to the source."""

from __future__ import annotations

import argparse
import os
import re
import unicodedata
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from nnunet_dualcl.errors import DualCLError


def compiled(pattern: str, *, groups: tuple[str, ...]) -> re.Pattern[str]:
    """A regular expression for whole relative paths with ``/``.

    Args:
        pattern: with ``(?P<`` a regular expression; otherwise a glob, in which ``**`` crosses folders, ``*``, ``?`` and
            ``[...]`` do not; the case is what the first ``*`` stands for in the last part of the path that has one.
        groups: names that a regular expression may use.

    Raises:
        DualCLError: it does not compile, or has a group of another name, or nothing that could tell cases apart.
    """
    text = pattern if is_expression(pattern) else _from_glob(pattern)
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


def is_expression(pattern: str) -> bool:
    """Whether a pattern is a regular expression, not a glob."""
    return "(?P<" in pattern


def by_folders(glob: str) -> dict[tuple[int, ...], str]:
    """Regular expressions that take patients, or patients and cases, from the folders of a glob that have a star.

    Keys say which of these folders, counted from 0: those of two globs with the same key belong together.
    """
    parts = _glob_parts(glob)
    folders = [
        index
        for index, part in enumerate(parts)
        if part == "**/" or (part == "*" and any("/" in later for later in parts[index + 1 :]))
    ]
    chosen = [*combinations(range(len(folders)), 1), *combinations(range(len(folders)), 2)]
    return {
        each: _translated(parts, {folders[rank]: group for rank, group in zip(each, ("patient", "case"), strict=False)})
        for each in chosen
    }


def why_no_match(pattern: str, folder: Path) -> str:
    """What may be wrong with a pattern that meets no file below ``folder``, as sentences; empty where nothing shows."""
    hints = ""
    above = Path(os.path.abspath(folder)).parts[1:]
    begins = ["/".join(above[index:]) + "/" for index in range(len(above))]
    begin = next((each for each in begins if pattern.removeprefix("./").lstrip("/").startswith(each)), None)
    if begin is not None or pattern.startswith("/"):
        hints += f" Patterns are relative to {folder}" + (f": leave out {begin!r}." if begin else ".")
    if not is_expression(pattern) and any(_is_set(part) for part in _glob_parts(pattern)):
        hints += " [...] stands for one of the characters in it; write [[] for a bracket in a name."
    return hints


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
    """Relative path with ``/`` -> file, sorted; hidden files and folders are passed over.

    Links to folders are followed where the folder is not found without them, and once.

    Raises:
        DualCLError: there is no such folder, or a name in it is no UTF-8.
    """
    if not folder.is_dir():
        raise DualCLError(f"{folder} is no folder. Give the one that holds the data.")
    found: dict[str, Path] = {}
    seen = {folder.resolve()}
    pending = [folder]
    while pending:
        links: list[Path] = []
        for place, folders, names in os.walk(pending.pop(0)):
            kept = []
            for name in sorted(name for name in folders if not name.startswith(".")):
                path = Path(place, name)
                if path.is_symlink():
                    links.append(path)
                elif path.resolve() not in seen:
                    seen.add(path.resolve())
                    kept.append(name)
            folders[:] = kept
            for name in names:
                if not name.startswith("."):
                    path = Path(place, name)
                    found[path.relative_to(folder).as_posix()] = path
        for link in sorted(links):  # one to a folder above would never end
            if link.resolve() not in seen:
                seen.add(link.resolve())
                pending.append(link)
    for relative in found:
        if not _is_text(relative):
            shown = os.fsencode(relative).decode("utf-8", "backslashreplace")
            raise DualCLError(
                f"{folder}: the name {shown} is no UTF-8, so it can be neither read nor reported. Rename it, or all "
                "such names: convmv -f latin1 -t utf8 -r --notest FOLDER."
            )
    return dict(sorted(found.items()))


class Once(argparse.Action):
    """Store the value of an option; a second one would take the place of the first without a word."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Called by argparse.

        Raises:
            DualCLError: the option was given before.
        """
        if getattr(namespace, self.dest) is not None:
            raise DualCLError(f"{option_string} is given twice. Join both in one regular expression, as in 'A|B'.")
        setattr(namespace, self.dest, values)


def safe_names(names: list[str]) -> Mapping[str, str]:
    """Each name -> letters, digits, underscores and hyphens, still unique: accents go, other signs become ``-``."""
    taken: dict[str, str] = {}
    result: dict[str, str] = {}
    for name in sorted(set(names)):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-") or "unnamed"
        candidate, number = base, 2
        while candidate in taken:
            candidate, number = f"{base}-{number}", number + 1
        taken[candidate] = name
        result[name] = candidate
    return result


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes of another encoding, which Python stands in for
        return False
    return True


def _from_glob(pattern: str) -> str:
    parts = _glob_parts(pattern)
    stars = [index for index, part in enumerate(parts) if part == "*"]
    while len(stars) > 1 and any("/" in part for part in parts[stars[0] : stars[-1]]):
        stars = stars[1:]  # the case is in the last part of the path that has a star, and is the first one there
    stars = stars or [index for index, part in enumerate(parts) if part in ("**", "**/")][-1:]
    return _translated(parts, dict.fromkeys(stars[:1], "case"))


def _glob_parts(pattern: str) -> list[str]:
    """Wildcards and the texts between them."""
    return re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^/][^]/]*\])", pattern.removeprefix("./"))


def _is_set(part: str) -> bool:
    """Whether a part of a glob is a ``[...]``, not a text that begins with a bracket."""
    return part.startswith("[") and part.endswith("]")


def _translated(parts: list[str], groups: Mapping[int, str]) -> str:
    """Parts of a glob as a regular expression, those at the indices of ``groups`` as groups of these names."""
    text = ""
    for index, part in enumerate(parts):
        inner = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        group = groups.get(index)
        if group is not None:
            folders = part == "**/"
            text += (
                f"(?:[^/]+/)*(?P<{group}>[^/]+)/" if folders else f"(?P<{group}>{'.+' if part == '**' else '[^/]+'})"
            )
        elif inner is not None:
            text += inner
        elif _is_set(part):
            signs = re.sub(r"([\\\[\]^&~|])", r"\\\1", part[1:-1].removeprefix("!"))
            negated = part[1] == "!"
            text += "(?!/)" if negated or "-" in signs else ""  # which is in some ranges
            text += f"[{'^' if negated else ''}{signs}]"
        else:
            text += re.escape(part)
    return text
