"""The check that a worker runs the submitter's very code, made before anything else that was sent is opened."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .staged import code_digest


@dataclass(frozen=True)
class SameCode:
    """Carry the digest of the submitter's code. Where it arrives among other code, opening it is refused.

    What is sent is opened in order, so this must be the first attribute of its carrier: other code may not even know
    the classes of the rest.
    """

    digest: str = field(default_factory=code_digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return received, (self.digest,)


def received(digest: str) -> SameCode:
    """Make the carried digest again.

    Raises:
      UserError: if the code here is another.
    """
    if digest != code_digest():
        raise UserError(
            f"this worker has another worldloom (code {code_digest()[:8]}, the submitter's is {digest[:8]}): "
            "install the same one on both, restart the workers and call the same command again"
        )
    return SameCode(digest)
