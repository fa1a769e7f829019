"""The error whose message is enough. Any other error is a fault, and is shown with its traceback."""


class InputError(ValueError):
    """Bad input, or something that this machine lacks: one sentence that says what to do."""
