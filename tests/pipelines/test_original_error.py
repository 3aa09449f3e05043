"""An error of recap-ray is the same on the driver, wherever in Ray it was raised."""

import pickle

import pytest
import ray
from ray.data import ActorPoolStrategy
from ray.train import WorkerGroupError

from recap_ray.errors import ImageError, MissingExtra, UserError
from recap_ray.pipelines.augment.rounds import TooManyErrors
from recap_ray.pipelines.cluster import ACTOR_RETRIES, CPU_SHARE, light_stage, ray_session
from recap_ray.pipelines.failures import FAILURE, capture_failures
from recap_ray.pipelines.original_error import format_error, original_error, parse_user_error
from recap_ray.settings import RaySettings

USER_ERROR = UserError("--x 1: expected 2 (found: 3); give 2")
MISSING_EXTRA = MissingExtra("faiss", "cpu", "searching an index of captions")


def fail(error):
    raise error


def fail_in_a_task_of_a_task(error):
    return ray.get(ray.remote(num_cpus=0)(fail).remote(error))


class FailingStart:
    def __init__(self, error):
        raise error

    def __call__(self, batch=None):
        return batch


class FailingCall:
    def __init__(self, error):
        self.error = error

    def __call__(self, batch=None):
        raise self.error


def map_one_row(stage, **arguments) -> None:
    list(ray.data.from_items([{"a": 1}]).map_batches(stage, **arguments).iter_rows())


def map_with_an_actor(actor, error) -> None:
    actors = {"compute": ActorPoolStrategy(size=1), "num_cpus": CPU_SHARE, **ACTOR_RETRIES}
    map_one_row(actor, batch_size=None, fn_constructor_args=(error,), **actors)


def call_an_actor(actor, error) -> None:
    ray.get(ray.remote(num_cpus=0)(actor).remote(error).__call__.remote())


PLACES = {
    "task": lambda error: ray.get(ray.remote(num_cpus=0)(fail).remote(error)),
    "nested task": lambda error: ray.get(ray.remote(num_cpus=0)(fail_in_a_task_of_a_task).remote(error)),
    "actor's constructor": lambda error: call_an_actor(FailingStart, error),
    "actor's call": lambda error: call_an_actor(FailingCall, error),
    "map task": lambda error: map_one_row(lambda _: fail(error), **light_stage()),
    "map actor's constructor": lambda error: map_with_an_actor(FailingStart, error),
    "map actor's call": lambda error: map_with_an_actor(FailingCall, error),
}
TEXT_ALONE = {place for place in PLACES if "constructor" in place or "map" in place}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [USER_ERROR, MISSING_EXTRA], ids=["UserError", "MissingExtra"])
def test_a_user_error_keeps_its_message_and_where_ray_allows_its_class(ray_running, error, place):
    with pytest.raises(UserError) as caught, ray_session(RaySettings()):
        PLACES[place](error)
    assert str(caught.value) == str(error)
    assert type(caught.value) is (UserError if place in TEXT_ALONE else type(error))


def test_errors_of_the_kinds_that_the_driver_does_not_handle_stay_as_ray_raised_them(ray_running):
    for error in (ImageError("empty", "0 bytes"), ValueError("a bug")):
        with pytest.raises(ray.exceptions.RayTaskError, match="in fail"), ray_session(RaySettings()):
            PLACES["task"](error)
    with pytest.raises(TooManyErrors, match="^7 of 8$") as caught, ray_session(RaySettings()):
        PLACES["task"](TooManyErrors("7 of 8"))
    assert type(caught.value) is TooManyErrors


def test_a_training_worker_hands_its_error_over():
    failure = pickle.loads(pickle.dumps(WorkerGroupError("two workers", {0: OSError("lost"), 1: MISSING_EXTRA})))  # noqa: S301
    found = original_error(failure)
    assert type(found) is MissingExtra and str(found) == str(MISSING_EXTRA)
    assert original_error(WorkerGroupError("one worker", {0: OSError("lost")})) is None


class OfACaptioner(UserError):
    """Defined outside of the package."""


@pytest.mark.parametrize("error", [USER_ERROR, MISSING_EXTRA, OfACaptioner("--x: no\nfound: y")])
def test_a_failed_part_carries_the_message_of_a_user_error(error):
    @capture_failures
    def stage(_, batch):
        raise error

    [reason] = stage(None, {"part": ["part-1"]})[FAILURE]
    assert str(parse_user_error(reason)) == str(error)


def test_a_bug_in_handling_a_user_error_is_a_bug():
    try:
        try:
            raise UserError("--x: no\nfound: y")
        except UserError:
            raise KeyError("y")  # noqa: B904
    except KeyError as error:
        text = format_error(error)
    assert "recap_ray.errors.UserError: --x: no" in text and "KeyError: 'y'" in text
    assert parse_user_error(text) is None
