"""Logs that another program or a fault wrote: whatever a line holds, what is read of it can be shown."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_adapters.trainer import job_view
from spectral_adapters.trainer.event_log import as_json
from spectral_adapters.trainer.event_shapes import _FIELDS, is_event
from spectral_adapters.trainer.events import Checkpointed, Ended, Sampled, Skipped, Step, Validated
from spectral_adapters.trainer.jobs.course import Course
from spectral_adapters.trainer.jobs.job import Entry, Job, State

NAMES = sorted({name for fields in _FIELDS.values() for name in fields} | {"time", "rate", "memory"})
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.just(10**400), st.floats(), st.text(max_size=3),
    st.sampled_from(("NaN", "Infinity")), st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=2), st.one_of(st.none(), st.floats())),
)  # fmt: skip
LINES = st.builds(
    lambda kind, values: {"event": kind, **values},
    st.sampled_from([*_FIELDS, "Plan", "Plan", "Later"]),
    st.dictionaries(st.sampled_from(NAMES), VALUES),
)


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(LINES, max_size=8))
def test_every_log_can_be_shown(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("job")
    (folder / "run").mkdir()
    (folder / "run" / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    entry = Entry(Job("20260101-000000-abcd", "train", "x", 0.0), State(), folder)
    json.dumps(job_view.detail(entry, Course(entry.run), []), allow_nan=False)


def test_what_the_trainer_writes_is_an_event():
    nan = float("nan")
    written = [
        Step(1, 9, nan, 1e-3), Step(1, 9, 0.5, float("inf"), 2.0, 7), Skipped(2, "no number", 1),
        Validated(0, nan, False), Sampled(1, (), ()),
        Checkpointed(3, "step-000003", True), Ended("finished", 9, "Done."),
    ]  # fmt: skip
    for event in written:
        assert is_event(json.loads(json.dumps(as_json(event)))), event
    assert is_event({"event": "OfALaterVersion", "field": {}}) and not is_event({"event": 5}) and not is_event([])
