"""A page as large as `report` makes it by default, 500 images, in a real headless Chromium."""

import io
import random
import time

import numpy as np
import pytest
from PIL import Image

from recap_ray.report import render_comparison, render_gallery, thumbnail
from tests.report.rows import row

COUNT = 500
AGES = ("one", "two", "three", "four", "five", "six", "seven")
VISIBLE = "[...document.querySelectorAll('.card')].filter(card => !card.hidden)"
KEYS = f"{VISIBLE}.map(card => card.querySelector('.key').textContent)"
FRAMES = "(async () => { for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame) })()"
CASES = pytest.mark.parametrize("of", ["gallery", "comparison"])


def key(number: int) -> str:
    return f"{number:03d}.jpg"


def noise(number: int) -> str:
    """A thumbnail of some 6 kB that is like no other: the browser cannot take one for all."""
    pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((192, 144), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return thumbnail(buffer.getvalue())


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """By kind: a page of which every tenth image is an error (of run B), and the scores of the others (or B - A)."""
    draw = random.Random(1)
    scores = {number: draw.random() for number in range(COUNT)}
    a = [
        row(key(number), thumbnail=noise(number), caption=f"a dog of {AGES[number % 7]} years", aligned_clip_score=0.5)
        for number in scores
    ]
    b = [
        row(key(number), error="truncated: too short")
        if number % 10 == 0
        else {**a[number], "aligned_clip_score": score, "caption": f"a cat of {AGES[number % 7]} years"}
        for number, score in scores.items()
    ]
    run = {"settings": {"clip": "tiny", "output": "out"}}
    texts = {"gallery": render_gallery(b, run, {}), "comparison": render_comparison(a, b, run, run, COUNT)}
    folder = tmp_path_factory.mktemp("large")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    known = {key(number): score for number, score in scores.items() if number % 10}
    return {name: folder / f"{name}.html" for name in texts}, known


@CASES
def test_all_images_are_there_and_nothing_is_asked_from_outside(chromium, pages, of):
    path = pages[0][of]
    began = time.monotonic()
    chromium.open(path)
    chromium.js(FRAMES)
    seconds = time.monotonic() - began
    load = chromium.js("performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(
        f"{of}: {path.stat().st_size / 1e6:.1f} MB, load event after {load:.0f} ms, drawn after {1000 * seconds:.0f} ms"
    )
    assert chromium.js(KEYS) == [key(number) for number in range(COUNT)]
    asked = {event["request"]["url"].split(":")[0] for event in chromium.saw("Network.requestWillBeSent")}
    assert asked <= {"file", "data"}
    assert not chromium.saw("Runtime.exceptionThrown") and not chromium.saw("Log.entryAdded")


@CASES
def test_sorting_and_filtering_find_the_right_images_among_many(chromium, pages, of):
    paths, scores = pages
    chromium.open(paths[of])
    chromium.js("document.querySelector('[data-sort=aligned]').click()")
    errors = [key(number) for number in range(0, COUNT, 10)]
    assert chromium.js(KEYS) == sorted(scores, key=lambda name: -scores[name]) + errors
    chromium.js("document.querySelector('#text').value = 'three years'")
    chromium.js("document.querySelector('#text').dispatchEvent(new Event('input'))")
    of_three = [name for name in scores if int(name[:3]) % 7 == 2]
    found = chromium.js(KEYS)
    assert [name for name in found if name in scores] == sorted(of_three, key=lambda name: -scores[name])
    assert chromium.js("document.querySelector('#shown').textContent").startswith(f"{len(found)} of 500 shown")


@CASES
@pytest.mark.parametrize("width", [390, 1280])
def test_only_what_is_near_the_window_is_laid_out_and_the_last_image_is_reached(chromium, pages, of, width):
    chromium.open(pages[0][of], width=width)
    chromium.js(FRAMES)
    laid_out = (
        "[...document.querySelectorAll('.caption')].filter(e => e.checkVisibility({contentVisibilityAuto: true}))"
    )
    assert 0 < chromium.js(f"{laid_out}.length") < COUNT / 4
    assert chromium.js("[...document.images].every(image => image.loading === 'lazy')")
    chromium.js("scrollTo(0, document.documentElement.scrollHeight)")
    chromium.js(FRAMES)
    chromium.js("scrollTo(0, document.documentElement.scrollHeight)")
    chromium.js(FRAMES)
    last = "document.querySelector('.card:last-child')"
    box = chromium.js(f"{last}.getBoundingClientRect().toJSON()")
    assert box["top"] < 900 and box["height"] > 90
    assert (
        chromium.js(f"{last}.querySelector('img').decode().then(() => {last}.querySelector('img').naturalWidth)") == 192
    )
