"""Rows to make pages of, and what a browser would make of a page."""

from html.parser import HTMLParser

from recap_ray.schema import CAPTION_SCHEMA as SCHEMA

SCRIPT = "<script>alert(1)</script>"


def row(key: str, **changes):
    """An output row of the real schema: captioned, unless `changes` carry an error."""
    full = dict.fromkeys(SCHEMA.names) | {
        "key": key,
        "source": f"pictures/{key}",
        "thumbnail": None,
        "no_picture": None,
    }
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
