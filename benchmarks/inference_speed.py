"""A file of real questions: one rank against two, batches by length against order of arrival, ours against paged.

    python benchmarks/inference_speed.py --output benchmarks/results/inference_speed.json
    python benchmarks/inference_speed.py --sides one paged --questions 100 --output paged.json

Every side answers the same parts of the file, greedily, each process on one thread; they take turns, every second time
in the other order:

    one       inference.py
    two       torchrun --nproc_per_node 2 inference_multigpu_demo.py, two processes on a CPU
    arrival   inference.py's loop with batches in the order of the file instead of by length
    paged     transformers' own continuous batching (`generate_batch`) on the same prompts

Two times: `seconds`, what the script says that answering took, without loading; `with_loading`, the whole command.
The answers of `two` must be those of `one` to the byte, or the benchmark stops; of the others the share of equal
answers is told: other batches round differently.
"""

import argparse
import csv
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    results: dict = {"questions": options.questions, "max_new_tokens": options.max_new_tokens, "batch": options.batch}
    results |= {"cpu": f"{platform.machine()}, {os.cpu_count()} cores", "parts": []}
    with tempfile.TemporaryDirectory() as folder:
        questions = gather(options.questions)
        for part in range(options.parts):
            file = Path(folder) / f"{part}.jsonl"
            file.write_text("".join(json.dumps({"question": q}) + "\n" for q in questions[part :: options.parts]))
            turns = options.sides[:: 1 if part % 2 == 0 else -1]
            found = {side: run(side, file, options) for side in turns}
            base = found["one"]["answers"]
            for side in found.values():
                answers = side.pop("answers")
                side["equal"] = sum(a == b for a, b in zip(answers, base, strict=True)) / len(base)
            if "two" in found and found["two"]["equal"] < 1:
                raise SystemExit(f"two ranks gave other answers than one: only {found['two']['equal']:.1%} are equal")
            results["parts"].append(found)
            print(json.dumps(found), file=sys.stderr)
    for side in options.sides[1:]:
        for time_, name in (("seconds", f"{side} / one"), ("with_loading", f"{side} / one, with loading")):
            ratios = [part[side][time_] / part["one"][time_] for part in results["parts"]]
            results[name] = {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
    text = json.dumps(results, indent=2)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", default=str(ROOT.parent / "shared" / "models" / "minimind2-small"))
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=5, help="the sides take turns this often")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--sides", nargs="+", default=["one", "two", "arrival"], help="`one` first")
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--worker", choices=("arrival", "paged"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


def gather(number: int) -> list[str]:
    """Half patients' letters, half questions of an instruction set, in the order in which the files have them."""
    with open(DATA / "toyhom" / "neike_5000-6000_sample.csv", encoding="gb18030", newline="") as file:
        letters = [row["ask"] for row in csv.DictReader(file) if row["ask"].strip()]
    with open(DATA / "medicalgpt" / "sft" / "medical_sft_1K_format.jsonl", encoding="utf-8") as file:
        asked = [json.loads(line)["conversations"][0]["value"] for line in file]
    pairs = zip(letters[: number // 2], asked[: number - number // 2], strict=True)
    return [question for pair in pairs for question in pair]


def run(side: str, file: Path, options: argparse.Namespace) -> dict:
    """Seconds, tokens a second and answers of one side for one part."""
    output = file.with_suffix(f".{side}.jsonl")
    flags = ["--base_model", options.base_model, "--data_file", file, "--output_file", output, "--only_cpu"]
    flags += ["--max_new_tokens", options.max_new_tokens]
    command = {
        "one": [ROOT / "inference.py", *flags, "--eval_batch_size", options.batch],
        "two": ["-m", "torch.distributed.run", "--nproc_per_node", 2, ROOT / "inference_multigpu_demo.py", *flags,
                "--batch_size", options.batch],
    }.get(side) or [__file__, "--worker", side, "--file", file, "--base_model", options.base_model, "--batch",
                    options.batch, "--max_new_tokens", options.max_new_tokens, "--output", output]  # fmt: skip
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    whole = time.perf_counter() - begun
    tokens, seconds = map(float, re.search(r"(\d+) new tokens in ([\d.]+) s", done.stdout).groups())
    answers = [json.loads(line)["prediction"] for line in output.read_text(encoding="utf-8").splitlines()]
    return {"seconds": seconds, "with_loading": round(whole, 1), "tokens_per_s": round(tokens / seconds, 1),
            "answers": answers}  # fmt: skip


def work(options: argparse.Namespace) -> None:
    """A side that has no script of its own."""
    sys.path.insert(0, str(ROOT))
    from medical_qwen.generation import Generator, Sampling, read_questions

    sampling = Sampling(options.max_new_tokens)
    generator = Generator.load(options.base_model, only_cpu=True)
    _, requests = read_questions(options.file)
    begun = time.perf_counter()
    if options.worker == "arrival":
        batches = [requests[i : i + options.batch] for i in range(0, len(requests), options.batch)]
        answers = [answer for batch in batches for answer in generator.answer(batch, sampling, options.batch)]
        texts, tokens = [a.text for a in answers], sum(a.completion_tokens for a in answers)
    else:
        texts, tokens = paged(generator, requests, options.max_new_tokens)
    print(f"{tokens} new tokens in {time.perf_counter() - begun:.1f} s")
    lines = [json.dumps({"prediction": text}, ensure_ascii=False) + "\n" for text in texts]
    Path(options.output).write_text("".join(lines), encoding="utf-8")


def paged(generator, requests, max_new_tokens: int) -> tuple[list[str], int]:
    """Texts and number of tokens of transformers' continuous batching."""
    prompts = [generator.renderer.prompt(request.messages) for request in requests]
    generator.model.set_attn_implementation("paged|sdpa")
    config = generator.model.generation_config
    config.max_new_tokens, config.do_sample = max_new_tokens, False
    config.eos_token_id = sorted(generator.stop_token_ids)
    found = generator.model.generate_batch(prompts, generation_config=config)
    written = [found[key].generated_tokens for key in sorted(found, key=lambda key: int(key.split("_")[-1]))]
    texts = [generator.tokenizer.decode(ids, skip_special_tokens=True).lstrip() for ids in written]
    return texts, sum(map(len, written))


if __name__ == "__main__":
    main()
