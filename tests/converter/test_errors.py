"""Problems that come from two places and are said at once."""

from __future__ import annotations

import pytest

from converter.errors import ConvertError, Problem, together_with


def test_problems_of_both_places_come_in_one_error() -> None:
    with pytest.raises(ConvertError) as caught, together_with([Problem("first")]):
        raise ConvertError(Problem("second"))
    assert [item.found for item in caught.value.problems] == ["first", "second"]


def test_the_context_runs_to_its_end_before_the_problems_are_raised() -> None:
    done = []
    with pytest.raises(ConvertError, match="first"), together_with([Problem("first")]):
        done.append(1)
    assert done == [1]


def test_nothing_is_raised_without_a_problem() -> None:
    with together_with([]):
        pass
