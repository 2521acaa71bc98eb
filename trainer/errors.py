"""What a command can end with: the exit codes that scripts rely on, and the error that is the user's to mend."""

EXIT_USER_ERROR = 2
EXIT_SAVED = 75  # stopped early with everything saved; run again to continue


class UserError(Exception):
    """The input is wrong. The message says what was given, what was expected and what to do."""
