"""The one error that a user can mend."""


class BenchError(Exception):
    """What a user can mend: the rule, what came instead, and the mend, in one line.

    The command line prints it in red and exits with code 2; nothing else is caught there.
    """
