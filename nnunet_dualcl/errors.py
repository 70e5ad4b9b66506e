"""The one exception that means "your input, not our code": its message names the fault and the fix."""


class DualCLError(RuntimeError):
    """A fault the user can mend.

    The command line prints the message without a traceback; where a process of several GPUs fails, torch puts one
    before it.
    """
