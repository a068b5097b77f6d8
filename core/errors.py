"""Exceptions for what a user can fix. The command line prints each as one line."""


class DataError(Exception):
    """CIFAR-10 cannot be downloaded, read or written."""


class UsageError(Exception):
    """Settings contradict each other, or an input file is not of the expected kind."""


class SettingError(UsageError, ValueError):
    """A setting has an invalid value. The text starts with the setting's name, which the command line shows as a flag.

    Attributes:
        name: The name of the setting.
    """

    def __init__(self, name: str, value: object, reason: str) -> None:
        shown = str(value)
        super().__init__(f"{name} {shown if len(shown) < 80 else shown[:77] + '...'}: {reason}")
        self.name = name
