"""What became of each key of a config that is converted. None is left out: what no rule knows is named as unknown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from potstill.document import Document, Steps, dotted

Fate = Literal["carried", "ours", "left", "unknown"]
WORDS: dict[Fate, str] = {
    "carried": "Carried over",
    "ours": "The way potstill works anyway, or no matter of a recipe",
    "left": "Not carried over",
    "unknown": "Not known here, and so not carried over",
}
"""How each fate is called in the list, in its order."""


@dataclass(frozen=True)
class Entry:
    """One key."""

    steps: Steps
    place: str
    """file:line"""
    fate: Fate
    words: str


@dataclass
class Account:
    """The keys of a document, each with what became of it. Whatever is read through here counts as accounted for."""

    document: Document
    values: Mapping[str, Any]
    """The document's value, as it was written."""
    entries: dict[Steps, Entry] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the top; the default where there is none, or null. It is not accounted for by that."""
        value = self.values.get(key)
        return default if value is None else value

    def has(self, key: str) -> bool:
        """Whether the key stands there with a value."""
        return self.values.get(key) is not None

    def note(self, key: str | Steps, fate: Fate, words: str) -> None:
        """What became of a key. Keys that do not stand in the file are passed over; the first word holds."""
        steps: Steps = (key,) if isinstance(key, str) else key
        if self._stands(steps) and steps not in self.entries:
            self.entries[steps] = Entry(steps, self.document.place(steps), fate, words)

    def note_all(self, keys: str, fate: Fate, words: str) -> None:
        """The same of several, written with blanks between them."""
        for key in keys.split():
            self.note(key, fate, words)

    def settle(self) -> None:
        """Name every key that nothing was said of. One without a value asks for nothing."""
        for steps in self._leaves():
            if not any(steps[:length] in self.entries for length in range(1, len(steps) + 1)):
                empty = self._value(steps) is None
                self.note(steps, "ours" if empty else "unknown", "it is empty" if empty else "")

    def of(self, fate: Fate) -> list[Entry]:
        """Those of one fate, in the order of the file."""
        order = {steps: place for place, steps in enumerate(self.document.places)}
        return sorted((e for e in self.entries.values() if e.fate == fate), key=lambda e: order.get(e.steps, 0))

    def lines(self) -> Iterator[str]:
        """The list for a person, a key a line."""
        for fate, title in WORDS.items():
            if found := self.of(fate):
                yield f"{title}:"
                for entry in found:
                    line = entry.place.rpartition(":")[2]
                    yield f"  {dotted(entry.steps)} (line {line}){': ' if entry.words else ''}{entry.words}"

    def _stands(self, steps: Steps) -> bool:
        return steps in self.document.places

    def _value(self, steps: Steps) -> Any:
        return self.document.get(steps)

    def _leaves(self) -> Iterator[Steps]:
        """Keys of the top; and of mappings that are looked into, their keys."""
        for key in self.values:
            looked_into = [steps for steps in self.entries if len(steps) > 1 and steps[0] == key]
            if looked_into and (key,) not in self.entries:
                yield from self._inside((key,), looked_into)
            else:
                yield (key,)

    def _inside(self, at: Steps, looked_into: list[Steps]) -> Iterator[Steps]:
        value = self._value(at)
        children = (
            [(*at, k) for k in value] if isinstance(value, dict)
            else [(*at, n) for n in range(len(value))] if isinstance(value, list) else []
        )  # fmt: skip
        for child in children:
            if any(steps[: len(child)] == child and steps != child for steps in looked_into):
                yield from self._inside(child, looked_into)
            else:
                yield child
