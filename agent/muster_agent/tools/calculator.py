"""A calculator: arithmetic on an expression's syntax tree, nothing evaluated as code.

The expression is the model's, and so in the end anybody's: every operation is bounded before it is done, so
that no input holds the event loop for longer than a few milliseconds. Integers are exact up to
`MAX_DIGITS`; other numbers are floats.

Accepted besides Python's arithmetic: the typographic signs of multiplication, division and minus, `^` for
powers (there is no bitwise arithmetic to confuse it with), and `1,234,567` where no function is called.
Within a call a comma separates arguments and nothing else, or `max(1,234)` would have two meanings.
"""

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable
from typing import Annotated, Final

from langchain_core.tools import tool

from muster_agent.tools.complaints import ToolComplaint

MAX_LENGTH: Final = 500
"""Characters of an expression; a longer one is a program, not a sum."""
MAX_DEPTH: Final = 50
"""Operations inside one another; Python's own recursion is far deeper."""
MAX_DIGITS: Final = 500
"""Digits of an integer: about what a small model's context can hold beside its prompt."""
_LIMIT: Final = 10**MAX_DIGITS
_EXACT_FLOAT: Final = 10.0**15
"""Below this every whole float is written without an exponent, and none of its digits is invented."""

Number = int | float


class CalculatorError(ToolComplaint):
    """The expression cannot be calculated; the text says why."""


_SPELLINGS = str.maketrans(
    {"\N{MULTIPLICATION SIGN}": "*", "\N{MIDDLE DOT}": "*", "\N{DIVISION SIGN}": "/", "\N{MINUS SIGN}": "-"}
)
_GROUPED = re.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\w,])")
_CALL = re.compile(r"[A-Za-z]\w*\s*\(")

_CONSTANTS: Final[dict[str, Number]] = {"pi": math.pi, "π": math.pi, "e": math.e}


def evaluate(expression: str) -> Number:
    """Calculate `expression`.

    Raises:
        CalculatorError: It is no arithmetic, has no real result, or is too large.
    """
    if len(expression) > MAX_LENGTH:
        raise CalculatorError(f"the expression is longer than {MAX_LENGTH} characters")
    return _value(_parse(expression), 0)


def format_number(value: Number) -> str:
    """Write a result as a person would: `161`, `0.5`, `0.3`, without digits that rounding made up."""
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < _EXACT_FLOAT:
        return str(int(value))
    return format(value, ".15g")


@tool
async def calculator(
    expression: Annotated[str, "An arithmetic expression, for example: (23 * 7 + 1) / 2"],
) -> str:
    """Calculate an arithmetic expression: + - * / // % **, parentheses, sqrt, round, min, max, log, pi."""
    return format_number(evaluate(expression))


calculator.metadata = {"changes_world": False}


def _parse(expression: str) -> ast.expr:
    text = expression.translate(_SPELLINGS).replace("^", "**").strip()
    if _CALL.search(text) is None:
        text = _GROUPED.sub(lambda match: match.group().replace(",", ""), text)
    try:
        with warnings.catch_warnings(action="ignore"):  # the parser warns of things like `1or 2`
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CalculatorError("this is not an arithmetic expression") from None


def _value(node: ast.expr, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise CalculatorError(f"the expression is nested deeper than {MAX_DEPTH} operations")
    match node:
        case ast.Constant(value=value):
            return _literal(value)
        case ast.Name(id=name):
            return _constant(name)
        case ast.UnaryOp(op=sign, operand=operand):
            return _signed(sign, _value(operand, depth + 1))
        case ast.BinOp(left=left, op=sign, right=right):
            return _combined(sign, _value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _called(name, [_value(argument, depth + 1) for argument in arguments])
        case ast.Tuple():
            raise CalculatorError("a comma does not belong here; write 1234.5, not 1,234.5 or 1234,5")
        case _:
            raise CalculatorError("only numbers, + - * / // % **, parentheses and functions are understood")


def _literal(value: object) -> Number:
    if type(value) is int or type(value) is float:  # `True` is an int, too
        return _bounded(value)
    raise CalculatorError("only whole and decimal numbers are understood")


def _constant(name: str) -> Number:
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    raise CalculatorError(f"unknown name {name[:32]!a}; known constants: pi, e")


def _signed(sign: ast.unaryop, value: Number) -> Number:
    match sign:
        case ast.USub():
            return -value
        case ast.UAdd():
            return value
        case _:
            raise CalculatorError("the only signs are + and -")


def _combined(sign: ast.operator, left: Number, right: Number) -> Number:
    operation = _OPERATIONS.get(type(sign))
    if operation is None:
        raise CalculatorError("the only operations are + - * / // % **")
    return _guarded(operation, left, right)


def _called(name: str, arguments: list[Number]) -> Number:
    function = _FUNCTIONS.get(name)
    if function is None:
        raise CalculatorError(f"unknown function {name[:32]!a}; known functions: {', '.join(_FUNCTIONS)}")
    try:
        return _guarded(function, *arguments)
    except TypeError:
        raise CalculatorError(f"{name} does not take these {len(arguments)} arguments") from None


def _guarded(operation: Callable[..., object], *operands: Number) -> Number:
    """Do one operation; what Python raises becomes a sentence."""
    try:
        return _bounded(operation(*operands))
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("the result is too large") from None
    except ValueError:
        raise CalculatorError("the function is not defined for this number") from None


def _bounded(value: object) -> Number:
    match value:
        case int() if abs(value) >= _LIMIT:
            raise CalculatorError(f"the result has more than {MAX_DIGITS} digits")
        case float() if not math.isfinite(value):
            raise CalculatorError("the result is too large")
        case int() | float():
            return value
        case _:  # a power of a negative number may be complex
            raise CalculatorError("the result is not a real number")


def _power(base: Number, exponent: Number) -> object:
    """`base ** exponent`, refused before it is done where it would be too long to write."""
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        least_bits = (abs(base).bit_length() - 1) * exponent
        if least_bits > _LIMIT.bit_length():
            raise CalculatorError(f"the result has more than {MAX_DIGITS} digits")
    return base**exponent


def _round(value: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > MAX_DIGITS:
        raise CalculatorError("round takes a number and a small whole number of digits")
    return round(value, digits) if digits else round(value)


def _extreme(choose: Callable[[list[Number]], Number]) -> Callable[..., Number]:
    def of(*values: Number) -> Number:
        return choose(list(values))

    return of


_OPERATIONS: Final[dict[type[ast.operator], Callable[[Number, Number], object]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: left / right,
    ast.FloorDiv: lambda left, right: left // right,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}

_FUNCTIONS: Final[dict[str, Callable[..., object]]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "round": _round,
    "min": _extreme(min),
    "max": _extreme(max),
    "floor": math.floor,
    "ceil": math.ceil,
    "log": math.log,
    "log10": math.log10,
    "exp": math.exp,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
}
