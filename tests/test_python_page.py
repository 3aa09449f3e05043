"""The snippets of docs/python.md and README.md are run as they stand, in order, but with the embedded models."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
REPLACED = {'"ViT-B-32:openai"': '"tiny"', '"gpt2"': '"tiny"'}


@pytest.fixture
def folder(built, tmp_path, monkeypatch) -> Path:
    """The files that the snippets name."""
    png, jpeg, *_ = sorted(built.world.images.iterdir())
    (tmp_path / "photos").mkdir()
    shutil.copy(jpeg, tmp_path / "photos" / "one.jpg")
    shutil.copy(png, tmp_path / "photos" / "two.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(jpeg.read_bytes()[:700])
    shutil.copytree(built.index, tmp_path / "index")
    shutil.copytree(built.alignment, tmp_path / "alignment")
    image, text = np.random.default_rng(0).standard_normal((2, 300, 128)).astype(np.float32)
    np.savez(tmp_path / "pairs.npz", image=image, text=image + text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippets_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_snippet_of_the_first_page_does_what_it_says(folder, capsys):
    [snippet] = snippets_of("README.md")
    for there, here in REPLACED.items():
        assert there in snippet
        snippet = snippet.replace(there, here)
    exec(snippet, {})
    *_, caption, error = capsys.readouterr().out.splitlines()
    assert len(caption.split()) > 2 and error.startswith("truncated: ")


def test_the_snippets_do_what_they_say(folder, ray_running, capsys):
    names: dict = {}
    snippets = snippets_of("docs/python.md")
    assert len(snippets) == 4
    printed = []
    for snippet in snippets:
        for there, here in {**REPLACED, '"/data/': f'"{folder}/'}.items():
            snippet = snippet.replace(there, here)
        exec(snippet, names)
        printed.append(capsys.readouterr().out)
    lines = [line for line in printed[0].splitlines() if "captions are written" not in line]
    assert re.fullmatch(r"[a-z].*  \(CLIP-S \d\.\d\d\)", lines[0]) and lines[2].startswith("truncated: ")
    assert printed[1].startswith("holidays/one.jpg ['")
    assert "'MRR':" in printed[2] and (folder / "own-alignment" / "alignment.safetensors").exists()
    rows = {Path(row["key"]).name: row for row in pq.read_table(folder / "captions").to_pylist()}
    assert rows.keys() == {"one.jpg", "two.png", "broken.jpg"}
    assert rows["one.jpg"]["caption"] and rows["broken.jpg"]["error"].startswith("truncated: ")
