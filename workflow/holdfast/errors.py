"""The one error a user sees: what is wrong, where, what to do."""


class HoldfastError(Exception):
    """Bad input (config, checkpoint, data, cluster), told in one line.

    Args:
        what: what is wrong.
        where: the file, key or place it is wrong in.
        remedy: what to do about it.
    """

    exit_code = 2  # of the command that it ends

    def __init__(self, what: str, where: str, remedy: str) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(f"{where}: {what}; {remedy}")


def first_line(error: BaseException) -> str:
    """What an error of others says, in one line: its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
