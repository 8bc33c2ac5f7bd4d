"""Fair turns: one inside at a time, users in rotation, bounded, and nobody who fails or leaves holds up the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.scheduler import BusyError, Limits, Scheduler


class Crowd:
    """Users who all wait before the first is let in; ``log`` is the order in which they came through."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.log: list[tuple[str, int]] = []
        self.faults: list[tuple[str, str]] = []
        self.most, self._inside = 0, 0
        self.threads: list[threading.Thread] = []

    def comes(self, user: str, job: int = 0) -> None:
        thread = threading.Thread(target=self._come, args=(user, job))
        before = self._seen()
        thread.start()
        self.threads.append(thread)
        while self._seen() == before:  # so that their order is known
            time.sleep(0.0005)

    def _seen(self) -> int:
        return len(self.scheduler) + len(self.faults) + len(self.log)

    def _come(self, user: str, job: int) -> None:
        try:
            with self.scheduler.slot(user):
                self._inside += 1
                self.most = max(self.most, self._inside)
                self.log.append((user, job))
                self._inside -= 1
        except BusyError as error:
            self.faults.append((user, str(error)))

    def all_through(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    yield (crowd := Crowd(Scheduler(Limits(queue=10, queue_per_client=3, wait_seconds=5))))
    crowd.all_through()
    assert crowd.scheduler.idle and len(crowd.scheduler) == 0


def test_a_user_who_sends_much_waits_behind_everyone_elses_next(crowd: Crowd) -> None:
    with crowd.scheduler.slot("host"):
        for job in range(3):
            crowd.comes("greedy", job)
        crowd.comes("quiet")
        crowd.comes("shy")
    crowd.all_through()
    assert crowd.log == [("greedy", 0), ("quiet", 0), ("shy", 0), ("greedy", 1), ("greedy", 2)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=10))
def test_everyone_comes_through_once_and_nobody_overtakes_twice(arrivals: list[str]) -> None:
    crowd = Crowd(Scheduler(Limits(queue=10, queue_per_client=10)))
    with crowd.scheduler.slot("host"):
        for job, user in enumerate(arrivals):
            crowd.comes(user, job)
    crowd.all_through()
    assert sorted(crowd.log) == sorted((user, job) for job, user in enumerate(arrivals))
    assert crowd.most <= 1
    for index, (user, _) in enumerate(crowd.log):
        ahead = crowd.log[:index]
        own = sum(other == user for other, _ in ahead)
        for other in set(arrivals) - {user}:  # nobody else was let in more than once oftener than oneself
            assert sum(name == other for name, _ in ahead) <= own + 1
        assert [number for name, number in crowd.log if name == user] == sorted(
            number for name, number in crowd.log if name == user
        )


def test_a_full_queue_and_a_user_with_too_much_are_told_so(crowd: Crowd) -> None:
    with crowd.scheduler.slot("host"):
        for job in range(4):
            crowd.comes("greedy", job)
        assert [user for user, _ in crowd.faults] == ["greedy"] and "3 of your requests are waiting" in crowd.faults[0][
            1
        ]
        for job in range(8):
            crowd.comes(f"user {job}")
        assert crowd.faults[1][0] == "user 7" and "every place in the queue is taken" in crowd.faults[1][1]
    crowd.all_through()
    assert len(crowd.log) == 10


def test_who_waits_too_long_is_told_so_and_the_others_go_on() -> None:
    crowd = Crowd(Scheduler(Limits(wait_seconds=0.1)))
    with crowd.scheduler.slot("host"):
        crowd.comes("late")
        crowd.all_through()
    assert "did not start within 0 s" in crowd.faults[0][1] and crowd.scheduler.idle
    with crowd.scheduler.slot("late") as waited:
        assert waited < 0.1


def test_a_turn_that_is_not_given_back_ends_by_itself() -> None:
    scheduler = Scheduler(Limits(lease_seconds=0.1))
    lost = scheduler.slot("gone")
    lost.__enter__()
    crowd = Crowd(scheduler)
    crowd.threads.append(thread := threading.Thread(target=crowd._come, args=("next", 0)))
    thread.start()
    crowd.all_through()
    assert crowd.log == [("next", 0)]
    lost.__exit__(None, None, None)  # too late to matter
    assert scheduler.idle


def test_a_job_that_raises_gives_its_turn_back(crowd: Crowd) -> None:
    with pytest.raises(ZeroDivisionError), crowd.scheduler.slot("one"):
        raise ZeroDivisionError
    crowd.comes("next")
    crowd.all_through()
    assert crowd.log == [("next", 0)]


def test_a_turn_within_a_turn_is_the_same_turn(crowd: Crowd) -> None:
    with crowd.scheduler.slot("one"), crowd.scheduler.slot("one"):
        assert not crowd.scheduler.idle
    assert crowd.scheduler.idle


def test_a_closed_turnstile_tells_those_who_wait_and_lets_the_one_inside_finish(crowd: Crowd) -> None:
    with crowd.scheduler.slot("host"):
        crowd.comes("waiting")
        crowd.scheduler.close()
        crowd.all_through()
        assert not crowd.scheduler.wait_until_idle(0.01)
    assert "about to stop" in crowd.faults[0][1] and crowd.scheduler.wait_until_idle(0.01)
    with pytest.raises(BusyError, match="about to stop"), crowd.scheduler.slot("new"):
        pass
