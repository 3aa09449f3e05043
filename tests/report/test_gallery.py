import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from recap_ray.errors import ImageError
from recap_ray.report import render_gallery, thumbnail
from recap_ray.report.gallery import card, figures, flatten, natural_order
from recap_ray.schema import CAPTION_SCHEMA

SCRIPT = "<script>alert(1)</script>"


def row(key: str, **changes):
    """An output row of the real schema: captioned, unless `changes` carry an error."""
    full = dict.fromkeys(CAPTION_SCHEMA.names) | {"key": key, "source": f"pictures/{key}", "thumbnail": None}
    if "error" not in changes:
        full |= {"caption": "a dog", "clip_score": 0.75, "aligned_clip_score": 0.5, "width": 640, "height": 480}
        full |= {"candidates": ["a cat", "a dog"], "candidate_scores": [0.25, 0.5]}
        full |= {"neighbours": ["a puppy"], "neighbour_ids": [7], "neighbour_scores": [0.625]}
    assert changes.keys() <= full.keys()
    return full | changes


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + " "

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page(rows, settings=None, summary=None) -> Page:
    return Page(render_gallery(rows, {"settings": settings or {}}, summary or {}))


def picture(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_thumbnail_keeps_the_shape_and_never_enlarges():
    assert picture(thumbnail(encoded(Image.new("RGB", (800, 400)), "PNG"))).size == (192, 96)
    assert picture(thumbnail(encoded(Image.new("RGB", (800, 400)), "PNG"), max_side=64)).size == (64, 32)
    assert picture(thumbnail(encoded(Image.new("RGB", (20, 10)), "PNG"))).size == (20, 10)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGBA", (300, 300), (0, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (300, 300), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.fromarray(np.full((300, 300), 32896, np.uint16)), "PNG", (128, 128, 128)),
        (Image.new("LA", (300, 300), (90, 255)), "PNG", (90, 90, 90)),
        (Image.new("P", (300, 300), 0), "GIF", (0, 0, 0)),
    ],
    ids=["transparent", "cmyk", "16-bit", "grey with alpha", "palette"],
)
def test_a_thumbnail_shows_the_colour_of_a_picture_in_an_unusual_mode(image, kind, expected):
    shown = picture(thumbnail(encoded(image, kind)))
    assert shown.mode == "RGB"
    assert np.abs(np.asarray(shown, int) - expected).max() <= 4


def test_a_thumbnail_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it
    assert picture(thumbnail(encoded(Image.new("RGB", (400, 200)), "JPEG", exif=exif))).size == (96, 192)


def test_bytes_that_are_no_picture_raise_the_error_of_a_bad_image():
    with pytest.raises(ImageError):
        thumbnail(b"no picture at all")


def test_figures_count_errors_by_code_the_commonest_first():
    rows = [row("a"), row("b", error="empty: the file holds 0 bytes")]
    rows += [row(f"c{i}", error=f"truncated: ends at row {i}: too soon") for i in range(2)]
    seen = figures(rows)
    assert (seen.images, seen.captions, seen.errors) == (4, 1, [("truncated", 2), ("empty", 1)])


def test_a_mean_takes_in_only_the_rows_that_have_the_score():
    rows = [row("a", clip_score=0.5), row("b", clip_score=1.0), row("c", error="empty: 0 bytes")]
    assert figures([*rows, row("d", clip_score=math.nan)]).clip_score == 0.75
    assert figures([row("a", error="empty: 0 bytes")]).clip_score is None


def test_the_header_states_counts_means_units_and_speed():
    rows = [row("a"), row("b", error="empty: 0 bytes")]
    seen = page(rows, {"clip": "tiny"}, {"images_per_second": 12.34, "seconds": 81})
    text = " ".join(seen.text.split())
    for expected in (
        "Captions of 2 images",
        "CLIP tiny",
        "Captioned 1 of 2 images",
        "Errors 1 1 empty",
        "Mean CLIP-S 0.750 2.5 \N{MULTIPLICATION SIGN} cosine, 0 to 2.5",
        "Mean aCLIP-S 0.500 aligned cosine, 0 to 1",
        "Images/s 12.3 81 s in all",
    ):
        assert expected in text


def test_what_the_run_does_not_know_is_left_out():
    seen = page([row("a")])
    assert "Images/s" not in seen.text
    assert "Settings of this run" not in seen.text


