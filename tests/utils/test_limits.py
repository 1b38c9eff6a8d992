"""Limits: what fits, what is read from text, and how both are refused."""
from dataclasses import dataclass, fields

import pytest

from utils.errors import UserError
from utils.limits import Number, OneOf, OrNone, OrWord, Switch, Text, check, limited, whole

INF, NAN = float("inf"), float("nan")
COUNT, SHARE, COLOURS = whole(1, 8), Number(0, 1, open_low=True), OneOf(("red", "blue"))


@pytest.mark.parametrize("limit, good, bad", [
    (COUNT, [1, 8], [0, 9, 1.0, True, "3", None, 10**400, NAN]),
    (whole(-2, 2), [-2, 0, 2], [-3, False, -0.0]),
    (Number(0, 0.999), [0, 0.0, 0.5, 0.999], [-1e-9, 1, 1.0, INF, -INF, NAN, True, "0", None, [0.5]]),
    (SHARE, [1e-9, 1, 1.0], [0, 0.0, -1, 1.0001, NAN]),
    (Number(0, INF), [0, 1e300, 10**400], [-1, INF, NAN]),
    (Number(-INF, INF, whole=True), [-10**400, 0], [INF, -INF, 0.5]),
    (COLOURS, ["red", "blue"], ["green", "Red", "", None, 1, ["red"], {"red": 1}]),
    (Switch(), [True, False], [0, 1, "true", None]),
    (Text(), ["", "a"], [None, 1, b"a", ["a"]]),
    (OrWord(COUNT, "auto"), [1, 8, "auto"], [0, "all", None, True]),
    (OrNone(COUNT), [None, 1], [0, False, "None"]),
    (OrNone(OrWord(COUNT, "auto")), [None, "auto", 8], [9, "None"]),
])
def test_a_value_fits_its_limit_or_does_not(limit, good, bad):
    assert [value for value in good if not limit.fits(value)] == []
    assert [value for value in bad if limit.fits(value)] == []


@pytest.mark.parametrize("limit, words", [
    (COUNT, "a whole number from 1 to 8"), (Number(0, 0.999), "a number from 0 to 0.999"),
    (SHARE, "a number above 0, to 1"), (COLOURS, "one of blue, red"), (Switch(), "true or false"), (Text(), "text"),
    (OrWord(COUNT, "auto"), "a whole number from 1 to 8, or 'auto'"),
    (OrNone(COUNT), "a whole number from 1 to 8, or None"), (whole(1, 2**31), "a whole number from 1 to 2147483648"),
])
def test_a_limit_says_what_it_wants(limit, words):
    assert limit.words == words


@pytest.mark.parametrize("limit, text, value", [
    (COUNT, "8", 8), (Number(0, 1), "0.25", 0.25), (Number(0, 1), "1", 1.0), (Number(0, 1e6), "1e3", 1000.0),
    (COLOURS, "red", "red"), (Text(), "a b", "a b"), (OrWord(COUNT, "auto"), "auto", "auto"),
    (OrWord(COUNT, "auto"), "3", 3), (OrNone(COUNT), "3", 3),
])
def test_text_is_read_as_the_value_it_stands_for(limit, text, value):
    found = limit.read(text)
    assert found == value and type(found) is type(value) and limit.fits(found)


@pytest.mark.parametrize("limit, text, said", [
    (COUNT, "2.5", "'2.5' is not a whole number"), (COUNT, "many", "'many' is not a whole number"),
    (COUNT, "9", "9 is out of range: must be at least 1 and at most 8"), (COUNT, "0", "at least 1 and at most 8"),
    (Number(0, 1), "x", "'x' is not a number"), (Number(0, 1), "nan", "nan is out of range"),
    (Number(0, 1), "inf", "inf is out of range"), (SHARE, "0", "0 is out of range: must be above 0 and at most 1"),
    (Number(0, INF), "inf", "inf is out of range: must be at least 0"),
    (COLOURS, "green", "'green' is not one of blue, red"), (Switch(), "true", "a switch takes no value"),
    (OrWord(COUNT, "auto"), "all", "'all' is not a whole number"), (OrNone(COUNT), "None", "'None' is not a whole"),
])
def test_text_that_stands_for_nothing_is_refused(limit, text, said):
    with pytest.raises(ValueError) as caught:
        limit.read(text)
    assert said in str(caught.value)


@dataclass
class Paint:
    coats: int = limited(2, COUNT, "how many", flag="layers")
    colour: str = limited("red", COLOURS)
    free: object = None

    def __post_init__(self):
        check({own.name: own for own in fields(self)}, vars(self))


def test_a_field_keeps_its_limit_and_its_help():
    declared = {own.name: own.metadata for own in fields(Paint)}
    assert declared["coats"] == {"limit": COUNT, "help": "how many", "flag": "layers"}
    assert Paint() == Paint(2, "red")


def test_the_first_value_outside_its_limit_is_named():
    with pytest.raises(UserError) as caught:
        Paint(9, "green")
    assert str(caught.value) == "`coats` is 9, but must be a whole number from 1 to 8"
    with pytest.raises(UserError, match="^`colour` is 'green', but must be one of blue, red$"):
        Paint(1, "green")


def test_fields_without_a_limit_and_unknown_names_pass():
    declared = {own.name: own for own in fields(Paint)}
    check(declared, {"free": object(), "of_another_program": [None], "coats": 1})
    assert Paint(free=object()).coats == 2


def test_a_value_in_a_file_is_named_with_the_file_and_the_remedy():
    declared = {own.name: own for own in fields(Paint)}
    with pytest.raises(UserError) as caught:
        check(declared, {"coats": "x" * 10**5}, "run/args.json")
    said = str(caught.value)
    assert said.startswith("run/args.json: coats is 'xxx") and "must be a whole number from 1 to 8" in said
    assert "delete the file" in said and len(said) < 200
