"""The one exception that a user's mistake or machine may cause."""


class UserError(Exception):
    """Something the user can mend. The message is one sentence: what is wrong, where, and what to do."""
