"""Fits the calibration of the scorer `profanity`, and measures it on texts that were not fitted.

    python benchmarks/scorer_calibration.py DATA_FOLDER                # tables, in Markdown
    python benchmarks/scorer_calibration.py DATA_FOLDER -o curve.svg   # and the picture; or .html

DATA_FOLDER holds `rtp_challenging.jsonl` and `rtp_nontoxic.jsonl` (RealToxicityPrompts with the
scores of Perspective) and `paradetox.tsv`. A text is toxic where Perspective's toxicity is 0.5 or
more. A record, prompt and continuation, is on one side of the split, by a hash of its prompt; a
held-out text that also occurs on the fit side is left out. The curve is chosen by cross-validation
inside the fit side, so the held-out side is used once. No text is printed.
"""

import argparse
import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from excise.core.errors import ExciseError
from excise.eval.calibration import (
    PROFANITY,
    PROFANITY_BASE_RATE,
    Platt,
    auc,
    brier,
    expected_calibration_error,
    log_loss,
    logits,
    reliability_bins,
)
from excise.eval.scorers import get_scorer, score_texts


FOLDS, RESAMPLES, TOXIC = 5, 1000, 0.5
FLOOR = PROFANITY.floor
METRICS = {
    "AUC": auc,
    "Brier": brier,
    "log loss": log_loss,
    "ECE, 10 bins": expected_calibration_error,
}


@dataclass
class Texts:
    """Columns of equal length, a row for each text."""

    text: list
    label: np.ndarray
    group: np.ndarray
    """Number of the record: what is drawn in the bootstrap, and stays in one fold."""
    part: np.ndarray
    """`prompts` or `continuations`; `toxic` or `neutral`."""
    score: np.ndarray

    def take(self, kept):
        """Return the rows that are kept."""
        text = [one for one, keep in zip(self.text, kept, strict=True) if keep]
        columns = (self.label, self.group, self.part, self.score)
        return Texts(text, *(column[kept] for column in columns))


