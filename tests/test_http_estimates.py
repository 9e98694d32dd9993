"""Questions for the estimator: one at a time, the newest first, and a page that waits too long is told so."""

import threading
import time

import pytest

from spectral_adapters.spectral.errors import SettingError
from spectral_adapters.trainer.estimates import Estimates


@pytest.fixture
def estimates():
    made = Estimates(wait=0.2)
    yield made
    made.close()


def test_a_quick_answer_comes_at_once_and_is_asked_for_anew(estimates):
    answers = iter(({"bytes": 1}, {"bytes": 2}))
    assert estimates.ask("a", lambda: next(answers)) == {"bytes": 1}
    assert estimates.ask("a", lambda: next(answers)) == {"bytes": 2}


def test_a_slow_one_is_pending_and_asked_once(estimates):
    go, asked = threading.Event(), []

    def slow():
        asked.append(1)
        assert go.wait(10)
        return {"bytes": 1}

    assert estimates.ask("a", slow) == estimates.ask("a", slow) == {"pending": True}
    go.set()
    found = {"pending": True}
    while found == {"pending": True}:
        found = estimates.ask("a", slow)
    assert found == {"bytes": 1} and asked == [1]


def test_only_the_newest_of_those_that_wait_is_answered():
    estimates, go, asked = Estimates(wait=10), threading.Event(), []

    def question(name):
        def ask():
            asked.append(name)
            assert go.wait(10)
            return {"name": name}

        return ask

    found = {}

    def page(name):
        found[name] = estimates.ask(name, question(name))

    pages = []
    for name in ("first", "second", "third"):
        pages.append(threading.Thread(target=page, args=(name,)))
        pages[-1].start()
        while name == "first" and not asked:
            time.sleep(0.01)
        time.sleep(0.05)
    go.set()
    for each in pages:
        each.join(10)
    estimates.close()
    assert asked == ["first", "third"]
    assert found == {"first": {"name": "first"}, "second": {"pending": True}, "third": {"name": "third"}}


def test_what_the_question_raises_is_raised(estimates):
    def wrong():
        raise SettingError("there are no pictures")

    for _ in range(2):
        with pytest.raises(SettingError, match="no pictures"):
            estimates.ask("a", wrong)
