"""The one exception for user errors."""


class InputError(Exception):
    """What the user gave cannot be used.

    The message is one line: what is wrong, where, and what to do instead. The command prints it and
    exits with code 2; library callers can catch it.
    """
