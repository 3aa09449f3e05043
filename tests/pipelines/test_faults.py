"""Real processes, really killed: nothing is lost, nothing is done twice.

Each run here meets several faults, one after the other. `make faults` tries each alone, many times, and that of a whole
node, whose death takes Ray minutes to notice.
"""

import random
import time
from dataclasses import replace

from tests.faults import (
    LIMIT_S,
    Scene,
    disk_world,
    fail_store,
    kill_cpu_worker,
    kill_driver,
    kill_gpu_actor,
    kill_writer,
    store_world,
)


def any_seed() -> int:
    seed = random.randrange(10**6)
    print("seed of the moments:", seed)
    return seed


def begin(world, tmp_path, **changes) -> Scene:
    scene = replace(world.scene(tmp_path, any_seed()), forked_workers=True, **changes)
    scene.start()
    return scene


def test_a_store_that_fails_loses_and_repeats_nothing(s3, tmp_path):
    with store_world() as world:
        scene = begin(world, tmp_path)
        scene.reach(3)
        fail_store(scene)
        assert scene.finish() <= 2
        scene.check()


def test_a_stopped_driver_and_a_killed_worker_actor_writer_and_driver_lose_and_repeat_nothing(tmp_path):
    with disk_world() as world:
        scene = begin(world, tmp_path, seconds=0.2)  # long enough for four faults
        scene.reach(2)
        scene.driver.terminate()
        assert scene.driver.wait(LIMIT_S) == 1 and not scene.leftovers()
        assert "stopped; run the same command again to resume" in scene.log.read_text()
        assert 2 <= scene.parts() < 40, "what was under way was not finished, or all was"
        scene.start()
        for kill in (kill_cpu_worker, kill_gpu_actor, kill_writer, kill_driver):
            scene.reach(scene.parts() + 3)
            kill(scene)
        assert scene.driver.wait(LIMIT_S)
        time.sleep(2)  # Ray's processes notice the end of their driver
        finished = scene.written()
        assert 12 <= len(finished) < 40 and scene.leftovers()
        scene.start()  # which sweeps what the killed writer left
        assert scene.driver.wait(LIMIT_S) == 0 and not scene.leftovers()
        scene.check()
        now = scene.written()
        assert {name: now[name] for name in finished} == finished, "a finished part was rewritten"
