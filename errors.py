"""The one error whose text is meant for the user's eyes."""


class UserError(ValueError):
    """Say in one plain sentence what is wrong with a call, a recipe or an input, and the remedy."""
