import math
import re

import numpy as np

from recap_ray.report import render_gallery
from recap_ray.report.gallery import card, figures, stage_rows
from recap_ray.report.histogram import Counts
from tests.report.rows import SCRIPT, Page, row


def page(rows, settings=None, summary=None) -> Page:
    return Page(render_gallery(rows, {"settings": settings or {}}, summary or {}))


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
        "Images/s 12.3 in the last session, 81 s",
    ):
        assert expected in text


def test_what_the_run_does_not_know_is_left_out():
    seen = page([row("a")])
    assert "Images/s" not in seen.text
    assert "Settings of this run" not in seen.text


def test_a_sample_says_of_how_many_images_it_is_one():
    rows = [row("a"), row("b")]
    seen = Page(render_gallery(rows, {}, {"images": 12000}, "worst"))
    assert "Of the run's 12,000 images, those with the lowest aCLIP-S." in " ".join(seen.text.split())
    assert "Of the run's" not in page(rows, summary={"images": 2}).text


def test_repeated_captions_are_counted_the_commonest_first():
    rows = [row("1"), row("2", caption="a cat"), row("3", caption="a cat"), row("4", caption="a sun")]
    rows += [row("5", caption="a cat"), row("6", caption="a sun"), row("7", error="empty: 0 bytes")]
    seen = figures(rows)
    assert (seen.distinct, seen.repeated, seen.repeated_in_all) == (3, [("a cat", 3), ("a sun", 2)], 2)
    text = " ".join(page(rows).text.split())
    assert "Distinct captions 3 the commonest for 3 images" in text
    assert "2 captions were written for more than one image" in text
    assert "3 50.0 % a cat 2 33.3 % a sun" in text


def test_histograms_of_scores_are_of_the_whole_run_and_tell_what_the_page_shows():
    scores = Counts(100, [0.5] * 7 + [0.25])
    rows = [row("a"), row("b", caption="a very small dog")]
    seen = Page(render_gallery(rows, {}, {"images": 8}, scores={"clip_score": scores, "aligned_clip_score": scores}))
    bars = {bar["aria-label"]: bar for bar in seen.all("g")}
    assert "aCLIP-S 0.50 to 0.52: 7" in bars and "aCLIP-S 0.24 to 0.26: 1" in bars
    assert bars["aCLIP-S 0.50 to 0.52: 7"]["data-only"] == "aligned 0.5 0.52"
    assert "data-only" not in bars["aCLIP-S 0.24 to 0.26: 1"]  # nothing to show
    assert "0.50 to 0.52: 7 images, 2 in this page" in seen.text
    assert {"Caption length 2 words: 1", "Caption length 4 words: 1"} <= bars.keys()


def test_the_filter_offers_each_error_code_with_its_count():
    rows = [row("a"), row("b", error="empty: 0 bytes"), row("c", error="truncated: x"), row("d", error="truncated: y")]
    seen = page(rows)
    text = " ".join(seen.text.split())
    assert "all images (4) captioned (1) any error (3) truncated (2) empty (1)" in text
    assert [option["value"] for option in seen.all("option")] == [
        "",
        "captioned",
        "error",
        "error truncated",
        "error empty",
    ]


def test_stage_times_are_a_table_that_marks_the_bottleneck():
    stages = {
        "busy_seconds": {"read": 1.0, "generate": 3.0},
        "waiting_seconds": {"decoded": 2.5},
        "images_per_second_of_one_worker": {"read": 40.0},
        "bottleneck": "generate",
    }
    read, generate = stage_rows(stages)
    assert (read["share"], read["rate"], read["bottleneck"]) == (0.25, 40.0, False)
    assert (generate["share"], generate["rate"], generate["bottleneck"]) == (0.75, None, True)
    text = " ".join(page([row("a")], summary={"stages": stages}).text.split())
    assert "read 1.0 s 25.0 % 40.0 generate bottleneck 3.0 s 75.0 % \N{EN DASH}" in text
    assert "Waiting: decoded parts for an actor 2.5 s." in text
    assert "Where the time of the last session went" in text
    assert "Where the time" not in page([row("a")]).text


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


def test_an_error_row_shows_its_code_message_and_source_and_no_caption():
    seen = page([row("b.jpg", error="truncated: ends at row 12: 3 of 9 blocks")])
    text = " ".join(seen.text.split())
    assert "truncated ends at row 12: 3 of 9 blocks" in text
    assert "Read from pictures/b.jpg" in text
    assert "None" not in text
    assert "no picture" in text
    assert not seen.all("img")


def test_a_caption_whose_picture_cannot_be_had_has_a_card_with_the_reason():
    seen = page([row("a.jpg", no_picture="unreadable: No such file or directory")])
    assert "no picture unreadable: No such file or directory a dog" in " ".join(seen.text.split())


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
