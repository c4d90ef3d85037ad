"""worldloom: packed training sequences of 1K to 1M tokens, proven right, and a compact trainer for them.

The shortest ways in are `worldloom --help`, `worldloom.open(DIR)` for a directory of shards, and README.md.
"""

__version__ = "0.1.0"
