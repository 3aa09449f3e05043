import pytest

from recap_ray.report import render_comparison
from recap_ray.report.compare import card, differing_settings, not_comparable, verdict, word_changes
from tests.report.rows import SCRIPT, Page, row

SCORES = ("clip_score", "aligned_clip_score")
RUN = {"settings": {"clip": "tiny", "output": "out-a", "beams": 0}, "made_from": {"clip": "tiny@1", "alignment": "x"}}


def page(a, b, run_b=RUN, in_both=0) -> Page:
    return Page(render_comparison(a, b, RUN, run_b, in_both))


def text(seen: Page) -> str:
    return " ".join(seen.text.split())


def test_words_that_changed_are_marked_on_both_sides():
    a, b = word_changes("a small dog on grass", "a big brown dog on grass today")
    assert a == [("a", False), ("small", True), ("dog on grass", False)]
    assert b == [("a", False), ("big brown", True), ("dog on grass", False), ("today", True)]
    assert word_changes("a  dog", "a dog") == ([("a dog", False)], [("a dog", False)])


def test_wins_ties_and_losses_are_counted_where_both_have_the_score():
    seen = verdict("aCLIP-S", [0.1, 0.2, -0.1, 0.0, 0.0004, None])
    assert (seen.higher_in_a, seen.higher_in_b, seen.equal) == (1, 2, 2)
    assert seen.mean_change == pytest.approx(0.2004 / 5)


def test_the_header_counts_what_changed():
    error = {"error": "empty: 0 bytes"}
    a = [row("1"), row("2"), row("3"), row("4", **error), row("5", **error)]
    b = [row("1", aligned_clip_score=0.75), row("2", caption="a cat"), row("3", **error), row("4"), row("5", **error)]
    seen = text(page(a, b, in_both=70))
    for expected in (
        "Captions of 5 images in two runs",
        "Of the 70 images that both runs have, evenly spread",
        "aCLIP-S higher in A 0 B 1 1 equal; B \N{MINUS SIGN} A: +0.125 on average",
        "Identical captions 1 of 2 captioned in both",
        "Errors only in A 1 B 1 1 in both",
        "all images (5) changed captions (1) identical captions (1) error only in A (1) error only in B (1)",
    ):
        assert expected in seen


def test_the_higher_score_is_told_with_the_difference():
    seen = page([row("1")], [row("1", aligned_clip_score=0.75, clip_score=0.5)])
    assert "higher by 0.250" in seen.text
    [item] = [e for e in seen.all("li") if e.get("class") == "card"]
    assert (item["data-aligned"], item["data-clip"]) == ("0.25", "-0.25")


def test_a_card_without_a_score_has_no_difference():
    assert card(row("1"), row("1", error="empty: 0 bytes"), SCORES)["changes"] == dict.fromkeys(SCORES)


def test_scores_of_different_clip_models_are_not_compared():
    other = {"settings": {"clip": "tiny"}, "made_from": {"clip": "tiny@2", "alignment": "x"}}
    assert set(not_comparable(RUN, other)) == set(SCORES)
    seen = page([row("1")], [row("1", aligned_clip_score=0.75)], other)
    assert "aCLIP-S cannot be compared: the runs used different CLIP models, tiny@1 and tiny@2." in text(seen)
    assert "higher" not in seen.text and not seen.all("circle")
    assert [button["data-sort"] for button in seen.all("button") if "data-sort" in button] == ["key"]


def test_through_different_maps_only_clip_s_is_compared():
    other = {"settings": {"clip": "tiny"}, "made_from": {"clip": "tiny@1", "alignment": None}}
    assert set(not_comparable(RUN, other)) == {"aligned_clip_score"}
    seen = text(page([row("1")], [row("1")], other))
    assert "CLIP-S higher in" in seen and "aCLIP-S higher in" not in seen
    assert "CLIP-S of B" in seen and "aCLIP-S of B" not in seen


def test_settings_that_differ_are_told_and_the_folders_are_not_among_them():
    other = {"settings": {"clip": "tiny", "output": "out-b", "beams": 5}, "made_from": {"clip": "tiny@1"}}
    assert differing_settings(RUN, other) == [("beams", "0", "5"), ("alignment, as found", "x", "none")]
    assert "Both runs have the same settings." in page([row("1")], [row("1")]).text


def test_a_dot_leads_to_the_card_of_its_image():
    a = [row(key, aligned_clip_score=score) for key, score in (("10", 0.9), ("9", 0.1))]
    dots = page(a, a).all("circle")
    assert [dot["data-card"] for dot in dots] == ["0", "1"]  # cards come by key, dots from left to right
    assert dots[0]["aria-label"] == "9: A 0.100, B 0.100"


def test_every_text_is_escaped():
    hostile = f'"{SCRIPT}\'--></li><img src=x onerror="alert(1)">'
    a = [row(hostile, caption=hostile, thumbnail=hostile), row("b", error=f"{hostile}: {hostile}")]
    b = [row(hostile, caption="a" + hostile), row("b", caption=hostile)]
    run = {"settings": {"clip": hostile, "output": hostile, hostile: hostile}}
    seen = Page(render_comparison(a, b, run, {"settings": {"clip": "x" + hostile}}, 2))
    assert len(seen.all("script")) == 1
    assert [attributes["src"] for attributes in seen.all("img")] == [hostile]
    assert not any(name.startswith("on") or name == "style" for _, given in seen.elements for name in given)
