"""What is written beside training: in order, one piece at a time, and told in the caller's thread."""

import threading
from collections.abc import Callable

import pytest

from yoloyard.common.errors import UserError
from yoloyard.training.writer import Writer


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def writer(told: list[str]) -> Writer:
    return Writer(lambda error: told.append(str(error)))


def failing(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_each_piece_is_told_before_the_next_begins(writer: Writer, told: list[str]) -> None:
    seen: list[tuple[int, int]] = []  # number of the piece, how many have been told
    for number in range(4):
        writer.put(lambda number=number: seen.append((number, len(told))))  # type: ignore[misc]
    writer.finish()
    assert seen == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert told == ["None"] * 4


def test_the_caller_waits_only_where_two_are_ahead(writer: Writer) -> None:
    may_end = threading.Event()
    writer.put(may_end.wait)
    writer.put(lambda: None)  # neither waits
    third = threading.Thread(target=writer.put, args=(lambda: None,))
    third.start()
    third.join(0.1)
    assert third.is_alive()
    may_end.set()
    third.join()
    writer.drain()


def test_a_failure_is_told_and_the_next_piece_is_done(writer: Writer, told: list[str]) -> None:
    done: list[int] = []
    writer.put(failing(UserError("full")))
    writer.put(lambda: done.append(1))
    writer.finish()
    assert (told, done) == (["full", "None"], [1])


def test_the_last_failure_is_raised_and_not_told(writer: Writer, told: list[str]) -> None:
    writer.put(lambda: None)
    writer.put(failing(UserError("full")))
    with pytest.raises(UserError, match="full"):
        writer.finish()
    assert told == ["None"]
    writer.finish()  # it is raised once


def test_an_unexpected_error_is_raised_and_what_waits_is_done_all_the_same(writer: Writer) -> None:
    done: list[int] = []
    may_end = threading.Event()

    def work() -> None:
        may_end.wait()
        raise RuntimeError("bug")

    writer.put(work)
    writer.put(lambda: done.append(1))
    may_end.set()
    with pytest.raises(RuntimeError, match="bug"):
        writer.drain()
    writer.drain()
    assert done == [1]


def test_what_waits_can_be_given_up(writer: Writer) -> None:
    done: list[int] = []
    may_end = threading.Event()
    writer.put(may_end.wait)
    writer.put(lambda: done.append(1))
    may_end.set()
    writer.stop()
    assert not done
