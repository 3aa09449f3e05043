"""The page in a real headless Chromium, after its script ran (the fixture is in conftest.py)."""

import io

import numpy as np
import pytest
from PIL import Image

from recap_ray.report import render_gallery, thumbnail

SCRIPT = "<script>alert(1)</script>"
INJECTION = '"><img src=x onerror="alert(2);document.title=\'gone\'"></script><script>alert(3)</script>'
VISIBLE = "[...document.querySelectorAll('.card')].filter(card => card.checkVisibility())"
KEYS = f"{VISIBLE}.map(card => card.querySelector('.key').textContent)"


def picture(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(buffer, "PNG")
    return thumbnail(buffer.getvalue())


def row(key, caption, clip, aligned, error=None):
    return {
        "key": key,
        "source": f"pictures/{key}",
        "caption": caption,
        "clip_score": clip,
        "aligned_clip_score": aligned,
        "candidates": caption and [caption, "something else"],
        "candidate_scores": caption and [0.5, 0.25],
        "neighbours": caption and ["a neighbour"],
        "neighbour_ids": caption and [1],
        "neighbour_scores": caption and [0.5],
        "width": 300,
        "height": 200,
        "original_caption": INJECTION if caption else None,
        "error": error,
        "thumbnail": None if error else picture("teal"),
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rows = [
        row("1.jpg", "a red dog on grass", 0.7, 0.3),
        row("2.jpg", "a red cat", 0.9, 0.2),
        row("3.jpg", None, None, None, f"truncated: {INJECTION}"),
        row("4.jpg", SCRIPT, 0.8, 0.4),
        row(f"5{INJECTION}", f"a red dog {INJECTION}", 0.6, 0.6),
        row("10.jpg", "a ship", None, None),
    ]
    path = tmp_path_factory.mktemp("gallery") / "gallery.html"
    run = {"settings": {"clip": INJECTION}, "fingerprint": INJECTION}
    path.write_text(render_gallery(rows, run, {"images_per_second": 3.0, "seconds": 2}), encoding="utf-8")
    return path


def keys(chromium):
    """The keys of the visible cards in their order, the hostile one cut to its first character."""
    return [key.removesuffix(INJECTION).removesuffix(".jpg") for key in chromium.js(KEYS)]


def click(chromium, selector):
    chromium.js(f"document.querySelector({selector!r}).click()")


def fill(chromium, words):
    chromium.js("document.querySelector('#text').focus(); document.querySelector('#text').select()")
    chromium("Input.insertText", text=words)


def test_pictures_and_captions_are_shown_and_nothing_is_asked_from_outside(chromium, page):
    chromium.open(page)
    assert keys(chromium) == ["1", "2", "3", "4", "5", "10"]
    pictures = "[...document.images].map(image => image.decode().then(() => image.naturalWidth))"
    assert chromium.js(f"Promise.all({pictures})") == [192] * 5
    assert chromium.js("document.querySelector('#shown').textContent") == "6 of 6 shown, by key, A to Z"
    requests = {event["request"]["url"].split(":")[0] for event in chromium.saw("Network.requestWillBeSent")}
    assert requests <= {"file", "data"}
    shot = Image.open(io.BytesIO(chromium.screenshot())).convert("RGB")
    far = np.abs(np.asarray(shot, int) - (0, 128, 128)).max(axis=-1)
    assert (far < 8).sum() >= 2 * 192 * 128  # teal: at least the first row of pictures, 192 x 128 pixels each


def test_hostile_text_is_shown_as_text_and_runs_nowhere(chromium, page):
    chromium.open(page)
    click(chromium, "[data-sort=clip]")
    chromium.js("document.querySelectorAll('details').forEach(details => { details.open = true })")
    captions = chromium.js(f"{VISIBLE}.map(card => card.querySelector('.caption').textContent)")
    assert SCRIPT in captions
    assert f"a red dog {INJECTION}" in captions
    assert chromium.js("document.scripts.length") == 1
    assert chromium.js("document.images.length") == 5
    assert chromium.js("document.title") == "Captions of 6 images"
    assert not chromium.saw("Page.javascriptDialogOpening")
    assert not chromium.saw("Runtime.exceptionThrown")
    assert not chromium.saw("Log.entryAdded")  # the security policy had nothing to refuse


def test_the_security_policy_refuses_what_escaping_might_have_missed(chromium, page):
    chromium.open(page)
    chromium.js("document.querySelector('#cards').innerHTML = `<li><img src=x onerror='document.title=1'></li>`")
    chromium.js("new Promise(done => setTimeout(done, 200))")
    assert chromium.js("document.title") == "Captions of 6 images"
    assert chromium.saw("Log.entryAdded")


def test_scores_sort_both_ways_with_missing_ones_last(chromium, page):
    chromium.open(page)
    click(chromium, "[data-sort=clip]")
    assert keys(chromium) == ["2", "4", "1", "5", "3", "10"]
    click(chromium, "[data-sort=clip]")
    assert keys(chromium) == ["5", "1", "4", "2", "3", "10"]
    click(chromium, "[data-sort=aligned]")
    assert keys(chromium) == ["5", "4", "1", "2", "3", "10"]
    click(chromium, "[data-sort=key]")
    assert keys(chromium) == ["1", "2", "3", "4", "5", "10"]
    click(chromium, "[data-sort=key]")
    assert keys(chromium) == ["10", "5", "4", "3", "2", "1"]


def test_the_filter_wants_every_word_in_any_case(chromium, page):
    chromium.open(page)
    fill(chromium, "DOG red")
    assert keys(chromium) == ["1", "5"]
    assert chromium.js("document.querySelector('#shown').textContent").startswith("2 of 6 shown")
    fill(chromium, "10.jpg")
    assert keys(chromium) == ["10"]
    fill(chromium, "zebra")
    assert keys(chromium) == []
    assert chromium.js("document.querySelector('#nothing').checkVisibility()")


def test_errors_only_shows_the_failed_image_with_its_code(chromium, page):
    chromium.open(page)
    click(chromium, "#errors")
    assert keys(chromium) == ["3"]
    assert chromium.js(f"{VISIBLE}[0].innerText").startswith("no picture\ntruncated\n")


def test_the_address_carries_the_view(chromium, page):
    chromium.open(page)
    fill(chromium, "red")
    click(chromium, "[data-sort=aligned]")
    fragment = chromium.js("location.hash")
    chromium.open(page, fragment)
    assert keys(chromium) == ["5", "1", "2"]
    assert chromium.js("document.querySelector('#text').value") == "red"


def test_an_address_of_nonsense_shows_everything(chromium, page):
    chromium.open(page, "#sort=constructor&order=%3Cb%3E&errors=yes")
    assert keys(chromium) == ["1", "2", "3", "4", "5", "10"]
    assert not chromium.saw("Runtime.exceptionThrown")


def test_the_keyboard_reaches_and_works_every_control(chromium, page):
    chromium.open(page)
    reached = []
    for _ in range(7):
        chromium.press("Tab")
        reached.append(chromium.js("document.activeElement.id || document.activeElement.dataset.sort || 'summary'"))
        outline = chromium.js("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
    assert reached == ["summary", "key", "clip", "aligned", "text", "errors", "summary"]
    chromium.press("Enter", "\r")
    assert chromium.js(f"{VISIBLE}[0].querySelector('.texts').innerText").split("\n")[:2] == [
        "0.500",
        "a red dog on grass chosen",
    ]
    chromium.js("document.querySelector('[data-sort=clip]').focus()")
    chromium.press(" ", " ")
    assert keys(chromium)[0] == "2"
    assert chromium.js("document.querySelector('[data-sort=clip]').ariaPressed") == "true"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_of_window_needs_scrolling_sideways(chromium, page, width):
    chromium.open(page, width=width)
    chromium.js("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert chromium.js("document.documentElement.scrollWidth") <= width
