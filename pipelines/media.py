"""Pictures and clips on their way to the tokenizer: what may be wrong with one, and what is asked of it."""


class Unfit(Exception):
    """Say why a picture or clip becomes no example.

    Attributes:
      status: `dropped` where a filter says so, `failed` where it is damaged.
      reason: a short phrase that is counted.
      detail: what exactly was found.
    """

    def __init__(self, status: str, reason: str, detail: str = ""):
        super().__init__(status, reason, detail)
        self.status, self.reason, self.detail = status, reason, detail

    def __str__(self) -> str:
        return f"{self.reason}, {self.detail}" if self.detail else self.reason
