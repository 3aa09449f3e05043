"""Real processes, really killed: nothing is lost, nothing is done twice.

Each run here meets several faults, one after the other; `make faults` tries each alone, many times.
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
    kill_node,
    kill_shard_actor,
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


def test_a_failing_store_and_killed_workers_and_actors_lose_and_repeat_nothing(s3, tmp_path):
    with store_world() as world:
        scene = begin(world, tmp_path)
        for fail, parts in ((fail_store, 3), (kill_cpu_worker, 12), (kill_gpu_actor, 20)):
            scene.reach(parts)
            fail(scene)
        assert scene.finish() <= 2
        scene.check()


def test_a_killed_shard_actor_and_the_death_of_its_node_lose_and_repeat_nothing(tmp_path):
    with disk_world() as world, world.scene_on_two_nodes(tmp_path, any_seed()) as scene:
        scene.start()
        # No part goes on without all of the index: by the second moment the killed actor is back.
        for kill, parts in ((kill_shard_actor, 3), (kill_node, 16)):
            scene.reach(parts)
            kill(scene)
        assert scene.finish() <= 2
        scene.check()


def test_a_driver_killed_told_to_end_and_killed_again_and_a_killed_writer_lose_and_repeat_nothing(tmp_path):
    with disk_world() as world:
        scene = begin(world, tmp_path)
        finished: dict[str, int] = {}

        def nothing_rewritten() -> dict[str, int]:
            now = scene.written()
            assert {name: now[name] for name in finished} == finished, "a finished part was rewritten"
            return now

        for ending in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            scene.reach(len(finished) + 4)
            scene.driver.send_signal(ending)
            code = scene.driver.wait(LIMIT_S)
            if ending == signal.SIGTERM:  # it ends after the parts that are under way
                assert code == 1 and "stopped; the same command goes on from here" in scene.log.read_text()
            else:
                time.sleep(2)  # Ray's processes notice the death of their driver
            finished = nothing_rewritten()
            assert len(finished) < 40
            scene.start()
        kill_writer(scene)
        assert scene.finish() <= 2
        nothing_rewritten()
        scene.check()
        scene.start()  # which sweeps what the killed writer left
        assert scene.driver.wait(LIMIT_S) == 0 and not scene.leftovers()
