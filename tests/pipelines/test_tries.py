"""What a try adds up, and how it may end."""

import pytest

from recap_ray.errors import UserError
from recap_ray.pipelines.caption.job import caption_once
from recap_ray.pipelines.caption.results import Tally, report_failures
from recap_ray.pipelines.failures import FAILURE, STOPPED
from recap_ray.runs.run import Run

pytestmark = pytest.mark.usefixtures("ray_running")  # whose nodes are watched

DONE = {"part": "a", "rows": 10, "errors": '{"empty": 1}', "times": "{}"}


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
    assert tally.counts.errors == {"empty": 2}
    assert (tally.images, tally.failures, tally.stopped) == (20, {"b": "Traceback"}, True)


def test_an_accident_of_ray_ends_a_try_and_keeps_what_is_done():
    tally, accident = Tally(), AssertionError("of Ray's own")
    assert caption_once(Reports(DONE, ending=accident), tally) is accident
    assert tally.images == 10 and not tally.failures


@pytest.mark.parametrize(
    "reports",
    [
        Reports({"part": "b", FAILURE: "recap_ray.errors.UserError: --clip x: no\n"}),
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


def test_reasons_of_failures_stay_until_their_parts_are_tried_again(tmp_path):
    def told(missing: set[str], **tally) -> set[str]:
        report_failures(Run(tmp_path, "fingerprint"), Tally(**tally), missing)
        return {path.name for path in (tmp_path / "failures").iterdir()}

    containers = {"/a/0.tar": "no tar", "/b/0.tar": "no tar"}
    first = told({"part-x", "part-y"}, failures={"part-x": "why", "part-y": "why", **containers})
    assert len(first) == 4 and sum(name.startswith("0.tar-") for name in first) == 2
    assert told({"part-y"}, stopped=True) == {"part-y.txt"}
    assert told({"part-y"}) == set()
