"""Counts what preparation did to its samples, by kind, and names the first few of each kind."""

from astrollava_jax.data.faults import visible

NAMED = 5
"""Names kept per kind: enough to look one up, few enough for a screen."""

_LONGEST_NAME = 500


class Refused(ValueError):
    """A sample that cannot become a record."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class Tally:
    """How often each kind of thing happened."""

    def __init__(self):
        self.counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def count(self, kind: str, name: str = "") -> None:
        """One more of a kind; `name` says which one it was, where it matters."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        names = self._names.setdefault(kind, [])
        if name and len(names) < NAMED:
            names.append(visible(name, _LONGEST_NAME))

    def refuse(self, refused: Refused) -> None:
        """One more sample that was not taken."""
        self.count(f"not taken: {refused.kind}", refused.detail)

    def __str__(self) -> str:
        width = max(map(len, self.counts), default=0)
        lines = []
        for kind, count in self.counts.items():
            lines.append(f"{kind:<{width}}  {count:>8}")
            names = self._names[kind]
            lines += [f"    {name}" for name in names]
            if names and count > len(names):
                lines.append(f"    and {count - len(names)} more")
        return "\n".join(lines)
