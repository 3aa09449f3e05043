"""Real processes, really killed: nothing is lost, nothing is done twice.

Each run here meets several faults, one after the other. `make faults` tries each alone, many times, and that of a whole
node, whose death takes Ray minutes to notice.
"""

import random
import signal
import time

from tests.faults import (
    LIMIT_S,
    Scene,
    disk_world,
    fail_store,
    kill_cpu_worker,
    kill_gpu_actor,
    kill_writer,
    store_world,
)


def any_seed() -> int:
    seed = random.randrange(10**6)
    print("seed of the moments:", seed)
    return seed


def begin(world, tmp_path) -> Scene:
    scene = world.scene(tmp_path, any_seed())
    scene.start()
    return scene


def test_a_failing_store_a_killed_actor_and_a_killed_driver_lose_and_repeat_nothing(s3, tmp_path):
    with store_world() as world:
        scene = begin(world, tmp_path)
        for fail, parts in ((fail_store, 3), (kill_gpu_actor, 12)):
            scene.reach(parts)
            fail(scene)
        scene.reach(scene.parts() + 4)
        scene.driver.kill()
        assert scene.finish() == 2
        scene.check()


def test_a_killed_worker_a_driver_told_to_end_and_a_killed_writer_lose_and_repeat_nothing(tmp_path):
    with disk_world() as world:
        scene = begin(world, tmp_path)
        scene.reach(3)
        kill_cpu_worker(scene)
        scene.reach(scene.parts() + 4)
        scene.driver.send_signal(signal.SIGTERM)  # it ends after the parts that are under way
        assert scene.driver.wait(LIMIT_S) == 1
        assert "stopped; the same command goes on from here" in scene.log.read_text()
        finished = scene.written()
        assert 7 <= len(finished) < 40
        time.sleep(2)  # Ray's processes notice the end of their driver
        scene.start()
        kill_writer(scene)
        assert scene.finish() <= 2
        scene.check()
        now = scene.written()
        assert {name: now[name] for name in finished} == finished, "a finished part was rewritten"
        scene.start()  # which sweeps what the killed writer left
        assert scene.driver.wait(LIMIT_S) == 0 and not scene.leftovers()
