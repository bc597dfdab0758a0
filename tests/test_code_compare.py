"""The judge's arithmetic: values from an untrusted process cannot make it take for ever."""

import ast
import fractions

import pytest

from verifiers.code_compare import TestFailed, evaluate
from verifiers.sandbox_values import MOST_FRACTION_BITS, Encoder, ValueTooLarge, decode

MODULUS = 2**61 - 1  # of Python's hash of numbers: all its multiples hash to 0
COLLIDING = [k * MODULUS for k in range(1, 1002)]


def judged(expression, value):
    return evaluate(ast.parse(expression, mode="eval").body, {"v": value})


@pytest.mark.parametrize("expression", ["set(v) == {1}", "frozenset(v) == {1}"])
def test_a_list_whose_items_share_one_hash_does_not_become_a_set(expression):
    with pytest.raises(TestFailed, match="hashes collide"):
        judged(expression, COLLIDING)


@pytest.mark.parametrize("padding", [[], list(range(2000))], ids=["alone", "among others"])
def test_keys_that_share_one_hash_are_no_message_even_among_many_that_do_not(padding):
    for encoded in ({"s": [*COLLIDING, *padding]}, {"d": [[key, 1] for key in [*COLLIDING, *padding]]}):
        with pytest.raises(ValueError, match="hashes collide"):
            decode(encoded)


def test_a_list_that_repeats_an_item_is_a_set_of_one():
    assert judged("set(v) == {1}", [1] * 5000)
    assert decode({"s": [-1, -2] * 1000}) == {-1, -2}  # their hashes are equal


def test_a_fraction_too_long_to_reduce_crosses_in_neither_direction():
    longest = fractions.Fraction(2**MOST_FRACTION_BITS - 1, 2)
    assert decode(Encoder().encode(longest)) == longest
    with pytest.raises(ValueTooLarge, match="fraction"):
        Encoder().encode(2 * longest + fractions.Fraction(1, 2))
    with pytest.raises(ValueError, match="too long to reduce"):
        decode({"F": [{"i": hex(2**MOST_FRACTION_BITS)}, 3]})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("round(3, v) == 0", -(10**9)),
        ("sum(v, []) == [1]", [[1]] * 10_001),
        ("v ** 1000 == 1", fractions.Fraction(3**100, 2)),
        ("sum(v) == 1", [fractions.Fraction(1, 3**5000), fractions.Fraction(1, 5**5000), fractions.Fraction(1, 7)]),
        ("2 ** v == 1", 10**9),
        ("'a' * v == 'a'", 10**9),
    ],
)
def test_an_operation_that_would_grow_out_of_bounds_fails_the_test(expression, value):
    with pytest.raises(TestFailed):
        judged(expression, value)


def test_the_bounds_leave_ordinary_tests_alone():
    assert judged("round(v, 2) == 3.14", 3.14159)
    assert judged("sum(v, []) == [1, 2]", [[1], [2]])
    assert judged("v ** 2 == 4", fractions.Fraction(2))
    harmonic = [fractions.Fraction(1, n) for n in range(1, 400)]
    assert evaluate(ast.parse("sum(v)", mode="eval").body, {"v": harmonic}) == sum(harmonic)
    assert judged("set(v)", list(range(5000))) == set(range(5000))
