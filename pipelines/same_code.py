"""The check that a worker runs the submitter's very code, made before anything that was sent is opened."""

from dataclasses import dataclass, field

from ..errors import UserError
from .staged import code_digest


@dataclass(frozen=True)
class Sealed:
    """Objects in bytes, on their way to a worker, and the digest of the code that they were sealed by.

    Other code may not even know the objects' classes, so they stay closed until the digests are compared.
    """

    content: bytes
    digest: str = field(default_factory=code_digest)


def opened(sealed: Sealed) -> bytes:
    """Return what was sealed.

    Raises:
      UserError: if the code here is another.
    """
    if sealed.digest != code_digest():
        raise UserError(
            f"this worker has another worldloom (code {code_digest()[:8]}, the submitter's is {sealed.digest[:8]}): "
            "install the same one on both, restart the workers and call the same command again"
        )
    return sealed.content
