"""Verifiable rewards for GRPO, in TRL's form: `f(completions, **columns) -> [reward or None, ...]`.

A completion is a string or a list of messages; a column has one value for each completion. Every reward is in 0..1.
None means that this reward cannot judge the row (it has no gold answer of that kind) and leaves it out; a completion
that cannot be read has 0. What a reply says, and whether that is right, is decided in `answers`, as in evaluation.
"""

import ast
import functools
import importlib.util
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from medical_qwen.answers import judge_choice, judge_number, strip_thinking
from medical_qwen.metrics import character_tokens, clean, ngram_counts

logger = logging.getLogger(__name__)

Completion = str | Sequence[Mapping]
Reward = Callable[..., list[float | None]]

_INSIDE = r"(?!\s*</)(?:(?!</?(?:think|answer)>).)+"
THINK_ANSWER = rf"<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>"

_CITATION = r"[\[【] ?\d{1,4}(?: ?[,，、] ?\d{1,4})* ?[\]】]"
_SENTENCE = re.compile(r"[^。！？!?；;\n]+")


def choice_reward(
    completions: Sequence[Completion],
    answer: Sequence[str | None] | None = None,
    options: Sequence[Mapping[str, str | None] | None] | None = None,
    **columns: object,
) -> list[float | None]:
    """1 for exactly the right option letters (`answer`: `"C"`, `"ACD"`), else 0. With `options` ({letter: text}), only
    those letters count, and a reply may name an option by its text."""
    rows = zip(completions, _column(answer, completions), _column(options, completions), strict=True)
    return [_right(judge_choice(_text(completion), gold, texts)) for completion, gold, texts in rows]


def number_reward(
    completions: Sequence[Completion],
    answer: Sequence[str | float | None] | None = None,
    unit: Sequence[str | None] | None = None,
    tolerance: Sequence[float | None] | None = None,
    **columns: object,
) -> list[float | None]:
    """1 for the right quantity or date, else 0. Units are converted to `unit`; `tolerance` is a relative error."""
    gold = (_column(column, completions) for column in (answer, unit, tolerance))
    return [
        _right(judge_number(_text(completion), *expected))
        for completion, *expected in zip(completions, *gold, strict=True)
    ]


def format_reward(
    completions: Sequence[Completion], format_pattern: str = THINK_ANSWER, opened: str = "", **columns: object
) -> list[float | None]:
    """1 where the whole reply matches: by default one thought, then one answer, each of any number of lines.
    `opened`: what the prompt has begun of the reply (`<think>`, with the templates of some models)."""
    pattern = re.compile(format_pattern, re.DOTALL)
    return [float(bool(pattern.fullmatch(f"{opened}{_text(completion)}".strip()))) for completion in completions]


