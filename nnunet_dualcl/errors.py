"""The one exception that means "your input, not our code": its message names the fault and the fix."""

from collections.abc import Sequence

_FEW = 5


class DualCLError(RuntimeError):
    """A fault the user can mend.

    The command line prints the message without a traceback; where a process of several GPUs fails, torch puts one
    before it.
    """


def first_few(names: Sequence[str], separator: str = ", ") -> str:
    """The first names for a message, with dots where there are more."""
    return separator.join(names[:_FEW]) + (" ..." if names[_FEW:] else "")
