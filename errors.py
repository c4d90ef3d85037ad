"""The errors whose text is meant for the user's eyes."""


class UserError(ValueError):
    """Say in one plain sentence what is wrong with a call, a recipe or an input, and the remedy."""


class RunFailed(UserError):
    """Say why a run that began as it should could not end so, and how it goes on."""
