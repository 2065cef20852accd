import inspect

import pytest

from app import errors
from app.errors import AppError, ContextTooLong, ModelNotFound, RateLimited

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, AppError)]


def make(kind: type[AppError]) -> AppError:
    special = {
        ContextTooLong: lambda: ContextTooLong(5000, 4096),
        ModelNotFound: lambda: ModelNotFound("gpt"),
        RateLimited: lambda: RateLimited("slow down", retry_after=2.4),
    }
    return special.get(kind, lambda: kind("why"))()


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_three_renderings_with_its_detail(kind: type[AppError]) -> None:
    error = make(kind)
    assert error.problem()["detail"] == error.detail
    assert error.problem()["status"] == error.status
    assert set(error.openai()["error"]) == {"message", "type", "param", "code"}
    assert error.openai()["error"]["message"] == error.detail
    assert error.anthropic()["type"] == "error"
    assert error.anthropic()["error"]["message"] == error.detail


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)


def test_every_class_stands_in_the_drawn_tree() -> None:
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in CLASSES if kind.__name__ not in errors.__doc__] == []


def test_context_too_long_names_both_lengths() -> None:
    error = ContextTooLong(5000, 4096)
    assert "5000" in error.detail
    assert "4096" in error.detail


def test_rate_limited_says_when_to_come_back() -> None:
    assert RateLimited("x", retry_after=2.4).headers == {"retry-after": "3"}
