"""Where do passages stop supporting an answer? Measured on questions whose gold passages are known.

    python tools/calibrate_support.py --corpus data/rag/documents --questions data/rag/questions.jsonl \\
        --embedding_model BAAI/bge-small-zh-v1.5
    python tools/calibrate_support.py ... --base_model outputs/sft    # with follow-up questions rewritten by it, too

prints how often a gold passage is among the first k, for follow-up questions by each way to search them, and how well
the support of the best passage tells questions that the documents answer from others. The threshold with the best
balanced accuracy is the `--min_support` for chatpdf.py with documents and an embedding model like these.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from medical_qwen.grounding import first_ranks, recall
from medical_qwen.records import stream
from medical_qwen.retrieval import Encoder, Index, Library
from medical_qwen.training import write_json

DEPTHS = (1, 3, 5)


def roc_auc(yes: np.ndarray, no: np.ndarray) -> float:
    """Chance that a question with an answer has more support than one without."""
    return float(np.mean((yes[:, None] > no) + 0.5 * (yes[:, None] == no)))


def best_threshold(yes: np.ndarray, no: np.ndarray) -> tuple[float, float]:
    """(threshold, balanced accuracy): the middle of the gap between two values that separates best."""
    values = np.unique(np.concatenate([yes, no]))
    middles = (values[1:] + values[:-1]) / 2
    accuracies = [((yes >= at).mean() + (no < at).mean()) / 2 for at in middles]
    best = np.flatnonzero(np.array(accuracies) == max(accuracies))
    return float(middles[best[len(best) // 2]]), float(max(accuracies))


def left_out(yes: np.ndarray, no: np.ndarray) -> float:
    """Balanced accuracy on each question under the threshold that the others choose."""
    right_yes = [one >= best_threshold(np.delete(yes, place), no)[0] for place, one in enumerate(yes)]
    right_no = [one < best_threshold(yes, np.delete(no, place))[0] for place, one in enumerate(no)]
    return float(np.mean(right_yes) + np.mean(right_no)) / 2


class NoEngine:
    """Stands where a model would; nothing asks it unless follow-up questions are rewritten."""

    context_length, batches_itself = None, False


def report(library: Library, rows: list[tuple[list[dict], list[dict]]]) -> dict:
    """What one index does on the questions, [(conversation, gold items)]: printed, and returned."""
    figures: dict = {"recall": {}}
    ways = {"question alone": lambda talk: talk[-1]["content"], "with the one before": library.query}
    if not isinstance(library.engine, NoEngine):
        rewriting = Library(library.index, library.engine, rewrite=True)
        ways["rewritten by the model"] = rewriting.query
    groups = {
        "single": [row for row in rows if row[1] and len(row[0]) == 1],
        "follow-up": [row for row in rows if row[1] and len(row[0]) > 1],
    }
    for group, some in groups.items():
        for way, query in ways.items() if group == "follow-up" else [("question alone", library.query)]:
            ranks = [
                first_ranks(gold, [vars(hit.passage) for hit in library.index.search(query(talk), max(DEPTHS))])
                for talk, gold in some
            ]
            shares = {f"@{k}": round(float(np.mean([recall(one, k) for one in ranks])), 3) for k in DEPTHS}
            figures["recall"][f"{len(some)} {group} questions, {way}"] = shares
            print(f"  recall, {len(some)} {group} questions, {way}: {shares}")
    support = []
    for talk, _ in rows:
        query = library.query(talk)
        support.append(library.support(query, library.index.search(query, library.top_k)))
    answerable = np.array([bool(gold) for _, gold in rows])
    yes, no = np.array(support)[answerable], np.array(support)[~answerable]
    threshold, accuracy = best_threshold(yes, no)
    print(f"  support, {len(yes)} questions with an answer and {len(no)} without: ROC AUC {roc_auc(yes, no):.3f}")
    for name, at in (("best", threshold), ("in use", library.min_support)):
        answered, refused = float(np.mean(yes >= at)), float(np.mean(no < at))
        figures[name] = {"threshold": round(at, 3), "answered": round(answered, 3), "refused": round(refused, 3)}
        shares = f"{answered:.3f} of the first are answered, {refused:.3f} of the others refused"
        print(f"  threshold {at:.3f} ({name}): {shares}")
    apart = left_out(yes, no)
    print(f"  balanced accuracy {accuracy:.3f}, {apart:.3f} on questions left out of the choice")
    return figures | {
        "questions with and without an answer": [len(yes), len(no)],
        "roc_auc": round(roc_auc(yes, no), 3),
        "balanced_accuracy": round(accuracy, 3),
        "balanced_accuracy_left_out": round(apart, 3),
    }


def main(argv: list[str] | None = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--corpus", nargs="+", required=True, help="files and folders")
    add("--questions", required=True, help="conversations with `gold`, as data/rag/questions.jsonl has them")
    add("--embedding_model", help="model of sentence-transformers; search by words is measured in any case")
    add("--base_model", help="also let this model rewrite follow-up questions")
    add("--top_k", type=int, default=4, help="passages of which the best one counts (default: %(default)s)")
    add("--output_file", type=Path, help="the figures as JSON")
    args = parser.parse_args(argv)
    rows = [(read.record["prompt"], read.row.get("gold")) for read in stream(args.questions, "prompt")]
    kinds = [bool(gold) for _, gold in rows]
    if any(gold is None for _, gold in rows) or min(kinds.count(True), kinds.count(False)) < 2:
        parser.error(
            f"--questions {args.questions}: expected `gold` in every row, and at least two each with and without"
        )
    engine = NoEngine()
    if args.base_model:
        from medical_qwen.generation import Generator

        engine = Generator.load(args.base_model)
    figures = {}
    encoders = [None, Encoder(args.embedding_model)] if args.embedding_model else [None]
    for encoder in encoders:
        with tempfile.TemporaryDirectory() as folder:
            index = Index.build(Path(folder) / "index", args.corpus, encoder)
            name = Path(encoder.name).name if encoder else "by words alone"
            print(f"{len(index)} passages, {name}")
            figures[name] = report(Library(index, engine, args.top_k), rows)
    if args.output_file:
        write_json(args.output_file, figures)
    return figures


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
