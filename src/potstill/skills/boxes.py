"""From the names in a recipe to tools that can be called: potstill's own, and typed functions in users' files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

from potstill.errors import RecipeError
from potstill.miniature.archive import LOOKUP, look_up
from potstill.miniature.world import world
from potstill.own import is_own, load
from potstill.skills.calculator import CALCULATOR
from potstill.skills.tool_process import ToolProcess
from potstill.skills.tools import Runner, Tool, Toolbox, ToolError, describe
from potstill.sources import Function, MiniatureServer

ToolName = Literal["calculator", "lookup"]


def check_tools(names: Sequence[str], has_server: bool) -> None:
    """ValueError where a name is neither a tool of potstill's nor mine.py:function, or lacks its world."""
    for name in names:
        if name not in get_args(ToolName) and not is_own(name):
            known = ", ".join(get_args(ToolName))
            raise ValueError(f"there is no tool '{name}'; expected one of {known}, or mine.py:function")
    if ("lookup" in names) != has_server:
        raise ValueError("the tool 'lookup' and a miniature 'server' belong together: name both or neither")


@contextmanager
def open_toolbox(
    names: Sequence[str], functions: Sequence[Function], server: MiniatureServer | None, seconds: float
) -> Iterator[Toolbox]:
    """The tools of those names, in their order; users' functions run in a process that ends with the block."""
    with ToolProcess(tuple((function.path, function.name) for function in functions), seconds) as process:
        tools, own = [], iter(enumerate(functions))
        for name in names:
            if is_own(name):
                place, function = next(own)
                tools.append(_own_tool(function, partial(process.call, place)))
            elif name == "calculator":
                tools.append(CALCULATOR)
            else:
                assert server is not None
                tools.append(_lookup(server))
        try:
            box = Toolbox(tools)
        except ValueError as error:
            raise RecipeError("tools", str(error), "Rename one of them") from error
        yield box


def _own_tool(function: Function, run: Runner) -> Tool:
    try:
        return Tool(*describe(load(function)), run)
    except (ValueError, NameError) as error:
        raise RecipeError(function.path.name, str(error), "Mend the function's types and docstring") from error


def _lookup(server: MiniatureServer) -> Tool:
    known = world(server.seed, server.entities)

    def run(arguments: Any) -> Any:
        try:
            return look_up(known, arguments["person"], arguments["item"], arguments["day"])
        except LookupError as error:
            raise ToolError(str(error.args[0])) from error

    return Tool(LOOKUP["name"], LOOKUP["description"], LOOKUP["parameters"], run)