def side(text, parts, purpose):
    """Return one of `parts` numbers; salted, since the files themselves were cut by a hash."""
    digest = hashlib.sha256(f"excise scorer calibration, {purpose}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % parts


def table(rows, scorer):
    text, label, group, part = (list(column) for column in zip(*rows, strict=True))
    score = np.array(score_texts(scorer, text, batch_size=1024))
    return Texts(text, np.array(label, dtype=bool), np.array(group), np.array(part), score)


def real_toxicity_prompts(folder, scorer):
    """Return the fit side and the held-out side."""
    records = [
        json.loads(line)
        for name in ("rtp_challenging", "rtp_nontoxic")
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows, held_out = [], []
    for number, record in enumerate(records):
        for field in ("prompt", "continuation"):
            if (toxicity := record[f"{field}_toxicity"]) is not None:
                rows.append((record[field], toxicity >= TOXIC, number, f"{field}s"))
                held_out.append(side(record["prompt"], 2, "held out"))
    all_texts, held_out = table(rows, scorer), np.array(held_out, dtype=bool)
    plain = [" ".join(text.casefold().split()) for text in all_texts.text]
    seen = {text for text, held in zip(plain, held_out, strict=True) if not held}
    again = np.array([text in seen for text in plain])
    return all_texts.take(~held_out), all_texts.take(held_out & ~again)


def paradetox(folder, scorer):
    """Return toxic sentences and their neutral paraphrases, those on the held-out side."""
    rows = []
    with (folder / "paradetox.tsv").open(encoding="utf-8", newline="") as file:
        for line in csv.reader(file, dialect="excel-tab"):
            if line and line[0] != "toxic" and side(line[0], 2, "held out"):
                rows.append((line[0], True, line[0], "toxic"))
                rows += [(text, False, line[0], "neutral") for text in line[1:] if text.strip()]
    return table(rows, scorer)


# --- three curves ---


def fit_platt(score, label):
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=np.inf, tol=1e-10).fit(logits(score, FLOOR)[:, None], label)
    return Platt(float(found.coef_[0, 0]), float(found.intercept_[0]), FLOOR)


def fit_beta(score, label):
    """Kull et al. (2017): a logistic curve on log p and -log(1 - p)."""
    from sklearn.linear_model import LogisticRegression

    def features(score):
        inside = np.clip(score, FLOOR, 1 - FLOOR)
        return np.stack([np.log(inside), -np.log1p(-inside)], axis=1)

    found = LogisticRegression(C=np.inf, tol=1e-10).fit(features(score), label)
    if found.coef_.min() < 0:
        raise SystemExit("beta calibration has a negative coefficient: it would not be monotone")
    return lambda score: found.predict_proba(features(score))[:, 1]


def fit_isotonic(score, label):
    from sklearn.isotonic import IsotonicRegression

    edge = 1 / (len(score) + 2)  # else one sure miss makes the log loss infinite
    curve = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip")
    return curve.fit(score, label).predict


CURVES = {"Platt": fit_platt, "beta": fit_beta, "isotonic": fit_isotonic}
"""From simple to flexible."""


def choose(fit):
    """Return the simplest curve that is within one standard error of the best, and a table."""
    fold = np.array([side(str(group), FOLDS, "fold") for group in fit.group])
    losses, squares = {}, {}
    for name, make in CURVES.items():
        out = np.zeros(len(fold))
        for number in range(FOLDS):
            inside = fold != number
            curve = make(fit.score[inside], fit.label[inside])
            out[~inside] = curve(fit.score[~inside])
        losses[name] = -np.where(fit.label, np.log(out), np.log1p(-out))
        squares[name] = (out - fit.label) ** 2
    best = min(losses, key=lambda name: losses[name].mean())
    lines = ["| curve | log loss | Brier | log loss above the best |", "|---|---|---|---|"]
    chosen = None
    for name, loss in losses.items():
        excess = loss - losses[best]
        error = excess.std(ddof=1) / np.sqrt(len(excess))
        lines.append(f"| {name} | {loss.mean():.4f} | {squares[name].mean():.4f} | "
                     f"{excess.mean():.4f} ± {error:.4f} |")  # fmt: skip
        if chosen is None and excess.mean() <= error:
            chosen = name
    return chosen, lines


# --- before and after ---


def intervals(texts, columns, metrics):
    """Return value and 95 % interval of each metric of each column, and of its changes.

    Args:
        texts: Whose records are drawn with replacement, 1,000 times.
        columns: Two predictions for each text.
        metrics: Functions of predictions and labels.
    """
    _, number = np.unique(texts.group, return_inverse=True)
    members = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
    draw = np.random.default_rng(0)

    def all_of(rows):
        found = [[f(c[rows], texts.label[rows]) for c in columns] for f in metrics.values()]
        return [(before, after, after - before) for before, after in found]

    drawn = []
    while len(drawn) < RESAMPLES:
        chosen = draw.integers(len(members), size=len(members))
        drawn.append(all_of(np.concatenate([members[one] for one in chosen])))
    low, high = np.quantile(np.array(drawn), (0.025, 0.975), axis=0)
    return dict(zip(metrics, zip(all_of(slice(None)), low, high, strict=True), strict=True))


def sensitivity(predicted, label):
    return float((predicted[label] >= TOXIC).mean())


def specificity(predicted, label):
    return float((predicted[~label] < TOXIC).mean())


def accuracy(predicted, label):
    return float(((predicted >= TOXIC) == label).mean())


AT_HALF = {"accuracy": accuracy, "sensitivity": sensitivity, "specificity": specificity}


def comparison(texts, metrics):
    columns = (texts.score, PROFANITY(texts.score))
    lines = ["| | before | after | change |", "|---|---|---|---|"]
    for name, (value, low, high) in intervals(texts, columns, metrics).items():
        cells = [f"{v:.3f} [{a:.3f}, {b:.3f}]" for v, a, b in zip(value, low, high, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def reliability_table(texts):
    lines = ["| | predicted | observed | n |", "|---|---|---|---|"]
    for when, predicted in (("before", texts.score), ("after", PROFANITY(texts.score))):
        lines += [f"| {when} | {said:.3f} | {seen:.3f} | {n} |"
                  for said, seen, n in reliability_bins(predicted, texts.label)]  # fmt: skip
    return lines


def counted(texts):
    return f"n = {len(texts.text)}, {texts.label.mean():.2f} toxic"


def draw(path, texts):
    """Save the picture of all held-out texts, as a bare SVG or on a page of its own."""
    try:
        from excise.viz.chart import reliability
        from excise.viz.page import Section, page, write_page
    except ImportError:
        raise SystemExit(f"{path} is not written: this excise has no viz.chart") from None
    named = {"before": texts.score, "after": PROFANITY(texts.score)}
    bins = {name: reliability_bins(said, texts.label) for name, said in named.items()}
    title = "profanity: predicted and observed toxicity, held-out texts"
    svg = reliability(bins, title=title)
    if path.suffix == ".html":
        write_page(path, page("Calibration", [Section("Held-out texts", svg)]))
    else:
        path.write_text(svg, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="picture to write: .svg or .html")
    args = parser.parse_args()
    if args.output and args.output.suffix not in (".svg", ".html"):
        parser.error(f"{args.output} is no .svg and no .html")
    scorer = get_scorer("profanity-raw")
    fit, held_out = real_toxicity_prompts(args.data_folder, scorer)
    print(f"Scorer: {scorer.identity}\n\n## Fit side ({counted(fit)}), cross-validated\n")
    chosen, lines = choose(fit)
    print(*lines, sep="\n")
    found = fit_platt(fit.score, fit.label)
    equal = (round(found.slope, 4), round(found.intercept, 4)) == (
        PROFANITY.slope,
        PROFANITY.intercept,
    )
    print(f"\nChosen: {chosen}. Platt: slope {found.slope:.4f}, intercept {found.intercept:.4f}, "
          f"{'equal to' if equal else 'NOT equal to'} the shipped {PROFANITY}; base rate "
          f"{fit.label.mean():.2f}, shipped {PROFANITY_BASE_RATE:.2f}.")  # fmt: skip
    for part in ("prompts", "continuations", "both"):
        texts = held_out if part == "both" else held_out.take(held_out.part == part)
        print(f"\n## Held out: {part} ({counted(texts)})\n")
        print(*comparison(texts, {**METRICS, **AT_HALF}), sep="\n")
    print("\n### Reliability, both\n", *reliability_table(held_out), sep="\n")
    pairs = paradetox(args.data_folder, scorer)
    print(f"\n## Transfer: ParaDetox, toxic against neutral ({counted(pairs)})\n")
    print(*comparison(pairs, {"AUC": auc, **AT_HALF}), sep="\n")
    if args.output:
        draw(args.output, held_out)
        print(f"\nPicture: {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (ExciseError, OSError) as error:
        raise SystemExit(str(error)) from None
