"""A look at what the policy says: some answers as a table in the log, all of them in a file."""

import json
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

SHOWN, WIDTH = 4, 60


def log_samples(file: Path, step: int, prompts: list[str], answers: list[str], scores: list[float]) -> None:
    """Append all of them to `file` (JSON lines) and log the first few."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        for prompt, answer, score in zip(prompts, answers, scores, strict=True):
            row = {"step": step, "prompt": prompt, "answer": answer, "score": round(score, 4)}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    table = [f"{'score':>8}  {'prompt':<{WIDTH}}  answer"]
    for prompt, answer, score in list(zip(prompts, answers, scores, strict=True))[:SHOWN]:
        table.append(f"{score:8.3f}  {_short(prompt):<{WIDTH}}  {_short(answer)}")
    logger.info("samples at step %d\n%s", step, "\n".join(table))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
