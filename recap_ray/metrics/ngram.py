"""BLEU, ROUGE-L, CIDEr, METEOR and SPICE of captions, by coco-caption's own scorers (the package pycocoevalcap).

Values are those of the package: CIDEr (in fact CIDEr-D) from 0 to 10, all others from 0 to 1. Published tables
multiply both by 100. CIDEr weighs words by their rarity among the given references, so it is comparable only
between runs over the same images, and is 0 for a single image.

METEOR, SPICE and the original tokenizer are Java programs. They are called in one batch each, with a time limit and
without writing into the package's folder; if one cannot run, the result gives the reason.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from recap_ray.errors import MissingExtra, UserError
from recap_ray.metrics import bootstrap
from recap_ray.metrics.java import CannotRun, JavaDialogue, run_java
from recap_ray.metrics.tokenizer import REMOVED, tokenize

_BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*_BLEU, "METEOR", "ROUGE-L", "CIDEr", "SPICE")

# Line ends to the Java programs; inside a caption they would shift all following captions.
_LINE_ENDS = dict.fromkeys(map(ord, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")

Texts = dict[str, list[str]]  # key -> tokenized texts, words separated by one space


@dataclass(frozen=True)
class NgramScores:
    """The result of score_captions; the images are those of `keys`, in that order."""

    keys: list[str]
    corpus: dict[str, float | None]  # by metric; None for one that was left out
    per_image: dict[str, np.ndarray]  # by metric: float64 (n,)
    tokenizer: str  # "ptb" or "python"
    left_out: dict[str, str] = field(default_factory=dict)  # by metric: the reason in one line
    totals: tuple[bootstrap.Total, ...] = ()  # corpus metrics that are not means of per_image, by their statistics

    def by_key(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the values by image as columns (n,) of all `keys`, a superset of those scored; NaN for the others."""
        row_of = {key: row for row, key in enumerate(keys)}
        rows = [row_of[key] for key in self.keys]
        return {name: _scatter(values, rows, len(keys)) for name, values in self.per_image.items()}

    def standard_errors(
        self,
        columns: Mapping[str, np.ndarray] | None = None,
        keys: Sequence[str] | None = None,
        replicates: int = bootstrap.REPLICATES,
        seed: int = 0,
    ) -> dict[str, float | None]:
        """Return standard errors over images of every metric in `corpus` and, from the same draws, of the means of
        `columns`.

        columns: more values by image, float64 (n,), NaN where an image has none. Their rows are the images `keys`,
        a superset of those scored, by default equal to them. None for a metric that was left out, or that
        fewer than two images define. Raises ValueError if the rows do not match.

        BLEU is computed from each replicate's own sums. ROUGE-L, SPICE and CIDEr are means over images, CIDEr with the
        document frequencies of the whole set held fixed. METEOR's corpus value comes from aggregated statistics that
        its program does not output: its error is that of the mean of its values by image.
        """
        keys = self.keys if keys is None else keys
        row_of = {key: row for row, key in enumerate(keys)}
        if len(row_of) != len(keys) or not row_of.keys() >= set(self.keys):
            raise ValueError(f"the {len(keys)} keys must be distinct and hold all {len(self.keys)} that were scored")
        rows = [row_of[key] for key in self.keys]
        totals = [replace(total, statistics=_scatter(total.statistics, rows, len(keys))) for total in self.totals]
        summed = {name for total in totals for name in total.names}
        means = {name: values for name, values in self.by_key(keys).items() if name not in summed}
        if duplicates := self.corpus.keys() & (columns or {}).keys():
            raise ValueError(f"columns named as metrics that were scored: {', '.join(sorted(duplicates))}")
        errors = bootstrap.standard_errors(means | dict(columns or {}), totals, replicates, seed)
        return {name: errors.get(name) for name in [*self.corpus, *(columns or {})]}


