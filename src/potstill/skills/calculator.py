"""The calculator: arithmetic read from its syntax and worked out exactly, in bounds. Nothing is ever evaluated."""

import ast
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from potstill.skills.tools import Tool, ToolError

LONGEST = 200
"""Characters of an expression."""
MOST_DIGITS = 100
MOST_POWER = 1000

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda left, right: Fraction(left // right),
    ast.Mod: operator.mod,
}


def calculate(expression: str) -> str:
    """The value of an expression of numbers, + - * / // % ** and brackets; ToolError where it has none."""
    if len(expression) > LONGEST:
        raise ToolError(f"the expression has {len(expression)} characters; expected {LONGEST} or fewer")
    try:
        tree = ast.parse(expression.strip().replace("^", "**").replace("×", "*").replace("−", "-"), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ToolError(f"'{expression}' is no expression") from error
    return _shown(_bounded(_value(tree.body)))


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return Fraction(str(node.value)) if abs(node.value) < 10**MOST_DIGITS else _too_large()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return -_value(node.operand) if isinstance(node.op, ast.USub) else _value(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _OPERATIONS:
            try:
                return _bounded(_OPERATIONS[type(node.op)](left, right))
            except ZeroDivisionError:
                raise ToolError("division by zero") from None
    raise ToolError("only numbers, + - * / // % ** and brackets are understood")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > MOST_POWER:
        raise ToolError(f"an exponent must be a whole number of {MOST_POWER} at most")
    if base == 0 and exponent < 0:
        raise ToolError("division by zero")
    digits = max(len(str(abs(base.numerator))), len(str(base.denominator))) * abs(int(exponent))
    return _bounded(base ** int(exponent)) if digits <= 10 * MOST_DIGITS else _too_large()


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10 ** (2 * MOST_DIGITS):
        _too_large()
    return value


def _too_large() -> Fraction:
    raise ToolError("the numbers become too large")


def _shown(value: Fraction) -> str:
    """A whole number or a finite decimal exactly, anything else to 12 digits."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    while rest % 10 == 0 or rest % 2 == 0 or rest % 5 == 0:
        rest = rest // 10 if rest % 10 == 0 else rest // 2 if rest % 2 == 0 else rest // 5
        places += 1
    if rest == 1 and places <= 12:
        scaled = value * 10**places
        sign, digits = "-" * (value < 0), str(abs(scaled.numerator)).rjust(places + 1, "0")
        return f"{sign}{digits[:-places]}.{digits[-places:]}".rstrip("0")
    return f"{float(value):.12g}"


def _run(arguments: Mapping[str, Any]) -> str:
    return calculate(arguments["expression"])


CALCULATOR = Tool(
    "calculator",
    "Works out arithmetic exactly.",
    {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "Such as (17 + 25) * 3"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
    _run,
)
