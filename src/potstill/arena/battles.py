"""Battles: two of the models, drawn and put in order at random, and their answers, shown together or not at all."""

import gc
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import psutil

from potstill.arena.votes import Battle, Cast, Side, Standing, Vote, keep, read_votes, standings
from potstill.errors import DataError, ModelError, PotstillError
from potstill.records import Message
from potstill.runs.made import find_model, is_model, sealed_models
from potstill.runs.workspace import open_run
from potstill.teachers.base import Reply, Request
from potstill.terminal.chat import Options

MOST_OPEN = 100
"""Battles that nobody has voted on yet; the oldest are forgotten."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, models may take so much."""
UNPACKED = 2.0
"""How much larger a model may be in memory than on the disk: on a CPU its weights become float32."""


class Answerer(Protocol):
    """A loaded model."""

    def say(self, request: Request) -> Reply:
        """Its whole answer."""
        ...

    def close(self) -> None:
        """Give back what it takes."""
        ...


Load = Callable[[str, Path], Answerer]
Doing = Literal["waits", "loads", "writes"]
"""What an arena does; never which model."""


def load_near(name: str, path: Path) -> Answerer:
    """A model in this process."""
    from potstill.speakers import NearSpeaker  # imports torch

    return NearSpeaker(name, path)


def free_bytes() -> float:
    """Of the device that models are loaded to. What models that are gone have left is given back first."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


@dataclass
class Stable:
    """Models, loaded as they are asked for; where memory is short, the one used longest ago goes first."""

    load: Load = load_near
    free: Callable[[], float] = free_bytes

    def __post_init__(self) -> None:
        self._loaded: OrderedDict[Path, Answerer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._loaded)

    def get(self, name: str, path: Path) -> Answerer:
        """The model of that name and folder. ModelError where it cannot be loaded."""
        if path not in self._loaded:
            while self._loaded and needed_bytes(path) > MEMORY_SHARE * self.free():
                _, oldest = self._loaded.popitem(last=False)
                oldest.close()
            try:
                self._loaded[path] = self.load(name, path)
            except PotstillError:
                raise
            except Exception as error:  # torch and transformers raise what they like, for want of memory too
                what = f"it cannot be loaded ({_told(error)})"
                raise ModelError(str(path), what, "Try it alone with potstill chat") from error
        self._loaded.move_to_end(path)
        return self._loaded[path]

    def close(self) -> None:
        """Give all of it back."""
        if self._loaded:
            while self._loaded:
                self._loaded.popitem()[1].close()
            self.free()


def needed_bytes(path: Path) -> float:
    """What a model may take in memory."""
    return UNPACKED * sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _told(error: Exception) -> str:
    """In one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class Arena:
    """The battles of one run. Several may ask at once; answers are written one after another."""

    def __init__(self, folder: Path, models: Mapping[str, Path], options: Options, stable: Stable) -> None:
        """`folder`: the run's, where votes are kept. The options' seed is no matter: each battle draws its own."""
        self.folder, self.broken = folder, dict[str, str]()
        self._stable, self._options = stable, options
        self._open: OrderedDict[str, Battle] = OrderedDict()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._models: Mapping[str, Path] = {}
        self.doing: Doing = "waits"
        self.offer(models)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models that take part."""
        return tuple(self._models)

    @property
    def loaded(self) -> int:
        """How many models are in memory."""
        return len(self._stable)

    def offer(self, models: Mapping[str, Path]) -> None:
        """These take part from the next question on. DataError where they are fewer than two."""
        if len(models) < 2:
            named = ", ".join(models) or "none"
            raise DataError("the arena", f"it needs two models or more, and has {named}", "Name another")
        for name in [name for name in self.broken if models.get(name) != self._models.get(name)]:
            del self.broken[name]  # it was made anew
        self._models = dict(models)

    def begin(self, question: str) -> Battle:
        """Two models answer; both answers are there when this returns, so that no clock tells which is which.

        ModelError where one cannot be loaded, which is named in `broken` and not drawn again, or cannot read the
        question; then it is not said which.
        """
        chance, options = secrets.SystemRandom(), self._options
        system = (Message(role="system", content=options.system),) if options.system else ()
        request = Request(
            (*system, Message(role="user", content=question)),
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=chance.getrandbits(31),
        )
        with self._writing:
            models = self._models
            able = [name for name in models if name not in self.broken]
            if len(able) < 2:
                what = f"only {', '.join(able) or 'none'} of its models can be loaded"
                raise ModelError("the arena", what, "Mend another, or run its stage again")
            shown = chance.sample(able, 2)
            try:
                sides = {name: self._answer(name, models[name], request) for name in chance.sample(shown, 2)}
            finally:
                self.doing = "waits"
        battle = Battle(secrets.token_urlsafe(12), request, *(sides[name] for name in shown))
        with self._lock:
            self._open[battle.id] = battle
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return battle

    def _answer(self, name: str, path: Path, request: Request) -> Side:
        self.doing = "loads"
        try:
            model = self._stable.get(name, path)
        except PotstillError as error:
            self.broken[name] = str(error)
            raise
        self.doing = "writes"
        reply = model.say(request)
        if reply.finish == "error":
            raise ModelError("the arena", reply.reason, "Ask something shorter")
        return Side(name, path.name, reply.text, reply.finish)

    def vote(self, battle_id: str, vote: Vote, voter: str) -> Battle:
        """Keep a vote, once; the battle, whose names may now be told. DataError where there is no such battle."""
        with self._lock:
            battle = self._open.pop(battle_id, None)
        if battle is None:
            what = "this battle was voted on, or was begun before the arena was opened"
            raise DataError("the arena", what, "Ask the next question")
        try:
            keep(self.folder, battle, vote, voter)
        except BaseException:  # it did not count; it may be tried again
            with self._lock:
                self._open[battle_id] = battle
            raise
        return battle

    def votes(self) -> list[Cast]:
        """All that were ever kept here, in order."""
        return list(read_votes(self.folder))

    def standings(self) -> list[Standing]:
        """How the models stand."""
        return standings(self.votes())

    def close(self) -> None:
        """Give the models back; those that could not be loaded may be tried again."""
        with self._writing:
            self._stable.close()
            self.broken.clear()


def open_arena(run: str, names: tuple[str, ...], options: Options, load: Load = load_near) -> Arena:
    """The arena of a run, for these of its models, or all that are sealed. Errors as `find_model` has them."""
    if not run or is_model(run):
        raise DataError("the arena", "votes are kept in a run's folder, and none is named", "Name a run")
    if len(set(names)) < len(names):
        raise DataError("the arena", f"a model is named twice: {', '.join(names)}", "Name each once")
    workspace = open_run(run)
    models = dict(find_model(run, name) for name in names) if names else sealed_models(workspace)
    return Arena(workspace.path, models, options, Stable(load))
