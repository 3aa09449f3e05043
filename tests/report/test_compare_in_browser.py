"""The comparison in a real headless Chromium, after its script ran (the fixture is in conftest.py)."""

import pytest

from recap_ray.report import render_comparison
from tests.report.rows import SCRIPT, row

VISIBLE = "[...document.querySelectorAll('.card')].filter(card => card.checkVisibility())"
KEYS = f"{VISIBLE}.map(card => card.querySelector('.key').textContent)"
FRAMES = "(async () => { for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame) })()"
RUN = {"settings": {"clip": "tiny", "output": f"out {SCRIPT}"}}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    scores = {"1": (0.5, 0.6), "2": (0.7, 0.4), "3": (0.5, 0.5), "4": (0.2, 0.8), "5": (0.3, None), "6": (None, None)}
    sides = []
    for side in (0, 1):
        rows = [
            row(key, caption=f"a dog {'' if key == '3' else SCRIPT if side else 'here'}", aligned_clip_score=both[side])
            if both[side]
            else row(key, error=f"truncated: {SCRIPT}")
            for key, both in scores.items()
        ]
        sides.append(rows)
    path = tmp_path_factory.mktemp("compare") / "compare.html"
    path.write_text(render_comparison(*sides, RUN, RUN, 6), encoding="utf-8")
    return path


def click(chromium, selector):
    chromium.js(f"document.querySelector({selector!r}).dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")


def test_hostile_text_is_shown_as_text_and_runs_nowhere(chromium, page):
    chromium.open(page)
    assert chromium.js(f"{VISIBLE}[0].querySelector('.b .caption').textContent.trim()") == f"a dog {SCRIPT}"
    assert chromium.js("document.scripts.length") == 1
    for event in ("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Log.entryAdded"):
        assert not chromium.saw(event)


def test_the_words_that_changed_are_marked(chromium, page):
    chromium.open(page)
    assert chromium.js(f"[...{VISIBLE}[0].querySelectorAll('mark')].map(mark => mark.textContent)") == ["here", SCRIPT]
    assert chromium.js(f"{VISIBLE}[2].querySelectorAll('mark').length") == 0


def test_changes_sort_both_ways_with_images_without_one_last(chromium, page):
    chromium.open(page)
    click(chromium, "[data-sort=aligned]")
    assert chromium.js(KEYS) == ["4", "1", "3", "2", "5", "6"]
    assert chromium.js("shown.textContent") == "6 of 6 shown, by aCLIP-S change, B ahead first"
    click(chromium, "[data-sort=aligned]")
    assert chromium.js(KEYS) == ["2", "3", "1", "4", "5", "6"]


@pytest.mark.parametrize(
    "kind, expected",
    [("changed", ["1", "2", "4"]), ("same", ["3"]), ("error-b", ["5"]), ("error-a", []), ("error-both", ["6"])],
)
def test_images_are_shown_by_what_changed(chromium, page, kind, expected):
    chromium.open(page, f"#kind={kind}")
    assert chromium.js(KEYS) == expected


def test_a_dot_leads_to_its_card_even_where_a_filter_hides_it(chromium, page):
    chromium.open(page, "#kind=same", height=400)
    click(chromium, ".dot:last-of-type")  # the rightmost: image 2
    assert chromium.js("document.activeElement.querySelector('.key').textContent") == "2"
    assert len(chromium.js(KEYS)) == 6
    chromium.js(FRAMES)
    box = chromium.js("document.activeElement.getBoundingClientRect().toJSON()")
    assert box["top"] >= 0 and box["bottom"] <= 400


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_what_is_sorted_is_scrolled_to_below_the_tools(chromium, page, width):
    chromium.open(page, width=width, height=600)
    chromium.js("scrollTo(0, document.documentElement.scrollHeight)")
    click(chromium, "[data-sort=aligned]")
    chromium.js(FRAMES)
    assert chromium.js(f"{VISIBLE}[0].getBoundingClientRect().top >= tools.getBoundingClientRect().bottom")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_part_of_a_card_lies_over_another(chromium, page, width):
    chromium.open(page, width=width)
    boxes = chromium.js(f"[...{VISIBLE}[0].children].map(part => part.getBoundingClientRect().toJSON())")
    assert len(boxes) == 4
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert (
                a["left"] >= b["right"] or b["left"] >= a["right"] or a["top"] >= b["bottom"] or b["top"] >= a["bottom"]
            )


def test_dots_are_reached_and_followed_by_keyboard(chromium, page):
    chromium.open(page)
    chromium.press("Tab")
    assert chromium.js("document.activeElement.getAttribute('aria-label')") == "4: A 0.200, B 0.800"
    chromium.press("ArrowRight")
    assert chromium.js("getComputedStyle(document.activeElement).outlineStyle") != "none"
    chromium.press("Enter", "\r")
    assert chromium.js("document.activeElement.querySelector('.key').textContent") == "1"
    chromium.js("document.querySelector('[data-sort=clip]').focus()")
    chromium.press("Enter", "\r")
    assert chromium.js("document.activeElement.ariaPressed") == "true"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_of_window_needs_scrolling_sideways(chromium, page, width):
    chromium.open(page, width=width)
    assert chromium.js("document.documentElement.scrollWidth") <= width