def test_a_sample_says_of_how_many_images_it_is_one():
    rows = [row("a"), row("b")]
    assert "A sample of the run's 12,000 images" in " ".join(page(rows, summary={"images": 12000}).text.split())
    assert "A sample" not in page(rows, summary={"images": 2}).text


def test_a_run_without_an_alignment_says_so():
    assert "alignment none" in " ".join(page([row("a")], {"alignment": None}).text.split())


def test_a_page_without_rows_is_still_a_page():
    seen = page([])
    assert "Captions of 0 images" in seen.text
    assert "every image has a caption" not in seen.text


def test_the_best_candidate_comes_first_and_the_caption_is_marked():
    seen = card(row("a", caption="two", candidates=["one", "two", "three"], candidate_scores=[0.1, 0.3, 0.5]))
    assert seen["candidates"] == [("three", 0.5), ("two", 0.3), ("one", 0.1)]
    assert seen["chosen"] == 1


def test_rows_as_numpy_reads_them_are_shown_like_plain_ones():
    scores = np.array([0.25, 0.5], np.float32)
    candidates = np.array(["a cat", "a dog"], object)
    assert card(row("a", candidates=candidates, candidate_scores=scores)) == card(row("a"))


def test_missing_scores_show_as_a_dash_and_carry_no_sorting_value():
    seen = page([row("a", clip_score=None, aligned_clip_score=math.nan, candidate_scores=None)])
    [attributes] = [e for e in seen.all("li") if "card" in (e.get("class") or "").split()]
    assert not {"data-clip", "data-aligned"} & attributes.keys()
    assert "\N{EN DASH}" in seen.text
    assert "nan" not in seen.text.lower().split()


def test_cards_come_in_the_natural_order_of_keys():
    html = render_gallery([row(k) for k in ("img10.jpg", "img2.jpg", "a/9", "img1.jpg")], {}, {})
    assert re.findall(r'class="key">([^<]+)<', html) == ["a/9", "img1.jpg", "img2.jpg", "img10.jpg"]


def test_natural_order_compares_any_two_keys():
    keys = ["", "7", "a", "7a", "a7", "٣", "9" * 5000, "a" + "0" * 30, "²"]
    assert len(sorted(keys, key=natural_order)) == len(keys)


def test_an_error_row_shows_its_code_message_and_source_and_no_caption():
    seen = page([row("b.jpg", error="truncated: ends at row 12: 3 of 9 blocks")])
    text = " ".join(seen.text.split())
    assert "truncated ends at row 12: 3 of 9 blocks" in text
    assert "Read from pictures/b.jpg" in text
    assert "None" not in text
    assert "no picture" in text
    assert not seen.all("img")


def test_every_text_of_a_row_and_of_a_run_is_escaped():
    hostile = f'"{SCRIPT}\'--></li><img src=x onerror="alert(1)">'
    fields = dict.fromkeys(("source", "caption", "original_caption", "thumbnail"), hostile)
    rows = [row(hostile, **fields, candidates=[hostile], neighbours=[hostile])]
    rows.append(row("b" + hostile, source=hostile, error=f"{hostile}: {hostile}"))
    seen = page(rows, {"clip": hostile, hostile: {hostile: hostile}})
    assert len(seen.all("script")) == 1
    assert [attributes["src"] for attributes in seen.all("img")] == [hostile]
    assert not any(name.startswith("on") for _, attributes in seen.elements for name in attributes)
    assert not any("style" in attributes for _, attributes in seen.elements)
    assert seen.text.count(SCRIPT) >= 10


def test_the_page_asks_for_nothing_from_outside():
    seen = page([row("a", thumbnail="data:image/jpeg;base64,AAAA", source="https://example.org/a.jpg")])
    assert not seen.all("link") and not seen.all("iframe") and not seen.all("a")
    assert all(attributes["src"].startswith("data:") for _, attributes in seen.elements if "src" in attributes)
    [policy] = [m["content"] for m in seen.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'; img-src data:;" in policy
    assert "unsafe" not in policy


def test_nested_settings_become_rows_of_a_table():
    assert flatten({"a": 1, "b": {"c": None, "d": {"e": [2]}}}) == [("a", "1"), ("b.c", "none"), ("b.d.e", "[2]")]
