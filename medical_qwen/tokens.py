"""From records to the rows that a stage trains on: tokenized, cached, what was cut counted, shown, in order."""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from itertools import chain, groupby
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from medical_qwen.rendering import Renderer, Truncation, TruncationReport

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
RED, GREEN = 31, 32  # of a terminal


def prepare(
    dataset: Dataset | None, encode: Callable[..., dict], config: TrainingArguments, batched: bool = False, **fn_kwargs
) -> Dataset | None:
    """`dataset` with every row passed through `encode(row, **fn_kwargs)`: the columns that it returns, no others.

    Cached on disk. The key is made of the rows, the arguments (a tokenizer: its vocabulary and template) and
    the source text of this project's rendering code: `datasets` itself would know a function by its name alone and go
    on serving old tokens after the code has changed.
    """
    if dataset is None:
        return None
    parts = [dataset._fingerprint, inspect.getsource(encode), source_digest()]
    for name, value in sorted(fn_kwargs.items()):
        tokenizer = getattr(value, "tokenizer", value)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            special = json.dumps(tokenizer.init_kwargs, default=str, sort_keys=True)
            value = (
                tokenizer.backend_tokenizer.to_str(),
                tokenizer.chat_template,
                special,
                vars(value).get("enable_thinking"),
            )
        parts.append((name, value))
    with config.main_process_first(desc="tokenizing", local=True):
        return dataset.map(
            encode,
            batched=batched,
            fn_kwargs=fn_kwargs,
            num_proc=config.dataset_num_proc if (config.dataset_num_proc or 1) > 1 else None,
            remove_columns=dataset.column_names,
            new_fingerprint=Hasher.hash(parts),
            desc="tokenizing",
        )


def drop_unfit(dataset: Dataset | None, ids: str = "input_ids", most: float = 0.3) -> tuple[Dataset | None, dict]:
    """The rows with something left to learn, and what `--max_length` cost: the sums of `Truncation`.

    Args:
        dataset: rows as an `encode` made them, with the fields of `Truncation` as columns; no `ids`: nothing fitted.

    Raises:
        ValueError: more than the share `most` of the answers' tokens, or of the rows, would be lost.
    """
    if dataset is None:
        return None, {}
    counts = [field.name for field in fields(Truncation)]
    report = TruncationReport(Truncation(**row) for row in dataset.select_columns(counts))
    kept = dataset.remove_columns(counts).filter(lambda row: len(row) > 0, input_columns=ids)
    logger.info("%s", report)
    dropped = len(dataset) - len(kept)
    lost = report.total["answer_tokens_lost"] / max(report.total["answer_tokens"], 1)
    if max(lost, dropped / max(len(dataset), 1)) > most:
        raise ValueError(
            f"--max_length is too short: {lost:.0%} of the answers' tokens and {dropped} of {len(dataset)} rows would "
            f"be lost (at most {most:.0%} is allowed)"
        )
    return kept, report.total | {"rows": len(dataset), "rows_dropped": dropped, "rows_shortened": report.shortened}


def encode_prompt(row: dict, renderer: Renderer, max_length: int) -> dict:
    """Token ids of a prompt, and what was cut: first whole turns from its beginning, then of the question."""
    ids, lost = renderer.fit_prompt(row["prompt"], max_length, row.get("tools"))
    return {"prompt_ids": ids, **asdict(lost)}


def tokenize_prompts(
    rows: Dataset | None, renderer: Renderer, config: TrainingArguments, max_length: int, most: float = 0.3
) -> tuple[Dataset | None, dict]:
    """The rows with their `prompt_ids`, and what `--max_prompt_length` cost: the sums of `Truncation`.

    Raises:
        ValueError: more than the share `most` of the questions would lose their beginning.
    """
    if rows is None:
        return None, {}
    encoded = prepare(rows, encode_prompt, config, renderer=renderer, max_length=max_length)
    counts = [field.name for field in fields(Truncation)]
    report = TruncationReport(Truncation(**row) for row in encoded.select_columns(counts))
    logger.info("%s", report)
    cut = sum(tokens > 0 for tokens in encoded["prompt_tokens_cut"])
    if cut > most * len(rows):
        raise ValueError(
            f"--max_prompt_length {max_length} is too short: {cut} of {len(rows)} questions would lose their "
            f"beginning (at most {most:.0%} is allowed)"
        )
    ids = encoded.select_columns("prompt_ids")
    return concatenate_datasets([rows, ids], axis=1), report.total | {"rows": len(rows), "questions_cut": cut}


def show_rows(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, number: int) -> None:
    """Print the first rows as the model will see them, what it learns in green, a rejected answer in red."""
    for row in dataset.select(range(min(number, len(dataset)))):
        print("-" * 80)
        for ids, colour in _pieces(row):
            text = tokenizer.decode(ids)
            print(f"\033[{colour}m{text}\033[0m" if colour else text, end="")
        print()


def _pieces(row: dict) -> Iterator[tuple[list[int], int | None]]:
    """The ids of a row in parts, each with its terminal colour."""
    if "labels" in row:
        for learned, group in groupby(zip(row["input_ids"], row["labels"], strict=True), lambda pair: pair[1] != -100):
            yield [token for token, _ in group], GREEN if learned else None
        return
    for name, colour in (("prompt_ids", None), ("chosen_ids", GREEN), ("rejected_ids", RED)):
        if name in row:
            yield row[name], colour


class SeededOrder(torch.utils.data.Sampler):
    """The rows of an epoch in an order that follows from the seed and the epoch alone.

    Trainer's samplers draw from the random numbers as they stand. A run that is resumed in its second epoch, or a rank
    whose numbers have run apart from the others', would see some rows twice and others never. And where they group
    rows by length, every stretch of up to 50 batches goes from the longest to the shortest. Here the groups come in
    random order but for the first: rows that are too long for the memory are met at once.
    """

    def __init__(self, sampler: torch.utils.data.Sampler, trainer: Trainer) -> None:
        self.sampler, self.trainer = sampler, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        args = self.trainer.args
        seed = args.seed if args.data_seed is None else args.data_seed
        with torch.random.fork_rng(devices=[]):
            generator = getattr(self.sampler, "generator", None) or torch.default_generator
            generator.manual_seed(seed + int(self.trainer.state.epoch or 0))
            rows = list(self.sampler)
            if isinstance(self.sampler, LengthGroupedSampler):
                size = self.sampler.batch_size * args.world_size
                groups = [rows[i : i + size] for i in range(size, len(rows) - size + 1, size)]
                shuffled = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
                rows[size : size + size * len(groups)] = chain.from_iterable(shuffled)
            return iter(rows)


def source_digest() -> str:
    """Hash of the code that turns records into tokens."""
    files = [ROOT / "template.py", *sorted((ROOT / "medical_qwen").glob("rendering*")), Path(__file__)]
    files = [file for entry in files for file in ([entry] if entry.is_file() else sorted(entry.glob("*.py")))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
