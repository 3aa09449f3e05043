"""What a try adds up, and how it may end."""

import pytest

from recap_ray.errors import UserError
from recap_ray.pipelines.caption import Tally, caption_once
from recap_ray.pipelines.guard import FAILURE, MISTAKE, STOPPED

pytestmark = pytest.mark.usefixtures("ray_running")  # whose nodes are watched

DONE = {"part": "a", "rows": 10, "errors": 1, "times": "{}"}


class Reports:
    """What a chain gives, and the exception that it ends with."""

    def __init__(self, *reports, ending=None):
        self.reports, self.ending = reports, ending

    def iter_rows(self):
        yield from self.reports
        if self.ending:
            raise self.ending


def test_failures_are_kept_with_their_reason_and_a_stop_is_none():
    tally = Tally()
    failed = [{"part": "b", FAILURE: "Traceback"}, {"part": "c", FAILURE: STOPPED}]
    assert caption_once(Reports(DONE, *failed, DONE), tally) is None
    assert (tally.images, tally.failures, tally.stopped) == (20, {"b": "Traceback"}, True)


def test_an_accident_of_ray_ends_a_try_and_keeps_what_is_done():
    tally, accident = Tally(), AssertionError("of Ray's own")
    assert caption_once(Reports(DONE, ending=accident), tally) is accident
    assert tally.images == 10 and not tally.failures


@pytest.mark.parametrize(
    "reports",
    [
        Reports({"part": "b", FAILURE: f"{MISTAKE}--clip x: no"}),
        Reports(ending=RuntimeError("a task failed\nrecap_ray.errors.UserError: --clip x: no")),
        Reports(ending=UserError("--clip x: no")),
    ],
)
def test_a_mistake_that_an_actor_met_is_raised(reports):
    with pytest.raises(UserError, match="^--clip x: no$"):
        caption_once(reports, Tally())


def test_stopping_by_hand_is_no_accident():
    with pytest.raises(KeyboardInterrupt):
        caption_once(Reports(ending=KeyboardInterrupt()), Tally())
