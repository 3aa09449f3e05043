import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import hmean, kendalltau

from recap_ray.alignment import LinearAlignment
from recap_ray.cli import run
from recap_ray.errors import UserError
from recap_ray.metrics.ngram import score_captions
from recap_ray.pipelines.evaluate.job import evaluate
from recap_ray.pipelines.evaluate.rows import match_keys
from recap_ray.settings import EvaluateSettings
from recap_ray.tables.captions import read_pairs
from tests.pipelines.embedded import embed_in_one_go

PREFIX = "A photo depicts "
RATED, UNTOLD = "rated.csv", "untold.json"  # made where a test names them


def scores_of(folder: Path, **given) -> dict:
    settings = EvaluateSettings(
        **{name: str(v) if isinstance(v, Path) else v for name, v in given.items()},
        output=str(folder / "scores.json"),
        tokenizer="python",
        metrics="BLEU,ROUGE-L,CIDEr",
    )
    assert evaluate(settings) == 0
    return json.loads((folder / "scores.json").read_text())


@pytest.fixture(scope="module")
def references(built) -> dict[str, list[str]]:
    table = read_pairs(str(built.world.references), "--references")
    return dict(zip(table["image"].to_pylist(), table["captions"].to_pylist()))


@pytest.fixture(scope="module")
def evaluated(built, run_folder, tmp_path_factory) -> tuple[dict, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("evaluated")
    scores = scores_of(folder, captions=run_folder, references=built.world.references, retrieval=True)
    table = pq.read_table(folder / "scores.parquet")
    return scores, {name: table[name].to_numpy() for name in table.column_names}


def first_pairs(built, references, folder: Path, clip):
    """Each held-out image with its first reference, embedded in this process."""
    rows = [f"held-out-images/{key}\t{own[0]}" for key, own in references.items()]
    (folder / "first.tsv").write_text("\n".join(["image\tcaption", *rows]))
    (folder / "held-out-images").symlink_to(built.world.images)
    return embed_in_one_go(folder / "first.tsv", clip)


def test_scores_come_with_what_they_were_made_of(evaluated, run_folder):
    scores, _ = evaluated
    assert (scores["images"], scores["scored"], scores["without_references"]) == (60, 60, 0)
    made_with = scores["made_with"]
    assert made_with["tokenizer"] == "python" and made_with["CLIP"].startswith("local-dir:tiny_clip@")
    assert made_with["CLIP-S"] == "2.5 max(cos, 0), captions after 'A photo depicts '"
    for name in ("RefCLIP-S", "aCLIP-S", "RefaCLIP-S"):
        assert ("no prefix" in made_with[name]) == ("aCLIP" in name)
    assert 0 < scores["metrics"]["BLEU-4"] < scores["metrics"]["BLEU-1"] < 1
    rows = pq.read_table(run_folder / "captions")
    assert scores["metrics"]["CLIP-S"] == pytest.approx(np.mean(rows["clip_score"].to_numpy()), rel=1e-5)
    assert scores["metrics"]["aCLIP-S"] == pytest.approx(np.mean(rows["aligned_clip_score"].to_numpy()), rel=1e-5)


def test_reference_scores_equal_those_of_one_process_caption_by_caption(evaluated, built, run_folder, references, clip):
    _, by_image = evaluated
    alignment = LinearAlignment.from_bytes((Path(built.alignment) / "alignment.safetensors").read_bytes())
    rows = {row["key"]: row for row in pq.read_table(run_folder / "captions").to_pylist()}
    for i, key in enumerate(by_image["key"]):
        row = rows[key]
        for name, own, prefix in (("RefCLIP-S", "clip_score", PREFIX), ("RefaCLIP-S", "aligned_clip_score", "")):
            embeddings = clip.encode_texts([prefix + t for t in (row["caption"], *references[key])])
            caption, *others = alignment.map_captions(embeddings) if name == "RefaCLIP-S" else embeddings
            expected = hmean([row[own], max(0, *(float(caption @ other) for other in others))])
            assert by_image[name][i] == pytest.approx(expected, abs=1e-5)


def test_retrieval_equals_that_of_one_process(evaluated, built, references, clip, tmp_path):
    scores, by_image = evaluated
    pairs = first_pairs(built, references, tmp_path, clip)
    alignment = LinearAlignment.from_bytes((Path(built.alignment) / "alignment.safetensors").read_bytes())
    cosines = alignment.map_images(pairs.images) @ alignment.map_captions(pairs.texts).T
    # Two images may have the same first reference: a tie counts against both, however it is rounded.
    expected = np.array([1 + (np.delete(row, i) >= row[i] - 1e-6).sum() for i, row in enumerate(cosines)])
    rank_of = dict(zip(by_image["key"], by_image["rank"]))
    assert np.mean([rank_of[key] == rank for key, rank in zip(references, expected)]) > 0.98
    assert scores["retrieval"]["R@1"] == np.mean(by_image["rank"] == 1)
    assert scores["retrieval"]["MRR"] == pytest.approx(np.mean(1 / by_image["rank"]))


def test_every_number_has_a_standard_error_and_the_table_by_image_gives_the_means(evaluated):
    scores, by_image = evaluated
    for name in ("ROUGE-L", "CIDEr", "CLIP-S", "RefCLIP-S", "aCLIP-S", "RefaCLIP-S"):
        assert scores["metrics"][name] == pytest.approx(np.mean(by_image[name]))
        analytic = np.std(by_image[name], ddof=1) / np.sqrt(60)
        assert scores["standard_errors"][name] == pytest.approx(analytic, rel=0.15)
    assert 0 < scores["standard_errors"]["BLEU-4"] < 0.2
    hits = by_image["rank"] == 1
    assert scores["retrieval"]["standard_errors"]["R@1"] == pytest.approx(np.std(hits) / np.sqrt(60), rel=0.15)


def test_a_json_list_of_the_same_captions_has_the_same_scores(
    evaluated, built, run_folder, references, tmp_path, capsys
):
    captions = {row["key"]: row["caption"] for row in pq.read_table(run_folder / "captions").to_pylist()}
    entries = [{"image_name": key, "captions": own, "prediction": captions[key]} for key, own in references.items()]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    eyes = {"clip": "tiny", "alignment": built.alignment, "images": built.world.images, "retrieval": True}
    found = scores_of(tmp_path, captions=tmp_path / "list.json", **eyes)
    expected = evaluated[0]
    assert found["metrics"].keys() == expected["metrics"].keys()
    for name, value in expected["metrics"].items():
        assert found["metrics"][name] == (value if value is None else pytest.approx(value, abs=1e-4)), name
    assert found["retrieval"]["R@1"] == pytest.approx(expected["retrieval"]["R@1"], abs=0.05)
    # Without a CLIP the words are scored alone.
    words = scores_of(tmp_path, captions=tmp_path / "list.json")
    assert "CLIP-S" not in words["metrics"] and words["metrics"]["CIDEr"] == expected["metrics"]["CIDEr"]
    assert "CLIP" not in words["made_with"]
    with pytest.raises(UserError, match="--retrieval ranks images by CLIP: name it with --clip"):
        scores_of(tmp_path, captions=tmp_path / "list.json", retrieval=True)
    assert "CIDEr" in capsys.readouterr().out


def test_another_clip_scores_the_pictures_anew_and_no_clip_scores_keeps_the_runs_own(
    evaluated, built, run_folder, tmp_path
):
    given = {"captions": run_folder, "references": built.world.references}
    anew = scores_of(tmp_path, **given, clip="tiny")
    assert anew["metrics"]["CLIP-S"] == pytest.approx(evaluated[0]["metrics"]["CLIP-S"], abs=1e-4)
    assert "aCLIP-S" not in anew["metrics"]  # no map was named for it
    kept = scores_of(tmp_path, **given, clip_scores=False)
    assert kept["metrics"]["CLIP-S"] == evaluated[0]["metrics"]["CLIP-S"]
    assert "RefCLIP-S" not in kept["metrics"] and kept["metrics"]["aCLIP-S"] > 0


def test_an_unreadable_picture_and_a_missing_caption_leave_gaps_not_errors(built, references, tmp_path):
    images = shutil.copytree(built.world.images, tmp_path / "images")
    keys = list(references)[:10]
    (images / keys[3]).write_bytes(b"no image")
    entries = [{"key": key, "captions": references[key], "prediction": references[key][0]} for key in keys]
    entries[5]["prediction"] = " "
    (tmp_path / "list.json").write_text(json.dumps(entries))
    found = scores_of(tmp_path, captions=tmp_path / "list.json", clip="tiny", images=images)
    table = pq.read_table(tmp_path / "scores.parquet")
    missing = {name: [i for i, v in enumerate(table[name].to_pylist()) if v is None] for name in table.column_names}
    assert (found["images"], found["scored"], found["without_caption"]) == (10, 9, 1)
    assert found["images_scored"]["CLIP-S"] == 8 and found["images_scored"]["CIDEr"] == 9
    assert missing["CLIP-S"] == missing["RefCLIP-S"] == [3, 5] and missing["CIDEr"] == missing["caption"] == [5]


def test_agreement_with_a_table_of_ratings_equals_scipys_on_scores_computed_apart(built, references, clip, tmp_path):
    keys = list(references)[:20]
    rng = np.random.default_rng(0)
    rows, pairs = ["image\tcaption\trating"], []
    for i, key in enumerate(keys):
        for other in (key, keys[(i + 7) % 20]):
            pairs.append((key, references[other][1]))
            rating = (3 if other == key else 1) + rng.integers(0, 2)
            rows += [f"{key}\t{references[other][1]}\t{rating}", f"{key}\t{references[other][1]}\t{rating + 1}"]
    (tmp_path / "rated.tsv").write_text("\n".join(rows))
    given = {"references": built.world.references, "clip": "tiny", "images": built.world.images}
    found = scores_of(tmp_path, judgements=tmp_path / "rated.tsv", **given, alignment=built.alignment)
    assert (found["protocol"], found["images"], found["ratings"]) == ("table", 20, 80)
    table = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    ratings = [row["ratings"] for row in table]
    words = score_captions(
        {str(i): row["caption"] for i, row in enumerate(table)},
        {str(i): references[row["image"]] for i, row in enumerate(table)},
        "python",
        ["CIDEr"],
    )
    texts = clip.encode_texts([PREFIX + row["caption"] for row in table])
    images = first_pairs(built, references, tmp_path, clip).images[[list(references).index(r["image"]) for r in table]]
    for name, values in {"CIDEr": words.per_image["CIDEr"], "CLIP-S": 2.5 * (images * texts).sum(1).clip(0)}.items():
        assert [row[name] for row in table] == pytest.approx(values, abs=1e-4)
        for variant in "bc":
            points = [row[name] for row in table for _ in row["ratings"]]
            tau = kendalltau(points, np.concatenate(ratings), variant=variant).statistic
            assert found["agreement"][name][f"tau-{variant}"] == pytest.approx(100 * tau)
    assert {"RefCLIP-S", "aCLIP-S", "RefaCLIP-S", "BLEU-4", "ROUGE-L"} <= found["agreement"].keys()


def test_a_metric_that_some_rated_caption_lacks_is_left_out_with_its_reason(built, references, tmp_path):
    images = shutil.copytree(built.world.images, tmp_path / "images")
    keys = list(references)[:4]
    (images / keys[2]).write_bytes(b"no image")
    rows = [f"{key}\t{references[key][0]}\t{i}" for i, key in enumerate(keys)]
    (tmp_path / "rated.tsv").write_text("\n".join(["image\tcaption\trating", *rows]))
    given = {"references": built.world.references, "clip": "tiny", "images": images}
    found = scores_of(tmp_path, judgements=tmp_path / "rated.tsv", **given)
    assert (
        found["left_out"]["CLIP-S"]
        == f"1 captions have no score, the first is {references[keys[2]][0]!r} of the image {keys[2]}"
    )
    assert "CLIP-S" not in found["agreement"] and "CIDEr" in found["agreement"]


def test_a_file_name_matches_only_where_it_is_one_images_on_both_sides():
    references = {"train/1.jpg": ["x"], "2.jpg": ["y"]}
    assert match_keys(["train/1.jpg", "val/1.jpg"], references, "r") == {
        "train/1.jpg": "train/1.jpg",
        "val/1.jpg": None,
    }
    both = {"val/1.jpg": ["x"], "train/1.jpg": ["y"]}
    assert match_keys(["val/1.jpg", "test/1.jpg"], both, "r") == {"val/1.jpg": "val/1.jpg", "test/1.jpg": None}
    assert match_keys(["a/2.jpg"], references, "r") == {"a/2.jpg": "2.jpg"}
    assert match_keys(["a/2.jpg", "b/2.jpg", "train/1.jpg"], references, "r") == {
        "a/2.jpg": None,
        "b/2.jpg": None,
        "train/1.jpg": "train/1.jpg",
    }


def test_retrieval_refuses_an_alignment_that_has_changed(built, run_folder, tmp_path):
    output = shutil.copytree(run_folder, tmp_path / "out")
    run = json.loads((output / "run.json").read_text())
    run["made_from"]["alignment"] = "another"
    (output / "run.json").write_text(json.dumps(run))
    given = {"captions": str(output), "references": str(built.world.references), "retrieval": True}
    with pytest.raises(UserError, match="has changed since these captions were made"):
        evaluate(EvaluateSettings(**given, output=str(tmp_path / "scores.json")))


def test_the_scale_and_prefix_of_aclip_s_can_be_chosen_and_are_told(
    built, run_folder, references, clip, tmp_path, capsys
):
    given = {"captions": run_folder, "references": built.world.references}
    found = scores_of(tmp_path, **given, aligned_scale=2.5, aligned_prefix=PREFIX)
    told = "2.5 max(cos, 0) of image and caption, as the alignment maps both, captions after 'A photo depicts '"
    assert found["made_with"]["aCLIP-S"] == told and told in capsys.readouterr().out
    table = {row["key"]: row for row in pq.read_table(tmp_path / "scores.parquet").to_pylist()}
    alignment = LinearAlignment.from_bytes((Path(built.alignment) / "alignment.safetensors").read_bytes())
    images = alignment.map_images(first_pairs(built, references, tmp_path, clip).images)
    encode = lambda texts: alignment.map_captions(clip.encode_texts([PREFIX + text for text in texts]))  # noqa: E731
    texts = encode([table[key]["caption"] for key in references])
    expected = 2.5 * (images * texts).sum(1).clip(0)
    assert [table[key]["aCLIP-S"] for key in references] == pytest.approx(expected, abs=1e-4)
    likeness = [max(0, *(float(text @ r) for r in encode(references[key]))) for key, text in zip(references, texts)]
    both = [hmean([a, b]) for a, b in zip(expected, likeness)]
    assert [table[key]["RefaCLIP-S"] for key in references] == pytest.approx(both, abs=1e-4)


def test_no_file_that_is_read_is_written_over(refused, built, tmp_path):
    (tmp_path / "mine.parquet").write_bytes(b"precious")
    (tmp_path / "list.json").write_text(json.dumps([{"key": "a", "captions": ["x"], "prediction": "x"}]))
    beside = {"captions": None, "judgements": tmp_path / "mine.parquet", "output": tmp_path / "mine.json"}
    assert "would write over --judgements" in refused(**beside)
    same = {"captions": tmp_path / "list.json", "references": None, "output": tmp_path / "list.json"}
    assert "would write over --captions" in refused(**same)
    assert "expected the name of a JSON file" in refused(output=tmp_path / "s.parquet")
    assert (tmp_path / "mine.parquet").read_bytes() == b"precious"


@pytest.fixture
def refused(run_folder, built, tmp_path, capsys):
    """Runs `evaluate` with some flags changed; gives the one line it says."""

    def refused(**changes):
        given = {"captions": run_folder, "references": built.world.references, "output": tmp_path / "s.json", **changes}
        flags = [
            text
            for name, value in given.items()
            if value is not None
            for text in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
        ]
        capsys.readouterr()
        assert run(["evaluate", *flags]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recap-ray: ")]
        assert len(lines) == 1
        return lines[0]

    return refused


def test_references_of_other_images_are_told_and_a_subset_is_allowed(
    refused, built, references, run_folder, tmp_path, evaluated
):
    (tmp_path / "other.tsv").write_text("other.jpg\ta dog\n")
    line = refused(references=tmp_path / "other.tsv")
    assert "names none of the captioned images: it has 'other.jpg', the output has 'scene-" in line
    more = tmp_path / "more.tsv"
    more.write_text(built.world.references.read_text() + "extra.jpg\ta dog\nmore.jpg\ta cat\n")
    line = refused(references=more)
    assert "is of 2 images that were not captioned, the first is 'extra.jpg'" in line and "--subset" in line
    found = scores_of(tmp_path, captions=run_folder, references=more, subset=True)
    assert found["metrics"]["CIDEr"] == evaluated[0]["metrics"]["CIDEr"]


def test_a_key_that_comes_twice_is_told(refused, run_folder, tmp_path):
    output = shutil.copytree(run_folder, tmp_path / "out")
    part = min((output / "captions").glob("part-*"))
    shutil.copy(part, output / "captions" / "part-999999-copy.parquet")
    assert "holds the key 'scene-00000.png' twice" in refused(captions=output)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"captions": None}, "give --captions (to score them) or --judgements"),
        ({"references": None}, "give with --references the captions to score against"),
        ({"judgements": "x.tsv"}, "one of the two"),
        ({"retrieval": True, "no-clip-scores": True}, "--retrieval ranks captioned images by CLIP"),
        ({"clip": "tiny", "no-clip-scores": True}, "leave --clip and --aligned-... out"),
        ({"aligned-scale": 0}, "--aligned-scale 0.0: expected above 0"),
        ({"alignment": "x"}, "name with --clip the model that it was fitted for"),
        ({"captions": "x.json"}, "includes its references: leave --references out"),
        ({"captions": "x.json", "references": None, "clip": "tiny"}, "x.json"),
        ({"captions": None, "judgements": "none.tsv"}, "none.tsv does not exist"),
        (
            {"captions": None, "references": None, "judgements": RATED, "clip": "tiny"},
            "--clip tiny: give with --images the folder of the images to score",
        ),
        (
            {"captions": None, "references": None, "judgements": RATED, "images": "none"},
            "--images none is no folder: expected the folder of the images",
        ),
        (
            {"captions": None, "references": None, "judgements": RATED},
            "--judgements: no metric is left to compare with ratings: n-gram metrics: some judged images",
        ),
        (
            {"captions": UNTOLD, "references": None},
            "none of its 1 rows has a caption and references to score it by",
        ),
        ({"metrics": "CIDEr,magic"}, "--metrics CIDEr,magic: 'magic' is unknown, expected BLEU or some of BLEU-1"),
        ({"tokenizer": "magic"}, "--tokenizer 'magic': expected auto, ptb or python"),
    ],
)
def test_flags_that_cannot_work_are_told(refused, changes, message, tmp_path):
    (tmp_path / RATED).write_text("image,caption,rating\na.jpg,a cat,3\n")
    (tmp_path / UNTOLD).write_text('[{"key": "a.jpg", "captions": ["a cat"], "prediction": " "}]')
    files = {name: tmp_path / given for name, given in changes.items() if given in (RATED, UNTOLD)}
    assert message in refused(**{**changes, **files})
