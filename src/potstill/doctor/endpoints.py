"""What a recipe names: do its endpoints answer, do they serve the model, are their keys set, are its models here?

An endpoint is asked once, for its list of models. Nothing is followed to where it points, what it answers is bounded,
and a key is neither shown nor sent elsewhere.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from potstill.doctor.findings import Finding, note, ok, problem
from potstill.recipe import Recipe
from potstill.sources import EndpointModel, LocalModel, Model
from potstill.validation import nearest

TIMEOUT_SECONDS = 3.0
MOST_BYTES = 1 << 20
AT_ONCE = 16


def look(recipe: Recipe) -> Iterator[Finding]:
    """Its models, each once; those behind endpoints are asked together."""
    models = {model.name: model for members in recipe.models.values() for model in members}
    asked: dict[tuple[str, str | None], list[EndpointModel]] = {}
    for model in models.values():
        if isinstance(model.spec, LocalModel):
            yield _local(model, model.spec)
            continue
        if model.spec.key_env is not None:
            yield _key(model.name, model.spec)
        if not model.spec.is_url:
            yield ok(model.name, f"on the recipe's server '{model.spec.server}', which starts with the run")
            continue
        for url in model.spec.endpoints:
            asked.setdefault((url, model.spec.key_env), []).append(model.spec)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(lambda who: models_at(*who), asked)
        for ((url, _), specs), answer in zip(asked.items(), list(answers), strict=True):
            yield from _told(url, specs, answer)


def _key(name: str, spec: EndpointModel) -> Finding:
    if fault := spec.key_fault():
        return problem(name, f"the variable {spec.key_env} {fault}", f"Run export {spec.key_env}=...")
    return ok(name, f"its key is set, in {spec.key_env}")


def _local(model: Model, spec: LocalModel) -> Finding:
    path = Path(spec.path)
    if path.is_dir():  # the recipe was refused if it held no model
        return ok(model.name, f"its folder is here, {path.name}")
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(spec.path, "config.json", revision=spec.revision), str):
        return ok(model.name, f"{spec.path} is in the Hub's cache")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        what = f"{spec.path} is not in the Hub's cache, and HF_HUB_OFFLINE is set"
        return problem(model.name, what, f"Fetch it where there is a network: hf download {spec.path}")
    return note(model.name, f"{spec.path} will be fetched from the Hub: it is not in its cache")


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A key is for the server that a recipe names."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def models_at(url: str, key_env: str | None) -> tuple[list[str] | None, str]:
    """The names of the models that a server lists, None where it lists none; and what went wrong, or nothing."""
    request = urllib.request.Request(f"{url}/models", headers={"Accept": "application/json"})
    secret = os.environ.get(key_env or "", "")
    if secret.isascii() and secret.isprintable() and secret:
        request.add_header("Authorization", f"Bearer {secret}")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        with urllib.request.build_opener(_StayHere).open(request, timeout=TIMEOUT_SECONDS) as response:
            body = b""
            while piece := response.read1(1 << 16):
                body += piece
                if len(body) > MOST_BYTES:
                    return None, "it answers without end"
                if time.monotonic() > deadline:
                    return None, f"it does not finish its answer within {TIMEOUT_SECONDS:g} s"
    except urllib.error.HTTPError as error:
        error.close()
        return None, f"HTTP {error.code}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return None, _why(error)
    try:
        rows = json.loads(body)["data"]
        return [str(row["id"]) for row in rows], ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return None, "it answers with something else than a list of models"


def _why(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"it does not answer within {TIMEOUT_SECONDS:g} s"
    words = getattr(cause, "strerror", None) or type(cause).__name__
    return f"it cannot be reached ({str(words).lower()})"


def _told(url: str, specs: list[EndpointModel], answer: tuple[list[str] | None, str]) -> Iterator[Finding]:
    served, wrong = answer
    names = list(dict.fromkeys(spec.name for spec in specs))
    if wrong in ("HTTP 401", "HTTP 403"):
        held = specs[0].key_env
        remedy = f"Correct the key in {held}" if held else "Name the variable that holds its key: key_env"
        yield problem(url, f"it refuses us ({wrong})", remedy)
    elif wrong in ("HTTP 404", "HTTP 405"):
        yield note(
            url, f"it answers, and lists no models ({wrong}): whether it serves {', '.join(names)} shows in a run"
        )
    elif wrong:
        yield problem(url, wrong, "Start the server, or correct its endpoint in the recipe")
    for name in names if served is not None else ():
        if name in (served or ()):
            yield ok(url, f"it answers and serves {name}")
        else:
            shown = ", ".join((served or [])[:5]) or "none"
            what = f"it does not serve '{name}'{nearest(name, served or [])}; it lists {shown[:200]}"
            yield problem(url, what, "Correct the model's name in the recipe, or serve it there")
