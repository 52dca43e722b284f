"""What a server says of given tokens: the likeliest of each distribution, as vLLM returns them (`prompt_logprobs`).

A request holds token ids and asks for one token more, which nobody reads. The reply has for each place in the prompt
but the first a mapping from token ids to {"logprob", "rank", "decoded_token"}: the `top` likeliest, and the token that
stands there, be it among them or not. They are of temperature 1, whatever else is asked for.
Suffixes: C scored positions, K entries, L tokens of a row.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.errors import TeacherError
from potstill.signals.rows import RowSignal
from potstill.teachers.base import REPLIES_ARE_KEPT, Reply, Request

LEAST_LOGP = -1e4
"""Nothing less is told apart from never."""
SERVE = "Serve it with vLLM, whose completions take token ids and prompt_logprobs"


def scoring_request(ids_L: Sequence[int], top: int) -> Request:
    """What to ask of a row."""
    return Request(messages=(), max_tokens=1, tokens=tuple(ids_L), listed=top)


def read_signal(reply: Reply, ids_L: Sequence[int], scored_C: Sequence[int], top: int, vocabulary: int) -> RowSignal:
    """The `top` likeliest at the scored places of these tokens. TeacherError says what the server does otherwise.

    The entropy is that of the list with all others as one, which is the least that it can be: nobody tells more.
    """
    try:
        places = json.loads(reply.body)["choices"][0]["prompt_logprobs"]
    except (ValueError, LookupError, TypeError) as error:
        raise _fault("it gives no log-probabilities of a prompt's tokens", SERVE) from error
    if not isinstance(places, list) or len(places) != len(ids_L):
        count = len(places) if isinstance(places, list) else 0
        raise _fault(f"it was sent {len(ids_L)} tokens, and speaks of {count}", SERVE)
    ids_CK = np.empty((len(scored_C), top), dtype=np.int32)
    logp_CK = np.empty((len(scored_C), top), dtype=np.float32)
    for row, place in enumerate(scored_C):
        ids_CK[row], logp_CK[row] = _listed(places[place], ids_L[place], place, top, vocabulary)
    rest_C = np.maximum(1 - np.exp(logp_CK.astype(np.float64)).sum(1), np.finfo(np.float32).tiny)
    return RowSignal(
        top_ids=ids_CK, top_logp=logp_CK, rest_logp=np.log(rest_C).astype(np.float32), entropy=_entropy(logp_CK)
    )


def _listed(entries: Any, token: int, place: int, top: int, vocabulary: int) -> tuple[list[int], list[float]]:
    """The likeliest first, of equals the lower id; without the token that stands there, where it is not one of them."""
    try:
        found = sorted(((-float(said["logprob"]), int(name), _rank(said)) for name, said in entries.items()))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _fault(f"what it says at place {place} cannot be read", SERVE) from error
    if token not in (name for _, name, _ in found):
        what = f"at place {place} stands token {token}, and it says nothing of that one: it reads other tokens"
        raise _fault(what, "Name a student of the server's own tokenizer")
    listed = [(name, -negative) for negative, name, rank in found if rank is None or rank <= top][:top]
    if len(listed) < top:
        what = f"of {top} log-probabilities it gives {len(listed)} at place {place}"
        raise _fault(what, f"Set top: {len(listed)}, or raise the server's limit (vLLM: --max-logprobs)")
    beyond = [name for name, _ in listed if not 0 <= name < vocabulary]
    if beyond or not all(np.isfinite(logp) and logp <= 1e-3 for _, logp in listed):
        what = f"token {beyond[0]} is none of the student's {vocabulary:,}" if beyond else "one is not a probability's"
        raise _fault(f"at place {place}, {what}", "Name a student of the server's own tokenizer")
    if len({name for name, _ in listed}) < len(listed):
        raise _fault(f"at place {place} it names a token twice", SERVE)
    if sum(math.exp(logp) for _, logp in listed) > 1.01:
        raise _fault(f"at place {place} its probabilities come to more than 1", SERVE)
    return [name for name, _ in listed], [min(max(logp, LEAST_LOGP), 0.0) for _, logp in listed]


def _rank(said: Mapping[str, Any]) -> int | None:
    """1 is the likeliest; of a token that stands there it tells whether it is one of those asked for."""
    return None if said.get("rank") is None else int(said["rank"])


def _entropy(logp_CK: NDArray[np.float32]) -> NDArray[np.float32]:
    p_CK = np.exp(logp_CK.astype(np.float64))
    rest_C = np.maximum(1 - p_CK.sum(1), 0.0)
    whole_C = -(p_CK * logp_CK).sum(1) - rest_C * np.log(np.maximum(rest_C, np.finfo(np.float64).tiny))
    entropy_C: NDArray[np.float32] = np.maximum(whole_C, 0).astype(np.float32)
    return entropy_C


def _fault(what: str, remedy: str) -> TeacherError:
    return TeacherError("the endpoint", what, f"{remedy}. {REPLIES_ARE_KEPT}")
