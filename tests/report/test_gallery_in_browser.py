"""The page in a real headless Chromium, after its script ran (the fixture is in conftest.py)."""

import io

import numpy as np
import pytest
from PIL import Image

from recap_ray.report import render_gallery, thumbnail

SCRIPT = "<script>alert(1)</script>"
INJECTION = '"><img src=x onerror="alert(2);document.title=\'gone\'"></script><script>alert(3)</script>'
VISIBLE = "[...document.querySelectorAll('.card')].filter(card => card.checkVisibility())"
NAME = "e => e.id || e.dataset.sort || (e.classList.contains('bar') ? 'bar' : 'summary')"
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
        "no_picture": None,
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
        row("11.jpg", None, None, None, "empty: 0 bytes"),
        row("12.jpg", "a red cat", 0.9, 0.2),
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


def choose(chromium, kind):
    chromium.js(f"kind.value = {kind!r}; kind.dispatchEvent(new Event('change'))")


def fill(chromium, words):
    chromium.js("document.querySelector('#text').focus(); document.querySelector('#text').select()")
    chromium("Input.insertText", text=words)


def test_pictures_and_captions_are_shown_and_nothing_is_asked_from_outside(chromium, page):
    chromium.open(page)
    assert keys(chromium) == ["1", "2", "3", "4", "5", "10", "11", "12"]
    pictures = "[...document.images].map(image => image.decode().then(() => image.naturalWidth))"
    assert chromium.js(f"Promise.all({pictures})") == [192] * 6
    assert chromium.js("document.querySelector('#shown').textContent") == "8 of 8 shown, by key, A to Z"
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
    assert chromium.js("document.images.length") == 6
    assert chromium.js("document.title") == "Captions of 8 images"
    assert not chromium.saw("Page.javascriptDialogOpening")
    assert not chromium.saw("Runtime.exceptionThrown")
    assert not chromium.saw("Log.entryAdded")  # the security policy had nothing to refuse


def test_the_security_policy_refuses_what_escaping_might_have_missed(chromium, page):
    chromium.open(page)
    chromium.js("document.querySelector('#cards').innerHTML = `<li><img src=x onerror='document.title=1'></li>`")
    chromium.js("new Promise(done => setTimeout(done, 200))")
    assert chromium.js("document.title") == "Captions of 8 images"
    assert chromium.saw("Log.entryAdded")


def test_scores_sort_both_ways_with_missing_ones_last(chromium, page):
    chromium.open(page)
    click(chromium, "[data-sort=clip]")
    assert keys(chromium) == ["2", "12", "4", "1", "5", "3", "10", "11"]
    click(chromium, "[data-sort=clip]")
    assert keys(chromium) == ["5", "1", "4", "2", "12", "3", "10", "11"]
    click(chromium, "[data-sort=aligned]")
    assert keys(chromium) == ["5", "4", "1", "2", "12", "3", "10", "11"]
    click(chromium, "[data-sort=key]")
    assert keys(chromium) == ["1", "2", "3", "4", "5", "10", "11", "12"]
    click(chromium, "[data-sort=key]")
    assert keys(chromium) == ["12", "11", "10", "5", "4", "3", "2", "1"]


def test_the_filter_wants_every_word_in_any_case(chromium, page):
    chromium.open(page)
    fill(chromium, "DOG red")
    assert keys(chromium) == ["1", "5"]
    assert chromium.js("document.querySelector('#shown').textContent").startswith("2 of 8 shown")
    fill(chromium, "10.jpg")
    assert keys(chromium) == ["10"]
    fill(chromium, "zebra")
    assert keys(chromium) == []
    assert chromium.js("document.querySelector('#nothing').checkVisibility()")


def test_errors_are_shown_all_or_by_their_code(chromium, page):
    chromium.open(page)
    choose(chromium, "error")
    assert keys(chromium) == ["3", "11"]
    choose(chromium, "error truncated")
    assert keys(chromium) == ["3"]
    assert chromium.js(f"{VISIBLE}[0].innerText").startswith("no picture\ntruncated\n")
    choose(chromium, "captioned")
    assert keys(chromium) == ["1", "2", "4", "5", "10", "12"]


