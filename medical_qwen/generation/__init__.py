"""Who answers? Requests in, answers out, all at once or piece by piece; a file of them as a job that survives a kill.

`interface` says what an engine is; `engine` is one on transformers (`decoding`: one step of a batch, `text`: tokens to
text), `server` one behind an OpenAI-compatible address; `options` are the flags that choose among them; `job` is the
file job, `ranks` who does it together. Only `engine` needs torch. It is loaded when `Generator` is asked for, after
the flags, which say what GPUs torch may see.
"""

from typing import TYPE_CHECKING

from medical_qwen.generation.interface import Answer, Engine, Request, Sampling, Stream, plan_batches, summarize
from medical_qwen.generation.job import Journal, answer_file, describe_files, describe_model, read_questions
from medical_qwen.generation.options import (
    add_answer_arguments,
    add_engine_arguments,
    add_sampling_arguments,
    check_answer_arguments,
    check_engine_arguments,
    describe_engine,
    load_engine,
    sampling_of,
    select_gpus,
)
from medical_qwen.generation.ranks import Ranks
from medical_qwen.generation.server import Server
from medical_qwen.generation.terminal import chat
from medical_qwen.generation.text import split_thinking

if TYPE_CHECKING:
    from medical_qwen.generation.engine import Generator

__all__ = [
    "Answer",
    "Engine",
    "Generator",
    "Journal",
    "Ranks",
    "Request",
    "Sampling",
    "Server",
    "Stream",
    "add_answer_arguments",
    "add_engine_arguments",
    "add_sampling_arguments",
    "answer_file",
    "chat",
    "check_answer_arguments",
    "check_engine_arguments",
    "describe_engine",
    "describe_files",
    "describe_model",
    "load_engine",
    "plan_batches",
    "read_questions",
    "sampling_of",
    "select_gpus",
    "split_thinking",
    "summarize",
]


def __getattr__(name: str):
    if name == "Generator":
        from medical_qwen.generation.engine import Generator

        return Generator
    raise AttributeError(f"module {__name__} has no attribute {name}")
