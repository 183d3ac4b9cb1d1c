"""The one exception that speaks to the user."""


class UserError(Exception):
    """Something the user can mend: the message is one line that says what is wrong, where, and the remedy.

    The command line prints it without a stack trace and ends with exit code 2 (`--verbose` shows the trace).
    """
