"""How often does a question find its own passage? Recall@1/5/10 and MRR by words, by meaning, and by both.

    python benchmarks/retrieval_quality.py --embedding_model ../shared/models/bge-small-zh-v1.5

Rows of real patient forums (`--rows` of toyhom, all of medicalgpt/rag): a title, the patient's account, the doctor's
answer. Only the passage made of a row counts as found for its question, although others may answer it as well: many
people ask how to treat a fatty liver. Three kinds of knowledge base and question:

    row     a passage is the whole row, as `Index` makes it of a table; asked is the title
    case    a passage is the account and the answer; asked is the title, which stands in neither word for word
    answer  a passage is the answer alone, which may not say what of; asked is the title with the account

Titles of fewer than six characters or of several rows are not asked. The questions for tuning (`--split dev`) and
those for reporting (`test`) differ.
"""

import argparse
import csv
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DEPTH = 10
KINDS = ("row", "answer", "case")


@dataclass(frozen=True)
class Row:
    title: str
    account: str
    answer: str
    source: str


def read_rows(data: Path, limit: int) -> list[Row]:
    """All rows of rag and a fixed sample of toyhom."""
    rows = []
    for line in (data / "medicalgpt" / "rag" / "medical_corpus.txt").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        title, _, account = record["问"].partition("？，")
        rows.append(Row(title, account, record["答"], "rag"))
    with (data / "toyhom" / "neike_5000-6000_sample.csv").open(encoding="gb18030", newline="") as stream:
        table = [Row(row["title"], row["ask"], row["answer"], "toyhom") for row in csv.DictReader(stream)]
    return rows + random.Random(0).sample(table, min(limit, len(table)))


def bare(text: str) -> str:
    return re.sub(r"\W", "", text)


def pair(kind: str, row: Row) -> tuple[str, str]:
    """(question, passage)."""
    if kind == "row":
        return row.title, f"title: {row.title}\nask: {row.account}\nanswer: {row.answer}"
    if kind == "case":
        return row.title, f"{row.account}\n{row.answer}"
    return f"{row.title}{row.account}", row.answer


def choose(kind: str, rows: list[Row], split: str, number: int) -> list[int]:
    """Numbers of the rows that are asked for: a fifth from rag as far as there are, the rest from toyhom."""
    titles = Counter(bare(row.title) for row in rows)
    good = [
        i
        for i, row in enumerate(rows)
        if len(bare(row.title)) >= 6 and titles[bare(row.title)] == 1
        and (kind != "case" or (row.account and bare(row.title) not in bare(row.account + row.answer)))
    ]  # fmt: skip
    random.Random(1).shuffle(good)
    chosen: list[int] = []
    for source, wanted in (("rag", number // 5), ("toyhom", number)):
        mine = [i for i in good if rows[i].source == source]
        mine = mine[: len(mine) // 2] if split == "dev" else mine[len(mine) // 2 :]
        chosen += mine[: min(wanted, number - len(chosen))]
    return chosen


def measure(ranks: list[int | None]) -> dict[str, float]:
    found = [rank for rank in ranks if rank is not None]
    shares = {f"recall@{k}": sum(rank <= k for rank in found) / len(ranks) for k in (1, 5, 10)}
    return {
        name: round(value, 3) for name, value in (shares | {"mrr@10": sum(1 / r for r in found) / len(ranks)}).items()
    }


def evaluate(kind: str, rows: list[Row], asked: list[int], encoder, reranker, folder: Path) -> dict[str, dict]:
    """Scores of each way to search, over an index of its own."""
    from medical_qwen.retrieval import Index
    from medical_qwen.retrieval.search import Searcher

    folder.mkdir(parents=True, exist_ok=True)
    source, target = folder / f"{kind}.jsonl", folder / f"{kind}-index"
    source.write_text(
        "".join(json.dumps({"text": pair(kind, row)[1]}, ensure_ascii=False) + "\n" for row in rows), "utf-8"
    )
    index = Index.build(target, [source], encoder)
    searcher = Searcher(index.store, index.state, encoder, reranker)
    by_words = Searcher(index.store, index.state, None, None)
    by_both = Searcher(index.store, index.state, encoder, None)

    def by_meaning(question: str) -> list:
        found = by_both.nearest.rows(encoder.encode_query(question), DEPTH)
        return [by_both.passage(int(row)) for row in found]

    systems = {
        "BM25": lambda question: [hit.passage for hit in by_words.search(question, DEPTH)],
        "dense": by_meaning,
        "hybrid": lambda question: [hit.passage for hit in by_both.search(question, DEPTH)],
    }
    if reranker:
        systems["reranked"] = lambda question: [hit.passage for hit in searcher.search(question, DEPTH)]
    result: dict[str, dict] = {"questions": dict(Counter(rows[i].source for i in asked)), "passages": len(index)}
    for name, search in systems.items():
        ranks = []
        for i in asked:
            found = [int(passage.heading.removeprefix("row ")) - 1 for passage in search(pair(kind, rows[i])[0])]
            ranks.append(found.index(i) + 1 if i in found else None)
        result[name] = measure(ranks)
        print(
            f"{kind:8}{name:10}" + "  ".join(f"{key} {value:.3f}" for key, value in result[name].items()), flush=True
        )
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedding_model", default=str(ROOT.parent / "shared" / "models" / "bge-small-zh-v1.5"))
    parser.add_argument("--rerank_model")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rows", type=int, default=2000, help="rows of toyhom (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "retrieval_quality", help="of the indexes")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def main() -> None:
    from medical_qwen.retrieval import Encoder, Reranker

    options = parse()
    rows = read_rows(options.data, options.rows)
    encoder = Encoder(options.embedding_model)
    reranker = Reranker(options.rerank_model) if options.rerank_model else None
    result = {"embedding_model": Path(options.embedding_model).name, "split": options.split}
    for kind in options.kinds:
        asked = choose(kind, rows, options.split, options.questions)
        result[kind] = evaluate(kind, rows, asked, encoder, reranker, options.folder)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
