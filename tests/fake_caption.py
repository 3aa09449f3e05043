"""`python -m tests.fake_caption`: a captioning driver with stand-ins for the models, to be killed or measured."""

import argparse
import sys
import tempfile
from contextlib import ExitStack

from recap_ray.pipelines.caption.job import caption_with
from recap_ray.settings import CaptionSettings
from tests.fake_retrieval import RetrievingCaptioner, open_card
from tests.fakes import FakeCaptioner, decode_a_byte
from tests.forked_workers import WITHOUT_MODELS, forked_workers


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seconds", type=float, default=0.05, help="that a part takes the captioner")
    parser.add_argument("--part-rows", type=int, default=50)
    parser.add_argument("--actors", default="1")
    parser.add_argument("--index", help="to retrieve from, spread over shard actors")
    parser.add_argument("--num-cpus", type=int, default=2)
    parser.add_argument("--object-store-mb", type=int, default=128)
    parser.add_argument("--forked-workers", action="store_true", help="start Ray's workers sooner")
    given = parser.parse_args()
    settings = CaptionSettings(
        images=given.images, output=given.output, index=given.index or "unused", index_search="spread",
        part_rows=given.part_rows, gpu_actors=given.actors, num_cpus=given.num_cpus,
        object_store_mb=given.object_store_mb,
    )  # fmt: skip
    captioner = FakeCaptioner(given.seconds)
    if given.index:
        captioner = RetrievingCaptioner(given.seconds, index_card=open_card(given.index))
    with ExitStack() as stack:
        if given.forked_workers:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recap-ray-tests-"))
            stack.enter_context(forked_workers(folder, WITHOUT_MODELS))
        return caption_with(captioner, settings, decode_a_byte)


if __name__ == "__main__":
    sys.exit(main())
