"""The ledger: every record read is kept, dropped or failed, and the sums must agree."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import RunFailed

KEPT, DROPPED, FAILED = "kept", "dropped", "failed"
NO_REPLY = "no reply"  # the reason of a failure that is the server's, not the record's


@dataclass
class Ledger:
    """Count records, and tokens, by what became of them.

    Attributes:
      read, kept, dropped, failed: records; in a pack unit, examples.
      reasons: dropped and failed records by `"dropped: reason"` or `"failed: reason"`.
      tasks: per task, the kept examples or segments, their tokens and their trained tokens.
      tokens_read, tokens_dropped: tokens that came in, and those that no row holds (pack units).
      tokens_cut: of the dropped ones, those that were cut out of plain text since they are on the eval side too.
      usage: what was asked of a service, for example a language model's requests and tokens.
    """

    read: int = 0
    kept: int = 0
    dropped: int = 0
    failed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens_read: int = 0
    tokens_dropped: int = 0
    tokens_cut: int = 0
    usage: dict[str, int] = field(default_factory=dict)

    def count(self, status: str, reason: str = "") -> None:
        """Count what became of a record. `read` is counted apart, where records are read, so that a loss shows."""
        setattr(self, status, getattr(self, status) + 1)
        if reason:
            key = f"{status}: {reason}"
            self.reasons[key] = self.reasons.get(key, 0) + 1

    def count_task(self, task: str, tokens: int, trained: int) -> None:
        """Count one kept example, or one segment."""
        counts = self.tasks.setdefault(task, {"examples": 0, "tokens": 0, "trained": 0})
        counts["examples"] += 1
        counts["tokens"] += tokens
        counts["trained"] += trained

    def count_usage(self, usage: dict[str, int]) -> None:
        """Add what was asked of a service."""
        for name, n in usage.items():
            self.usage[name] = self.usage.get(name, 0) + n

    @property
    def balanced(self) -> bool:
        return self.read == self.kept + self.dropped + self.failed

    @property
    def failure_rate(self) -> float:
        """Failed records as a fraction of those read; 0 where nothing was read."""
        return self.failed / self.read if self.read else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data with sorted keys inside."""
        data = asdict(self)
        data["reasons"] = dict(sorted(self.reasons.items()))
        data["tasks"] = dict(sorted(self.tasks.items()))
        data["usage"] = dict(sorted(self.usage.items()))
        return data

    def add(self, other: "Ledger") -> None:
        """Add another ledger's counts to this one's."""
        for name in ("read", "kept", "dropped", "failed", "tokens_read", "tokens_dropped", "tokens_cut"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, n in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + n
        self.count_usage(other.usage)
        for task, counts in other.tasks.items():
            mine = self.tasks.setdefault(task, dict.fromkeys(counts, 0))
            for name, n in counts.items():
                mine[name] += n


def total(ledgers: Iterable[Ledger]) -> Ledger:
    """Add ledgers up."""
    result = Ledger()
    for ledger in ledgers:
        result.add(ledger)
    return result


def check_failures(ledger: Ledger, limit: float) -> None:
    """Refuse a job in which too many records failed.

    Raises:
      RunFailed: if the rate is above `limit`, with the most frequent reasons.
    """
    if ledger.failure_rate > limit:
        failures = {k.removeprefix("failed: "): n for k, n in ledger.reasons.items() if k.startswith(FAILED)}
        worst = ", ".join(f"{r} ({n})" for r, n in sorted(failures.items(), key=lambda item: (-item[1], item[0]))[:3])
        remedy = "mend the input or raise limits.failed and build again: finished units are kept"
        if NO_REPLY in failures:
            remedy = "look after the server and call the same command again: what has no reply is asked again"
        raise RunFailed(
            f"{ledger.failed} of {ledger.read} records failed, {ledger.failure_rate:.1%}, and limits.failed allows "
            f"{limit:.1%}: mostly {worst}. They are listed in rejects/; {remedy}"
        )
