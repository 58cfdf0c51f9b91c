"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """Something the user can mend; the message is one sentence that says what and how.

    The command line prints it without a traceback and exits with code 2.
    """