def test_a_bar_shows_its_images_alone_and_pressed_again_all(chromium, page):
    chromium.open(page)
    bar = "[data-only^='aligned 0.2']"
    chromium.js(f"document.querySelector(\"{bar}\").dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
    assert keys(chromium) == ["2", "12"]
    assert chromium.js(f'document.querySelector("{bar}").ariaPressed') == "true"
    assert chromium.js("document.querySelector('#only').innerText").startswith("Only aCLIP-S 0.20 to ")
    fragment = chromium.js("location.hash")
    chromium.open(page, fragment)
    assert keys(chromium) == ["2", "12"]
    click(chromium, "#only")
    assert len(keys(chromium)) == 8
    assert not chromium.js("document.querySelector('#only').checkVisibility()")


def test_a_mouse_on_a_bar_is_a_click_on_it(chromium, page):
    chromium.open(page)
    at = chromium.js(
        "(() => { const b = document.querySelector(\"[data-only^='length 2.0 ']\").getBoundingClientRect();"
        " return {x: b.x + b.width / 2, y: b.y + 3} })()"
    )  # the top of a low bar's column: all of it can be pressed
    for kind in ("mousePressed", "mouseReleased"):
        chromium("Input.dispatchMouseEvent", type=kind, **at, button="left", clickCount=1)
    assert keys(chromium) == ["10"]


def test_bars_are_one_stop_of_tab_and_arrows_go_from_one_to_the_next(chromium, page):
    chromium.open(page)
    chromium.press("Tab")
    assert chromium.js("document.activeElement.getAttribute('aria-label')").startswith("CLIP-S 0.6")
    chromium.press("End")
    chromium.press("Enter", "\r")
    assert keys(chromium) == ["2", "12"]
    assert chromium.js("document.activeElement.ariaPressed") == "true"
    chromium.press(" ", " ")
    assert len(keys(chromium)) == 8
    chromium.press("ArrowRight")  # there is none further right
    assert chromium.js("document.activeElement.getAttribute('aria-label')").startswith("CLIP-S 0.90")
    chromium.press("Tab")
    assert chromium.js("document.activeElement.getAttribute('aria-label')").startswith("aCLIP-S")


def test_a_repeated_caption_shows_its_images_alone(chromium, page):
    chromium.open(page)
    chromium.js("document.querySelector('.repeated').open = true")
    click(chromium, ".repeated button")
    assert keys(chromium) == ["2", "12"]
    assert chromium.js("document.querySelector('#only').innerText").startswith("Only “a red cat”")
    choose(chromium, "error")  # both filters at once
    assert keys(chromium) == []


def test_the_best_and_the_worst_of_a_run_come_in_that_order(chromium, tmp_path):
    rows = [row(f"{i}.jpg", "a dog", 0.5, score) for i, score in enumerate((0.2, 0.4, 0.3))]
    for sample, expected in (("best", ["1", "2", "0"]), ("worst", ["0", "2", "1"])):
        path = tmp_path / f"{sample}.html"
        path.write_text(render_gallery(rows, {}, {}, sample), encoding="utf-8")
        chromium.open(path)
        assert keys(chromium) == expected


def test_the_address_carries_the_view(chromium, page):
    chromium.open(page)
    fill(chromium, "red")
    choose(chromium, "captioned")
    click(chromium, "[data-sort=aligned]")
    fragment = chromium.js("location.hash")
    chromium.open(page, fragment)
    assert keys(chromium) == ["5", "1", "2", "12"]
    assert chromium.js("document.querySelector('#text').value") == "red"
    assert chromium.js("document.querySelector('#kind').value") == "captioned"


def test_an_address_of_nonsense_shows_everything(chromium, page):
    chromium.open(page, "#sort=constructor&order=%3Cb%3E&kind=no&only=aligned+0+9")
    assert keys(chromium) == ["1", "2", "3", "4", "5", "10", "11", "12"]
    assert not chromium.saw("Runtime.exceptionThrown")


def test_the_keyboard_reaches_and_works_every_control(chromium, page):
    chromium.open(page)
    reached = []
    for _ in range(11):
        chromium.press("Tab")
        reached.append(chromium.js(f"(({NAME}))(document.activeElement)"))
        outline = chromium.js("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
    assert reached == [*["bar"] * 3, *["summary"] * 2, "key", "clip", "aligned", "text", "kind", "summary"]
    chromium.press("Enter", "\r")
    assert chromium.js(f"{VISIBLE}[0].querySelector('.texts').innerText").split("\n")[:2] == [
        "0.500",
        "a red dog on grass chosen",
    ]
    chromium.js("document.querySelector('[data-sort=clip]').focus()")
    chromium.press(" ", " ")
    assert keys(chromium)[0] == "2"
    assert chromium.js("document.querySelector('[data-sort=clip]').ariaPressed") == "true"
    chromium.js("document.querySelector('#kind').focus()")
    chromium.press("ArrowDown")
    chromium.press("ArrowDown")
    assert keys(chromium) == ["3", "11"]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_of_window_needs_scrolling_sideways(chromium, page, width):
    chromium.open(page, width=width)
    chromium.js("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert chromium.js("document.documentElement.scrollWidth") <= width
