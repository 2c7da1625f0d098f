"""The calculator: what it accepts, what it refuses, and that nothing else comes of any input."""

import math
import operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.tools.calculator import MAX_DIGITS, CalculatorError, evaluate, format_number

TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("23*7", "161"),
        ("1/2", "0.5"),
        ("4/2", "2"),
        ("0.1+0.2", "0.3"),
        ("1/3", "0.333333333333333"),
        ("-2**2", "-4"),
        ("(-2)**2", "4"),
        ("2**-1", "0.5"),
        ("2^10", "1024"),
        ("7//2", "3"),
        ("-7 % 3", "2"),
        ("+5", "5"),
        (" 1 + 1 ", "2"),
        (f"6 {TIMES} 7", "42"),
        ("6 \N{DIVISION SIGN} 4", "1.5"),
        ("6 \N{MINUS SIGN} 4", "2"),
        ("1,234 + 1", "1235"),
        ("1,234,567.5 * 2", "2469135"),
        ("max(1,234)", "234"),
        ("min(3, 1, 2)", "1"),
        ("max(7)", "7"),
        ("abs(-3)", "3"),
        ("round(2.567, 2)", "2.57"),
        ("round(2.5)", "2"),
        ("floor(-1.5)", "-2"),
        ("ceil(1.2)", "2"),
        ("sqrt(16)", "4"),
        ("log(e)", "1"),
        ("log(8, 2)", "3"),
        ("log10(1000)", "3"),
        ("exp(0)", "1"),
        ("sin(0) + cos(0) + tan(0)", "1"),
        ("pi", "3.14159265358979"),
        ("1e20", "1e+20"),
        ("123456789012345678901234567890 + 1", "123456789012345678901234567891"),
        ("246913578024690 / 2", "123456789012345"),
        ("1_000 + 1", "1001"),
        ("0xff", "255"),
    ],
)
def test_arithmetic(expression: str, shown: str) -> None:
    """An expression has this result, written like this."""
    assert format_number(evaluate(expression)) == shown


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("1/0", "division by zero"),
        ("1 % 0", "division by zero"),
        ("0.0 // 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("", "not an arithmetic expression"),
        ("2 +", "not an arithmetic expression"),
        ("(" * 300, "not an arithmetic expression"),
        ("1\0", "not an arithmetic expression"),
        ("x = 1", "not an arithmetic expression"),
        ("\ud800", "not an arithmetic expression"),
        ("1,2345", "a comma does not belong here"),
        ("1,5 + 1", "a comma does not belong here"),
        ("x + 1", "unknown name 'x'"),
        ("True", "only whole and decimal numbers"),
        ("1j", "only whole and decimal numbers"),
        ("'a' * 9", "only whole and decimal numbers"),
        ("~1", "the only signs"),
        ("not 1", "the only signs"),
        ("1 << 9", "the only operations"),
        ("1 @ 2", "the only operations"),
        ("1 < 2", "only numbers"),
        ("[1]", "only numbers"),
        ("lambda: 1", "only numbers"),
        ("(1).real", "only numbers"),
        ("__import__('os')", "only whole and decimal numbers"),
        ("open(1)", "unknown function 'open'"),
        ("pi(1)", "unknown function 'pi'"),
        ("abs(x=1)", "only numbers"),
        ("sqrt()", "sqrt does not take these 0 arguments"),
        ("sqrt(1, 2)", "sqrt does not take these 2 arguments"),
        ("sqrt(-1)", "not defined"),
        ("min()", "not defined"),
        ("log(0)", "not defined"),
        ("(-8) ** 0.5", "not a real number"),
        ("round(1, -99999999999)", "round takes"),
        ("round(1, 0.5)", "round takes"),
        ("9**9**9", f"more than {MAX_DIGITS} digits"),
        ("10**500", f"more than {MAX_DIGITS} digits"),
        ("9" * 400 + "*" + "9" * 99, None),
        ("1e308 * 10", "too large"),
        ("1e999", "too large"),
        ("exp(1000)", "too large"),
        ("10.0 ** 400", "too large"),
        ("10**400 / 3", "too large"),
        ("sqrt(10**400)", "too large"),
        ("1+" * 250 + "1", "longer than 500"),
        ("-" * 60 + "1", "nested deeper than 50"),
    ],
)
def test_what_cannot_be_calculated(expression: str, why: str | None) -> None:
    """The model is told in words what is wrong; None marks the largest that is still right."""
    if why is None:
        assert evaluate(expression) == int("9" * 400) * int("9" * 99)
        return
    with pytest.raises(CalculatorError, match=why):
        evaluate(expression)


ALPHABET = st.text(
    st.sampled_from("0123456789.,+-*/%^() eEjxpi_sqrtmaxlogroundfloor'\"[]=:<>&|~\\@\n\0"), max_size=80
)


@given(st.one_of(ALPHABET, st.text(max_size=40)))
def test_no_text_does_more_than_complain(text: str) -> None:
    """Whatever the model writes, the outcome is a finite number or the calculator's own error."""
    try:
        value = evaluate(text)
    except CalculatorError:
        return

    assert math.isfinite(value) if isinstance(value, float) else value.bit_length() < 1700
    assert format_number(value)


Evaluated = tuple[str, int | float]

OPERATIONS: dict[str, Callable[[int | float, int | float], int | float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


def _joined(children: st.SearchStrategy[Evaluated]) -> st.SearchStrategy[Evaluated]:
    def join(left: Evaluated, sign: str, right: Evaluated) -> Evaluated:
        if sign in {"/", "//", "%"} and right[1] == 0:
            sign = "+"
        return f"({left[0]} {sign} {right[0]})", OPERATIONS[sign](left[1], right[1])

    return st.builds(join, children, st.sampled_from(sorted(OPERATIONS)), children)


NUMBERS = st.one_of(st.integers(0, 999), st.sampled_from([0.5, 0.25, 2.75])).map(lambda n: (str(n), n))


@given(st.recursive(NUMBERS, _joined, max_leaves=8))
def test_it_agrees_with_python(case: Evaluated) -> None:
    """On sums that Python can do, the result is Python's, type included."""
    expression, expected = case

    value = evaluate(expression)

    assert (type(value), value) == (type(expected), expected)
