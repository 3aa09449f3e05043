"""Time and values of score_captions beside pycocoevalcap's own pipeline, on synthetic captions or on a file of yours.

python benchmarks/ngram.py                    5,000 captions with 5 references each: BLEU, ROUGE-L, CIDEr
python benchmarks/ngram.py --meteor           METEOR too
python benchmarks/ngram.py --pairs pairs.tsv  a table of image and caption: of each image's captions the first is
                                              scored against the others, for the first --captions images

Both pipelines run in this process, one after the other; pycocoevalcap's tokenizer needs Java and writes into its own
folder. Values are printed in points of 100, as published tables have them.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from collections.abc import Callable
from typing import Any, get_args

from recap_ray.metrics.ngram import METRICS, NgramScores, score_captions
from recap_ray.settings import Tokenizer
from recap_ray.tables.captions import read_pairs

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
Captions = dict[str, str]
References = dict[str, list[str]]


def main() -> None:
    """Run both pipelines and prints seconds, their ratio, and the values with their differences."""
    options = arguments()
    if options.pairs:
        captions, references = read_captions(options.pairs, options.captions)
    else:
        captions, references = synthetic_captions(options.captions, options.references, options.seed)
    metrics = [name for name in METRICS if name != "SPICE" and (name != "METEOR" or options.meteor)]
    texts = sum(len(references[key]) for key in captions)
    print(
        f"{len(captions):,} captions, {texts:,} references, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    seconds, ours = timed(lambda: score_captions(captions, references, options.tokenizer, metrics))
    print(f"score_captions, tokenizer {ours.tokenizer}: {seconds:.1f} s")
    error_seconds, errors = timed(ours.standard_errors)
    print(f"its standard errors: {error_seconds:.1f} s")
    package_seconds, package = timed(lambda: package_scores(captions, references, options.meteor))
    print(f"pycocoevalcap: {package_seconds:.1f} s, {package_seconds / seconds:.2f} times as long")
    tell(ours, package, errors)


def tell(ours: NgramScores, package: dict[str, float], errors: dict[str, float | None]) -> None:
    """Print the values of both in points of 100, and where they differ most."""
    print(f"\n{'points of 100':14}{'ours':>10}{'package':>10}{'difference':>13}{'std. error':>12}")
    differences = {name: 100 * (value - package[name]) for name, value in ours.corpus.items() if value is not None}
    for name, value in ours.corpus.items():
        if value is None:
            print(f"{name:14}left out: {ours.left_out[name]}")
            continue
        error = errors[name]
        shown = "" if error is None else f"{100 * error:12.2f}"
        print(f"{name:14}{100 * value:10.3f}{100 * package[name]:10.3f}{differences[name]:13.2e}{shown}")
    largest = max(differences, key=lambda name: abs(differences[name]))
    print(f"\nlargest difference: {abs(differences[largest]):.2e} points, of {largest}")


def arguments() -> argparse.Namespace:
    """Return the options as given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=5000, help="number of captions (default: 5000)")
    parser.add_argument("--references", type=int, default=5, help="references of each, if synthetic (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic captions (default: 0)")
    parser.add_argument("--pairs", help="a table of image and caption to take the captions from")
    tokenizers = get_args(Tokenizer)
    parser.add_argument("--tokenizer", choices=tokenizers, default="auto", help="of score_captions (default: auto)")
    parser.add_argument("--meteor", action="store_true", help="score METEOR too, which needs Java")
    return parser.parse_args()


def read_captions(path: str, images: int) -> tuple[Captions, References]:
    """Return the first caption of each image that has several, and the others as its references."""
    pairs = read_pairs(path, "--pairs")
    texts = dict(zip(pairs["image"].to_pylist(), pairs["captions"].to_pylist()))
    chosen = [key for key, found in texts.items() if len(found) > 1][:images]
    return {key: texts[key][0] for key in chosen}, {key: texts[key][1:] for key in chosen}


def synthetic_captions(images: int, references: int, seed: int) -> tuple[Captions, References]:
    """Captions and references as long as those of COCO, each a noisy copy of its image's own sentence."""
    rng = random.Random(seed)
    words = [f"{start}{middle}{end}" for start in SYLLABLES for middle in SYLLABLES for end in ("", "s", "'s", "-like")]
    rng.shuffle(words)
    # Frequencies after Zipf: few words make up most of a text, as in English.
    weights = [1 / rank for rank in range(1, len(words) + 1)]

    def noisy(sentence: list[str]) -> str:
        text = " ".join(rng.choices(words, weights)[0] if rng.random() < 0.4 else word for word in sentence)
        return text.capitalize() + rng.choice([".", ".", " .", "!", ""])

    captions: Captions = {}
    truths: References = {}
    for i in range(images):
        sentence = rng.choices(words, weights, k=rng.randint(8, 14))
        captions[f"{i}.jpg"], *truths[f"{i}.jpg"] = (noisy(sentence) for _ in range(references + 1))
    return captions, truths


SYLLABLES = "ba co di fu ge ha ki lo mu ne po ra si tu ve wo ya ze blu cra dro fle gri sta tro".split()


def package_scores(captions: Captions, references: References, meteor: bool) -> dict[str, float]:
    """Corpus values by pycocoevalcap as coco-caption runs it: its tokenizer, then each scorer."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truths = PTBTokenizer().tokenize({key: [{"caption": text} for text in references[key]] for key in captions})
    candidates = PTBTokenizer().tokenize({key: [{"caption": text}] for key, text in captions.items()})
    found = dict(zip(BLEU, Bleu(4).compute_score(truths, candidates, verbose=0)[0]))
    for name, scorer in {"ROUGE-L": Rouge, "CIDEr": Cider, **({"METEOR": Meteor} if meteor else {})}.items():
        found[name] = scorer().compute_score(truths, candidates)[0]
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that the work took, and what it gave."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    main()
