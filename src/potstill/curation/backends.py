"""Where spans are examined: one after the other in this process, or over a Ray cluster. What comes back is the same.

Under Ray every node has to see the file that is examined, and to have potstill installed.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, Protocol

from potstill.curation.examine import Examined, Examiner, Span
from potstill.errors import PotstillError, RecipeError

BackendName = Literal["local", "ray"]


class Backend(Protocol):
    """Examines spans; what it yields stands in their order."""

    def __call__(self, examiner: Examiner, spans: Iterable[Span]) -> Iterator[Examined]: ...


def local(examiner: Examiner, spans: Iterable[Span]) -> Iterator[Examined]:
    """In this process."""
    return map(examiner, spans)


def on_ray(examiner: Examiner, spans: Iterable[Span]) -> Iterator[Examined]:
    """With Ray Data, on the cluster that $RAY_ADDRESS names or that runs here; without one, on this machine's cores."""
    try:
        ray: Any = import_module("ray")
        data: Any = import_module("ray.data")
    except ImportError as error:
        what = f"backend: ray needs Ray Data, which is not installed here ({error})"
        raise RecipeError("curate", what, "Install it with: pip install 'potstill[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    rows = [{"span": pickle.dumps(span)} for span in spans]
    if not rows:
        return
    asked = data.from_items(rows, override_num_blocks=len(rows))
    answers = asked.map(
        _Worker, fn_constructor_args=(examiner,), compute=data.ActorPoolStrategy(min_size=1, max_size=_cores(ray))
    )
    for answer in answers.iter_rows():
        examined = pickle.loads(answer["examined"])
        if isinstance(examined, PotstillError):
            raise examined
        yield examined


def _cores(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class _Worker:
    """An actor of the pool: it keeps the examiner and is asked for one span at a time."""

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            examined: Examined | PotstillError = self._examiner(pickle.loads(row["span"]))
        except PotstillError as error:
            examined = error
        return {"examined": pickle.dumps(examined)}


BACKENDS: Mapping[BackendName, Callable[[Examiner, Iterable[Span]], Iterator[Examined]]] = {
    "local": local,
    "ray": on_ray,
}