def score_captions(
    captions: dict[str, str],
    references: dict[str, list[str]],
    tokenizer: Literal["auto", "ptb", "python"] = "auto",
    metrics: Sequence[str] = METRICS,
) -> NgramScores:
    """Compute corpus and per-image n-gram scores of one caption for each key against the references of that key.

    tokenizer: "ptb" is coco-caption's and needs Java, "python" has the same rules, "auto" uses ptb if Java is
    installed. References of images without a caption are not used. Raises UserError that names the key without
    references, or without a word in them, and MissingExtra if pycocoevalcap is not installed.
    """
    _check(captions, references, metrics)
    if find_spec("pycocoevalcap") is None:
        raise MissingExtra("pycocoevalcap", "eval", "scoring captions by n-grams")
    used = {key: references[key] for key in captions}
    truths, candidates, used_tokenizer = _tokenized(used, captions, tokenizer)
    for key, texts in truths.items():
        if not any(texts):
            raise UserError(f"the references of image {key!r} hold no word: give it at least one that does")
    corpus: dict[str, float | None] = {}
    per_image: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    totals = []
    for names, scorer in _SCORERS.items():
        selected = [name for name in names if name in metrics]
        if not selected:
            continue
        try:
            scores = scorer(truths, candidates)
        except CannotRun as error:
            left_out |= dict.fromkeys(selected, str(error))
            corpus |= dict.fromkeys(selected)
            continue
        corpus |= {name: scores.corpus[name] for name in selected}
        per_image |= {name: np.asarray(scores.per_image[name], np.float64) for name in selected}
        totals += [scores.total] if scores.total else []
    return NgramScores(list(captions), corpus, per_image, used_tokenizer, left_out, tuple(totals))


