"""The verbs of the command line. One file each: HELP, `arguments`, `main`; and one line here."""

from types import ModuleType

from potstill.verbs import (
    chat,
    compare,
    completion,
    convert,
    doctor,
    export,
    journal,
    logs,
    plan,
    push,
    run,
    score,
    serve,
    show,
    status,
    view,
)

VERBS: dict[str, ModuleType] = {
    "run": run,
    "plan": plan,
    "doctor": doctor,
    "status": status,
    "logs": logs,
    "show": show,
    "view": view,
    "compare": compare,
    "score": score,
    "chat": chat,
    "serve": serve,
    "export": export,
    "push": push,
    "journal": journal,
    "convert": convert,
    "completion": completion,
}
"""In the order in which `--help` lists them. Their work is imported when one is asked for."""
