"""With the adapter and without it: two engines on one set of weights."""

import argparse
import logging
import threading
from contextlib import nullcontext
from typing import Any

from medical_qwen.generation.engine import Generator
from medical_qwen.generation.interface import Engine
from medical_qwen.generation.options import load_engine
from medical_qwen.lineage import resolve

logger = logging.getLogger(__name__)


class _Side:
    """A model with its adapter always on, or always off. Both sides share the model, so their calls take turns."""

    def __init__(self, model: Any, adapted: bool, turn: threading.Lock) -> None:
        self._model, self._adapted, self._turn = model, adapted, turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def eval(self) -> "_Side":
        self._model.eval()
        return self

    def __call__(self, **inputs: Any) -> Any:
        with self._turn, nullcontext() if self._adapted else self._model.disable_adapter():
            return self._model(**inputs)


def load_both(args: argparse.Namespace) -> tuple[Engine, Engine | None]:
    """What the flags ask for, and the same without its last adapter; None where --lora_model is not given."""
    if not args.lora_model:
        return load_engine(args), None
    given, whole = resolve(args.base_model).adapters, resolve(args.base_model, args.lora_model).adapters
    if len(whole) > len(given) + 1:
        logger.warning("%s was trained on %s: without it that one answers, not the base model", whole[-1], whole[-2])
    whole = load_engine(args, merge=False)
    turn = threading.Lock()
    engine, base = (Generator(_Side(whole.model, adapted, turn), whole.tokenizer) for adapted in (True, False))
    return engine, base
