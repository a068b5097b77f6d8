"""What a user can mend, as exceptions: lower rooms raise them, the command line turns them into one line."""


class DataError(Exception):
    """CIFAR-10 cannot be had or read; the message is for the user."""


class UsageError(Exception):
    """Settings that are each valid but not together, or a file that is not what it is said to be."""


class SettingError(UsageError, ValueError):
    """A setting has a value that it cannot have. The text starts with its name, which the command line shows as a flag.

    Attributes:
        name: Of the setting.
    """

    def __init__(self, name: str, value: object, reason: str) -> None:
        shown = str(value)
        super().__init__(f"{name} {shown if len(shown) < 80 else shown[:77] + '...'}: {reason}")
        self.name = name
