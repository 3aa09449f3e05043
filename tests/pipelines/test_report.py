"""The thumbnails of a report: pictures and what holds them may be broken in any way. (Whole pages: test_jobs.py.)"""

import io
import os
import shutil
import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recap_ray.images.decode import ImageLimits
from recap_ray.inputs.reading import ImageReader
from recap_ray.pipelines.output.report import ThumbnailMaker, crashing_keys, report
from recap_ray.report import thumbnail
from recap_ray.settings import ReportSettings


def make(data: bytes, side: int, limits: ImageLimits) -> str:
    """A thumbnail, unless the picture is one that breaks its decoder."""
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang":
        time.sleep(60)
    return thumbnail(data, side, limits)


class Store:
    """A reader that counts what it is asked for, and of which nothing can be had."""

    def __init__(self):
        self.asked = []

    def read(self, source):
        self.asked.append(source)
        raise OSError("the store is down\nfor a minute")


def png(colour="teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def made(rows: dict[str, str], **changes) -> dict[str, tuple[str | None, str | None]]:
    """(the start of the thumbnail, why there is none) by key."""
    table = pa.table({"key": list(rows), "source": list(rows.values())})
    maker = ThumbnailMaker(**{"reader": ImageReader(2**20), "limits": ImageLimits(), **changes})
    return {
        row["key"]: (row["thumbnail"] and row["thumbnail"][:10], row["no_picture"]) for row in maker(table).to_pylist()
    }


SHOWN = ("data:image", None)


def test_a_picture_that_cannot_be_shown_costs_no_other_one_its_thumbnail(tmp_path):
    contents = {"1": png(), "2": b"crash", "3": b"hang", "4": b"", "5": png()}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    rows = {name: str(tmp_path / name) for name in (*contents, "6")}
    assert made(rows, make=make, timeout_s=5.0) == {
        "1": SHOWN,
        "2": (None, "decoder_crashed: decoding ended its process by SIGSEGV"),
        "3": (None, "decoder_hung: decoding took longer than 5 s"),
        "4": (None, "empty: the file holds 0 bytes"),
        "5": SHOWN,
        "6": (None, "unreadable: No such file or directory"),
    }


def test_a_damaged_table_is_the_reason_of_its_pictures_alone(tmp_path):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"jpg": [png(), png()]}), tmp_path / "sound.parquet")
    seen = made(
        {f"{name}{i}": f"{tmp_path}/{name}.parquet#row={i}&column=jpg" for name in ("damaged", "sound") for i in (1, 0)}
    )
    assert seen["sound0"] == seen["sound1"] == SHOWN
    assert seen["damaged0"] == seen["damaged1"] and seen["damaged0"][1].startswith("unreadable: Parquet ")


def test_a_store_that_gives_nothing_is_asked_once():
    store = Store()
    assert set(made({"1": "s3://b/1", "2": "s3://b/2"}, reader=store).values()) == {
        (None, "unreadable: the store is down")
    }
    assert store.asked == ["s3://b/1"]


def test_a_picture_that_broke_its_decoder_in_a_run_is_not_even_read():
    errors = ["decoder_crashed: by SIGSEGV", "decoder_hung: 60 s", "truncated: decoder_hung", None]
    skipped = crashing_keys([pa.table({"key": ["1", "2", "3", "4"], "error": errors})])
    assert skipped == {"1", "2"}
    store = Store()
    assert made({"1": "s3://b/1", "2": "s3://b/2"}, reader=store, skipped=skipped)["1"][0] is None
    assert not store.asked


@pytest.mark.parametrize("of", ["gallery", "comparison"])
def test_a_page_shows_no_picture_that_broke_its_decoder(run_folder, tmp_path, of):
    other, page = shutil.copytree(run_folder, tmp_path / "other"), tmp_path / "page.html"
    first = min((other / "captions").glob("*.parquet"))
    rows = pq.read_table(first)
    errors = pa.array(["decoder_hung: decoding took longer than 60 s", *[None] * (len(rows) - 1)], pa.string())
    pq.write_table(rows.set_column(rows.column_names.index("error"), "error", errors), first)
    runs = {"captions": str(other)} if of == "gallery" else {"compare": (str(run_folder), str(other))}
    assert report(ReportSettings(**runs, output=str(page), images=1000)) == 0
    assert page.read_text().count("data:image/jpeg;base64,") == len(pq.read_table(other / "captions")) - 1
