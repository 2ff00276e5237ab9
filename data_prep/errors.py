"""Defines the exception whose message is for the user."""


class UserError(Exception):
    """An error that the user can fix, in a recipe, a file or a flag.

    The message is a single line that names the key, file or line at fault, the value found, and what to do.
    Entrypoints print it as ``error: …`` on stderr and exit with code 2; no traceback.
    """
