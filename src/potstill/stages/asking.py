"""What stages that ask a model have in common: prompts that a user may replace, and what to do with a bad reply."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from potstill.errors import DataError, reason
from potstill.prompts import compile_prompt, render_prompt
from potstill.sources import Inputs
from potstill.stages.base import Reference, StageConfig
from potstill.teachers.base import Reply

LARGEST_PROMPT = 1_000_000  # bytes


class Asking(StageConfig):
    """A stage that asks a model."""

    PROMPTS: ClassVar[tuple[str, ...]] = ()
    """The prompt files that it renders."""

    prompt_files: dict[str, Annotated[str, Reference(("file",))]] = Field(default_factory=dict)
    """Your own wording in place of potstill's, by the prompt's name: {self_instruct: mine.txt}. Jinja2 text; the
    originals, with the blanks that each may use, lie in potstill/prompts."""
    truncated: Literal["drop", "keep"] = "drop"
    """A reply that was cut at max_tokens: leave its row out, or use what there is."""
    ask_again: int = Field(default=0, ge=0, le=100)
    """How often to ask once more, with another seed, where a reply is cut, empty or cannot be read."""

    @field_validator("prompt_files")
    @classmethod
    def _known_prompts(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if name not in cls.PROMPTS:
                raise ValueError(f"there is no prompt '{name}' here; expected one of: {', '.join(cls.PROMPTS)}")
        return files

    def accepting(self, reads: Callable[[str], object]) -> Callable[[Reply], bool]:
        """Whether a reply is of use: it may be used as far as its end tells, and something can be read from it."""
        return lambda reply: self.is_whole(reply) and bool(reads(reply.text))

    def is_whole(self, reply: Reply) -> bool:
        """Whether a reply may be used, as far as its end tells."""
        return reply.finish == "stop" or (reply.finish == "length" and self.truncated == "keep" and bool(reply.text))


class Prompts:
    """The prompts of a stage: the user's own file where there is one, potstill's otherwise."""

    def __init__(self, inputs: Inputs, under: str = "") -> None:
        """`under`: where in the config the field `prompt_files` stands, with a dot at its end."""
        self._own: dict[str, Any] = {}
        for slot, data in inputs.data.items():
            head, _, name = slot.removeprefix(under).partition(".")
            if slot.startswith(under) and head == "prompt_files" and name:
                (file,) = data
                try:
                    if file.path.stat().st_size > LARGEST_PROMPT:
                        what = f"it has more than {LARGEST_PROMPT:,} bytes, which is no prompt"
                        raise DataError(file.name, what, "Name the file of a prompt")
                    text = file.path.read_bytes().decode("utf-8")
                except OSError as error:
                    raise DataError(file.name, f"it cannot be read: {reason(error)}", "Mend its permissions") from error
                except UnicodeDecodeError as error:
                    raise DataError(file.name, "it is no text in UTF-8", "Save it as UTF-8") from error
                self._own[name] = compile_prompt(text, file.name)

    def render(self, name: str, **values: Any) -> str:
        """The prompt with its blanks filled. DataError where a user's file names a blank that is not there."""
        own = self._own.get(name)
        return render_prompt(name, **values) if own is None else str(own(values))


@dataclass
class Tally:
    """How the replies ended, for a stage's facts."""

    finishes: Counter[str] = field(default_factory=Counter)

    def add(self, reply: Reply) -> Reply:
        """Count a reply; gives it back."""
        self.finishes[reply.finish] += 1
        return reply

    def facts(self) -> Mapping[str, int]:
        """By how they ended: stop, length, refusal, filter, empty, error."""
        return dict(sorted(self.finishes.items()))