def _check(captions: dict[str, str], references: dict[str, list[str]], metrics: Sequence[str]) -> None:
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UserError(f"unknown metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
    if not captions:
        raise UserError("there are no captions to score: give at least one")
    for key in captions:
        if not references.get(key):
            raise UserError(f"image {key!r} has a caption but no references: add some, or leave the image out")


# --- tokenizing ---


def _tokenized(references: Texts, captions: dict[str, str], tokenizer: str) -> tuple[Texts, Texts, str]:
    lines = [text for texts in references.values() for text in texts] + ["-"] + list(captions.values())
    words, used = _tokenized_lines(lines, tokenizer)
    position = iter(words)
    truths = {key: [next(position) for _ in texts] for key, texts in references.items()}
    next(position)  # a separator line: the Java tokenizer looks ahead, and references must not depend on captions
    return truths, {key: [next(position)] for key in captions}, used


def _tokenized_lines(lines: list[str], tokenizer: str) -> tuple[list[str], str]:
    if tokenizer in ("auto", "ptb"):
        try:
            return ptb_tokenize(lines), "ptb"
        except CannotRun as error:
            if tokenizer == "ptb":
                raise UserError(f"the tokenizer 'ptb' cannot run, choose 'python': {error}") from error
    return [" ".join(tokenize(line)) for line in lines], "python"


def ptb_tokenize(lines: list[str]) -> list[str]:
    """Tokenize each line by the Java tokenizer, without the punctuation that coco-caption removes; words separated by
    spaces."""
    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    program = "edu.stanford.nlp.process.PTBTokenizer"
    text = "".join(line.translate(_LINE_ENDS) + "\n" for line in lines)
    output = run_java(["-cp", str(jar), program, "-preserveLines", "-lowerCase"], "the PTB tokenizer", text)
    tokenized = output.split("\n")[:-1]
    if len(tokenized) != len(lines):
        raise CannotRun(f"the PTB tokenizer gave {len(tokenized)} lines for {len(lines)}")
    return [" ".join(w for w in line.rstrip().split(" ") if w not in REMOVED) for line in tokenized]


# --- scorers: references and captions -> Scores ---


@dataclass(frozen=True)
class Scores:
    """The metrics of one scorer."""

    corpus: dict[str, float]
    per_image: dict[str, Sequence[float]]
    total: bootstrap.Total | None = None


def _bleu(truths: Texts, candidates: Texts) -> Scores:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for key, texts in truths.items():
        scorer += (candidates[key][0], texts)
    corpus, rows = scorer.compute_score(option="closest", verbose=0)
    statistics = [
        [*image["correct"], *image["guess"], image["testlen"], _closest(image["reflen"], image["testlen"])]
        for image in scorer.ctest
    ]
    total = bootstrap.Total(_BLEU, np.array(statistics, np.float64), corpus_bleu)
    return Scores(dict(zip(_BLEU, map(float, corpus))), dict(zip(_BLEU, rows)), total)


def _closest(lengths: Sequence[int], length: int) -> int:
    return min(lengths, key=lambda other: (abs(other - length), other))


def corpus_bleu(sums: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
    """Compute BLEU-1 to BLEU-4 (r, 4), as coco-caption does, from sums (r, 10) over the images of a set.

    The sums: n-grams of the captions that are in their references (4), all n-grams of the captions (4), words of the
    captions, words of the references closest to them in length. Papineni et al. (BLEU, 2002), equation 3. The number
    of images is not used.
    """
    tiny, small = 1e-15, 1e-9  # pycocoevalcap's guards against division by zero: they determine BLEU without matches
    precision = (sums[:, :4] + tiny) / (sums[:, 4:8] + small)
    ratio = (sums[:, 8:9] + tiny) / (sums[:, 9:] + small)
    return np.cumprod(precision, axis=1) ** (1 / np.arange(1, 5)) * np.exp(np.minimum(0, 1 - 1 / ratio))


def _rouge(truths: Texts, candidates: Texts) -> Scores:
    from pycocoevalcap.rouge.rouge import Rouge

    corpus, rows = Rouge().compute_score(truths, candidates)
    return Scores({"ROUGE-L": float(corpus)}, {"ROUGE-L": rows})


def _cider(truths: Texts, candidates: Texts) -> Scores:
    from pycocoevalcap.cider.cider import Cider

    corpus, rows = Cider().compute_score(truths, candidates)
    return Scores({"CIDEr": float(corpus)}, {"CIDEr": rows})


def _meteor(truths: Texts, candidates: Texts) -> Scores:
    # The program answers a SCORE line with statistics, and an EVAL line of all statistics with the scores.
    command = ["-Xmx2G", "-jar", str(_package() / "meteor" / "meteor-1.5.jar"), "-", "-"]
    lines = [_meteor_line([*texts, candidates[key][0]]) for key, texts in truths.items()]
    with JavaDialogue([*command, "-stdio", "-l", "en", "-norm"], "METEOR") as meteor:
        statistics = meteor.ask(lines, len(lines))
        answers = meteor.ask([" ||| ".join(["EVAL", *statistics])], len(lines) + 1)
    rows = [float(answer) for answer in answers]
    return Scores({"METEOR": rows[-1]}, {"METEOR": rows[:-1]})


def _meteor_line(texts: list[str]) -> str:
    return " ||| ".join(["SCORE", *(text.replace("|||", "") for text in texts)])


def _spice(truths: Texts, candidates: Texts) -> Scores:
    folder = _package() / "spice"
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        if not (folder / "lib" / name).exists():
            raise CannotRun(f"SPICE needs {name} in pycocoevalcap/spice/lib: run its get_stanford_models.py once")
    rows = [{"image_id": i, "test": candidates[k][0], "refs": truths[k]} for i, k in enumerate(truths)]
    # Its serializer accesses Java's own classes, which Java 17 forbids without these options.
    opened = [
        f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "util", "nio", "math", "text", "net")
    ]
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary, "in.json"), Path(temporary, "out.json")
        source.write_text(json.dumps(rows), encoding="utf-8")
        command = [*opened, "-Xmx8G", "-jar", str(folder / "spice-1.0.jar"), str(source)]
        run_java([*command, "-out", str(target), "-subset", "-silent"], "SPICE")
        try:
            by_id = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(target.read_text("utf-8"))}
        except (OSError, ValueError, KeyError) as error:
            raise CannotRun(f"SPICE left no scores: {error!r}") from error
    if missing := [key for i, key in enumerate(truths) if i not in by_id]:
        raise CannotRun(f"SPICE gave no score for {len(missing)} images, the first is {missing[0]!r}")
    scores = [float(by_id[i]) for i in range(len(rows))]
    return Scores({"SPICE": float(np.mean(scores))}, {"SPICE": scores})


_SCORERS: dict[tuple[str, ...], Callable[[Texts, Texts], Scores]] = {
    _BLEU: _bleu,
    ("METEOR",): _meteor,
    ("ROUGE-L",): _rouge,
    ("CIDEr",): _cider,
    ("SPICE",): _spice,
}


def _package() -> Path:
    spec = find_spec("pycocoevalcap")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _scatter(values: np.ndarray, rows: list[int], images: int) -> np.ndarray:
    """Scatter values (n, ...) to these rows of `images` rows; NaN elsewhere."""
    scattered = np.full((images, *values.shape[1:]), np.nan)
    scattered[rows] = values
    return scattered
