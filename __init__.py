"""worldloom: packed training sequences of 1K to 1M tokens, proven right, and a compact trainer for them.

The shortest ways in are `worldloom --help`, `open_dataset(DIR)` for a directory of shards, and README.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .packing.dataset import open_dataset

__version__ = "0.1.0"
__all__ = ["__version__", "open_dataset"]


def __getattr__(name: str) -> Any:
    """Load `open_dataset` when it is first asked for, so that importing worldloom costs nothing."""
    if name == "open_dataset":
        from .packing.dataset import open_dataset

        return open_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
