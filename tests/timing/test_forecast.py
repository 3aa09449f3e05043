import pytest

from recap_ray.timing.forecast import ASSUMPTIONS, Measured, Workers, describe, forecast, max_rows

BUSY = {"read": 1.0, "decode": 4.0, "embed": 10.0, "retrieve": 1.0, "generate": 80.0, "score": 8.0, "assemble": 1.0,
        "write": 5.0}  # fmt: skip
TWO_CORES = Workers(actors=2, gpus=0, cpus=2)
ONE_GPU = Workers(actors=2, gpus=1, cpus=8)


def measured(workers: Workers = TWO_CORES, busy: float = 1.0, **stages) -> Measured:
    stages = {"busy_seconds": BUSY, "model_actors_busy": busy, **stages}
    summary = {"images": 1000, "seconds_to_first_part": 30.0, "stages": stages}
    return Measured.of(summary, part_rows=100, before_s=3.0, output_bytes=500_000, workers=workers)


def test_seconds_of_stages_become_seconds_of_a_picture():
    sample = measured()
    assert sample.caption_s == pytest.approx(0.1) and sample.feeding_s == pytest.approx(0.01)
    assert sample.start_s == pytest.approx(3 + 30 - 100 * 0.1)  # the first part's own time is no start
    assert sample.bytes_an_image == 500


def test_what_an_actors_first_part_takes_longer_belongs_to_the_start():
    warm = {name: seconds / 4 for name, seconds in BUSY.items()}
    sample = measured(warm={"images": 500, "busy_seconds": warm})
    assert sample.caption_s == pytest.approx(0.05) and sample.start_s == pytest.approx(3 + 30 - 100 * 0.05)
    assert sample.feeding_s == pytest.approx(0.01)  # loaders have no models to get warm


def test_without_gpu_the_stages_share_the_cores():
    told = forecast(measured(), count=3_600_000, workers=TWO_CORES, part_rows=1000, unit_hour=0.05)
    assert told.images_per_second == pytest.approx(2 / 0.11)
    assert told.hours == pytest.approx(23 / 3600 + 1000 * 0.11 / 2)
    assert told.unit_hours == pytest.approx(2 * told.hours) and told.cost == pytest.approx(0.05 * told.unit_hours)
    assert told.unit == "CPU core" and told.cpus_a_gpu is None and told.output_bytes == 3_600_000 * 500
    assert told.bottleneck == "generate" and told.assumptions == ASSUMPTIONS


def test_more_actors_than_cores_take_no_more_cores():
    crowd = Workers(actors=4, gpus=0, cpus=2)
    told = forecast(measured(crowd), count=10**6, workers=crowd, part_rows=1000)
    assert told.workers == 2 and told.images_per_second == pytest.approx(4 / 0.11)  # as slow as each was in the crowd
    assert crowd.scaled(10) == Workers(actors=20, gpus=0, cpus=10)


def test_on_gpus_the_cores_work_beside_them():
    sample = measured(ONE_GPU)
    told = forecast(sample, count=64 * 10**6, workers=ONE_GPU.scaled(64), part_rows=1000, unit_hour=3.0)
    assert told.images_per_second == pytest.approx(64 * 20)
    assert told.cpus_a_gpu == pytest.approx(20 * 0.01) and told.bottleneck == "generate"
    busiest = 500_000  # of 128 actors
    assert told.cost == pytest.approx(3 * 64 * (23 + busiest * 0.1) / 3600)


def test_too_few_cores_beside_a_gpu_set_the_pace():
    sample = measured(ONE_GPU)
    told = forecast(sample, count=1000, workers=ONE_GPU.scaled(1, cpus_a_gpu=0.1), part_rows=100)
    assert told.images_per_second == pytest.approx(10) and told.bottleneck == "write" and told.cost is None
    assert told.hours * 3600 == pytest.approx(23 + 1000 / 10)
    enough = forecast(sample, count=1000, workers=ONE_GPU.scaled(1, cpus_a_gpu=0.3), part_rows=100)
    assert enough.images_per_second == pytest.approx(20) and enough.bottleneck == "generate"


def test_without_another_word_the_cores_beside_each_gpu_are_as_many_as_here():
    told = forecast(measured(ONE_GPU), count=1000, workers=ONE_GPU.scaled(64), part_rows=100)
    assert told.cpus_beside_gpu == 8
    assert told.assumptions[-1] == "8 CPU cores beside each GPU, as many as here unless --cpus-a-gpu was given"


def test_a_machine_that_starved_its_gpu_is_told_with_the_rate_it_had():
    """By their own seconds its cores could have fed it."""
    sample = measured(ONE_GPU, busy=0.5)
    told = forecast(sample, count=1000, workers=ONE_GPU, part_rows=100)
    assert told.images_per_second == pytest.approx(10) and told.bottleneck == "write"
    assert told.cpus_a_gpu == pytest.approx(16)
    fed = forecast(sample, count=1000, workers=ONE_GPU.scaled(1, cpus_a_gpu=16.1), part_rows=100)
    assert fed.images_per_second == pytest.approx(20) and fed.bottleneck == "generate"
    text = describe(sample, told)
    assert "bottleneck: write; one GPU captions 10.00 images/s" in text and "CPU cores that feed one GPU: 16.0" in text


@pytest.mark.parametrize(
    "count, actors, expected",
    [
        (2000, 2, 1000),  # a part each
        (1999, 2, 1000),
        (500, 2, 500),  # one is idle
        (2500, 2, 1500),  # two rounds, the second one of half a part
        (3500, 2, 2000),
        (10_000, 1, 10_000),
        (64_000_000, 64, 1_000_000),
    ],
)
def test_parts_are_whole_so_that_a_run_ends_unevenly(count, actors, expected):
    assert max_rows(count, actors, part_rows=1000) == expected


def test_a_run_of_few_parts_takes_as_long_as_its_busiest_actor():
    told = forecast(measured(), count=2500, workers=TWO_CORES, part_rows=1000)
    assert told.hours * 3600 == pytest.approx(23 + 1500 * 0.11)


def test_what_is_printed_tells_the_figures_and_what_they_rest_on():
    sample = measured(ONE_GPU)
    told = forecast(sample, 64 * 10**6, ONE_GPU.scaled(64), 1000, 3.0)
    text = describe(sample, told)
    assert "bottleneck: generate; one GPU captions 20.00 images/s" in text
    assert "64,000,000 images on 64 GPUs: 13 h 53 min (1,280.0 images/s, of which 23 s to start)" in text
    assert "cost: 2,667.89 for these GPU-hours" in text and "CPU cores that feed one GPU: 0.2" in text
    assert "output: 500 bytes an image, 32 GB" in text and all(line in text for line in told.assumptions)