def chinese_reward(completions: Sequence[Completion], **columns: object) -> list[float | None]:
    """Share of Chinese characters among the Chinese characters and the words of other scripts, thoughts included."""
    rewards = []
    for completion in completions:
        tokens = character_tokens(re.sub(r"</?(?:think|answer)>", "", _text(completion)))
        words = [token for token in tokens if token[0].isalpha()]
        chinese = sum(bool(re.match(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", word)) for word in words)
        rewards.append(chinese / max(1, len(words)))
    return rewards


def length_reward(
    completions: Sequence[Completion], target_length: int = 300, **columns: object
) -> list[float | None]:
    """1 at `target_length` characters, falling in a straight line to 0 at none and at twice as many."""
    if target_length < 1:
        raise ValueError(f"target_length: expected at least 1 character, got {target_length}")
    return [max(0.0, 1 - abs(len(_text(text)) - target_length) / target_length) for text in completions]


def repetition_reward(completions: Sequence[Completion], **columns: object) -> list[float | None]:
    """1 less the share of 4-grams (characters, words of other scripts) that occurred before; 0 for an empty one."""
    rewards = []
    for completion in completions:
        tokens = character_tokens(_text(completion))
        counts = ngram_counts(tokens, 4)
        rewards.append(float(bool(tokens)) * (len(counts) / counts.total() if counts else 1.0))
    return rewards


def citation_reward(
    completions: Sequence[Completion],
    evidence: Sequence[Sequence[str] | None] | None = None,
    least_support: float = 0.3,
    **columns: object,
) -> list[float | None]:
    """Share of the citations in the answer that hold, 0 without any. `[2]` cites the second passage of `evidence` for
    the sentence that it stands in or behind; it holds if the passage has `least_support` of the sentence's bigrams."""
    rewards: list[float | None] = []
    for completion, passages in zip(completions, _column(evidence, completions), strict=True):
        if not passages:
            rewards.append(None)
            continue
        known = [set(ngram_counts(_lower(passage), 2)) for passage in passages]
        text = strip_thinking(_text(completion))
        text = re.sub(rf"([。！？!?；;.])((?:\s*{_CITATION})+)", r"\2\1", text)
        holds = []
        for sentence in _SENTENCE.findall(re.sub(r"\.(?=\s)", "\n", text)):
            said = set(ngram_counts(_lower(re.sub(_CITATION, "", sentence)), 2))
            for number in map(int, re.findall(r"\d+", " ".join(re.findall(_CITATION, sentence)))):
                exists = said and 1 <= number <= len(known)
                holds.append(bool(exists) and len(said & known[number - 1]) >= least_support * len(said))
        rewards.append(sum(holds) / len(holds) if holds else 0.0)
    return rewards


REWARDS: dict[str, Reward] = {
    "choice": choice_reward,
    "number": number_reward,
    "format": format_reward,
    "chinese": chinese_reward,
    "length": length_reward,
    "repetition": repetition_reward,
    "citation": citation_reward,
}


def load_reward(spec: str, **given: object) -> Reward:
    """A reward by name (`choice`), by name with settings (`length(target_length=200)`), or from a file (`my.py:fn`).
    `given`: settings for the rewards that know them.

    Raises ValueError for an unknown name, function or setting, FileNotFoundError for a missing file.
    """
    name, settings = _parsed(spec)
    file, colon, function = name.rpartition(":")
    reward = _from_file(file, function) if colon else REWARDS.get(name)
    if reward is None:
        raise ValueError(f"reward {name!r}: expected one of {', '.join(REWARDS)}, or file.py:function")
    parameters = inspect.signature(reward).parameters.values()
    known = {p.name for p in parameters if p.default is not p.empty and p.default is not None}
    if unknown := settings.keys() - known:
        raise ValueError(
            f"reward {name!r}: unknown setting {', '.join(sorted(unknown))}; it has {', '.join(known) or 'none'}"
        )
    settings = {name: value for name, value in given.items() if name in known} | settings
    return functools.partial(reward, **settings) if settings else reward


def check_gold(rows: Dataset, rewards: Sequence[str]) -> None:
    """Refuse exam questions without a right letter, and data of which no answer can be judged by `rewards`."""
    by_gold = [name for name in ("choice", "number") if name in {_parsed(spec)[0] for spec in rewards}]
    unanswered = sum(bool(row.get("options")) and row.get("answer") is None for row in rows)
    if unanswered and "choice" in by_gold:
        raise ValueError(f"{unanswered} of {len(rows)} questions have options and no right letter to reward")
    columns = {name: rows[name] for name in ("answer", "options", "unit", "tolerance") if name in rows.column_names}
    marks = [REWARDS[name]([""] * len(rows), **columns) for name in by_gold]
    idle = sum(all(mark is None for mark in row) for row in zip(*marks, strict=True))
    if by_gold and idle == len(rows):
        raise ValueError(f"no answer of the data is one that {' or '.join(by_gold)} can judge: letters, or a number")
    if idle:
        logger.warning("%d of %d answers are none that %s can judge", idle, len(rows), " or ".join(by_gold))


def _parsed(spec: str) -> tuple[str, dict]:
    """`name(key=literal, …)` as (name, settings)."""
    name, bracket, _ = spec.partition("(")
    if not bracket:
        return spec.strip(), {}
    try:
        call = ast.parse(f"reward{spec[len(name) :]}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(keyword.arg for keyword in call.keywords):
            raise ValueError("positional values")
        return name.strip(), {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"reward {spec!r}: expected name(setting=value, ...) with plain values ({error})") from error


def _from_file(file: str, function: str) -> Reward:
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"reward {file}:{function}: {file} does not exist")
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"reward {file}:{function}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        names = [
            name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")
        ]
        raise ValueError(f"{file} has no function {function!r}; it has {', '.join(names) or 'none'}")
    return found


def _column(values: Sequence | None, completions: Sequence) -> Sequence:
    return [None] * len(completions) if values is None else values


def _text(completion: Completion) -> str:
    """The assistant's last words."""
    return (
        completion if isinstance(completion, str) else str(completion[-1].get("content") or "") if completion else ""
    )


def _right(judgement) -> float | None:
    return None if judgement is None else float(judgement.right)


def _lower(text: str) -> list[str]:
    return character_tokens(clean(text).lower())
