import os
import signal
import time

import pytest

from recap_ray.errors import ImageError
from recap_ray.images.isolation import IsolatedCalls


def work(what: str) -> str:
    """What a codec may do."""
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(60)
    if what == "refuse":
        raise ImageError("truncated", "ends at row 12: too soon")
    return f"{what} by {os.getpid()}"


@pytest.fixture
def calls():
    calls = IsolatedCalls(work, timeout_s=10)
    yield calls
    calls.close()


def test_calls_are_made_in_one_child(calls):
    assert calls("one").removeprefix("one") == calls("two").removeprefix("two") != f" by {os.getpid()}"


def test_an_image_error_comes_out_as_it_was_raised(calls):
    with pytest.raises(ImageError, match="^truncated: ends at row 12: too soon$") as raised:
        calls("refuse")
    assert raised.value.code == "truncated"


def test_a_crash_is_an_image_error_and_the_next_call_has_a_new_child(calls):
    with pytest.raises(ImageError, match="^decoder_crashed: decoding ended its process by SIGSEGV$"):
        calls("crash")
    assert calls("next").startswith("next")


def test_a_hang_is_an_image_error_and_the_next_call_has_a_new_child(calls):
    calls("first")
    calls.timeout_s = 0.5
    with pytest.raises(ImageError, match="^decoder_hung: decoding took longer than 0.5 s$"):
        calls("hang")
    calls.timeout_s = 10
    assert calls("next").startswith("next")


def test_a_child_that_was_ended_between_two_calls_is_replaced(calls):
    child = int(calls("one").rpartition(" ")[2])
    os.kill(child, signal.SIGKILL)
    calls.child.join()
    assert calls("two") != f"two by {child}"
