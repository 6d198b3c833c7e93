"""How fast is an index of many passages made, and searched?

    python benchmarks/retrieval_speed.py --passages 100000

The passages are new mixtures of real sentences (toyhom), some 100 words each, as rows of one JSONL file; questions
are real titles, embedded by the real model. Every figure is over the whole way that a user sees: reading, cutting,
writing, fsync. Indexes are made with vectors that cost nothing (random ones of length 1), which shows what an index
adds to its encoder, and without vectors; what the encoder itself takes is measured on `--embedded` passages.
"""

import argparse
import csv
import json
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def write_passages(table: list[dict], number: int, path: Path) -> list[str]:
    sentences = [s for row in table for s in re.findall(r"[^。！？]{6,}[。！？]", row["ask"] + row["answer"])]
    draw, texts = random.Random(0), []
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(number):
            text, length = "", draw.randint(80, 220)
            while len(text) < length:
                text += draw.choice(sentences)
            texts.append(text[:240])
            stream.write(json.dumps({"text": texts[-1]}, ensure_ascii=False) + "\n")
    return texts


def percentiles(index, questions: list[str]) -> dict[str, float]:
    """Milliseconds a search: by the clock, and of the processor (to which other work adds little)."""
    clock, processor = [], []
    for question in questions:
        begun, used = time.perf_counter(), time.process_time()
        index.search(question, 5)
        clock.append(1000 * (time.perf_counter() - begun))
        processor.append(1000 * (time.process_time() - used))
    return {
        f"{name}_{what}ms": round(float(np.percentile(times, share)), 1)
        for what, times in (("", clock), ("processor_", processor))
        for name, share in (("median", 50), ("p95", 95))
    }


def build(folder: Path, source: Path, encoder, number: int) -> tuple[object, dict]:
    from medical_qwen.retrieval import Index

    begun, processor = time.perf_counter(), time.process_time()
    index = Index.build(folder, [source], encoder)
    seconds, processor = time.perf_counter() - begun, time.process_time() - processor
    assert len(index) == number
    begun = time.perf_counter()
    opened = Index.open(folder, encoder)
    opened.search("高血压", 1)
    return opened, {
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "passages_per_second": round(number / seconds),
        "passages_per_processor_second": round(number / processor),
        "open_and_first_search_seconds": round(time.perf_counter() - begun, 2),
        "mib": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20),
    }


def main() -> None:
    from medical_qwen.retrieval import Encoder, Index
    from medical_qwen.retrieval.words import words

    options = parse()

    class Free(Encoder):
        """Counts and asks as the real model does; its passages cost nothing."""

        def encode(self, texts: list[str]) -> np.ndarray:
            draw = np.random.default_rng(len(texts[0]))
            vectors = draw.standard_normal((len(texts), self.dimension), dtype=np.float32)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    with (options.data / "toyhom" / "neike_5000-6000_sample.csv").open(encoding="gb18030", newline="") as stream:
        table = list(csv.DictReader(stream))
    questions = [row["title"] for row in random.Random(1).sample(table, options.questions)]
    words("高血压")  # the dictionary is read once
    result = {
        "passages": options.passages,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "passages.jsonl"
        texts = write_passages(table, options.passages, source)
        encoder = Free(options.embedding_model)
        index, result["vectors"] = build(Path(folder) / "vectors", source, encoder, options.passages)
        for name, opened in (("words", Index.open(Path(folder) / "vectors")), ("both", index)):
            result[f"search by {name}"] = percentiles(opened, questions)
        result["encoder"] = rate(encoder, texts[: options.embedded])
        report(result, options.output)
        _, result["words"] = build(Path(folder) / "words", source, None, options.passages)
        report(result, options.output)


def rate(encoder, texts: list[str]) -> dict[str, float]:
    """Passages a second that the model itself embeds."""
    from medical_qwen.retrieval import Encoder

    Encoder.encode(encoder, texts[:8])
    begun, processor = time.perf_counter(), time.process_time()
    Encoder.encode(encoder, texts)
    return {
        "passages_per_second": round(len(texts) / (time.perf_counter() - begun), 1),
        "passages_per_processor_second": round(len(texts) / (time.process_time() - processor), 1),
    }


def report(result: dict, output: Path | None) -> None:
    text = json.dumps(result, indent=2) + "\n"
    print(text, flush=True)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedding_model", default=str(ROOT.parent / "shared" / "models" / "bge-small-zh-v1.5"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--embedded", type=int, default=256)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
