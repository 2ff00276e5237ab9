"""The one exception whose text is meant for the user."""


class UserError(Exception):
    """Something the user can mend: a recipe, a file, a flag.

    The message is a single line that names the key, file or line at fault, the value found, and what to do.
    Entrypoints print it as ``error: …`` on stderr and exit with code 2; no traceback.
    """
