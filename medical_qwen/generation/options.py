"""The flags that say who answers and how, the same ones for every front end.

add_engine_arguments(parser)
args = parser.parse_args()
check_engine_arguments(parser, args)
select_gpus(args)  # before torch is imported
engine = load_engine(args)
"""

import argparse
import os
import re
import sys
from pathlib import Path

from medical_qwen.generation.interface import Engine, Sampling
from medical_qwen.generation.job import describe_model
from medical_qwen.generation.server import Server

# What belongs to a model in this process and says nothing to a server.
_LOCAL = ("lora_model", "tokenizer_path", "template_name", "resize_emb", "only_cpu", "load_in_8bit", "load_in_4bit")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `load_engine` reads."""
    add = parser.add_argument
    add("--base_model", help="model directory, hub id, or adapter directory (its base is found)")
    add("--lora_model", help="a further adapter directory on top of --base_model")
    add("--tokenizer_path", help="default: --lora_model if it has a tokenizer, else --base_model")
    add("--template_name", help="prompt template of template.py; default: the checkpoint's own, vicuna if it has none")
    add("--resize_emb", action="store_true", help="grow the embeddings to the size of the tokenizer")
    add("--only_cpu", action="store_true", help="leave the GPUs alone")
    add("--gpus", default="0", help="which of the visible GPUs, e.g. 0 or 0,1 (default: %(default)s)")
    add("--load_in_8bit", action="store_true", help="weights in 8 bits (bitsandbytes)")
    add("--load_in_4bit", action="store_true", help="weights in 4 bits (bitsandbytes)")
    add("--api_base", help="instead of --base_model: an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1")
    add("--api_model", help="which model of the server, where it serves several")
    add("--api_key", help="key of the server; default: $OPENAI_API_KEY, where a command line shows nobody the key")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `sampling_of` reads, and the other two on which an answer depends."""
    add = parser.add_argument
    add("--system_prompt", help="for conversations that have no system turn of their own")
    add("--max_new_tokens", type=int, default=512, help="longest answer (default: %(default)s)")
    add("--temperature", type=float, help="0: always the likeliest token; default: 0.7 in a chat, 0 for a file")
    add("--top_p", type=float, default=0.9, help="draw from the likeliest tokens of this mass (default: %(default)s)")
    add("--repetition_penalty", type=float, default=1.0, help="above 1: repeat less (default: %(default)s)")
    add("--stop_str", action="append", default=[], help="end an answer before this text; may be given several times")
    add("--seed", type=int, default=42, help="of the drawing; row n of a file uses seed + n (default: %(default)s)")


def check_engine_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop with a message where the flags do not go together."""
    local = [f"--{name}" for name in _LOCAL if getattr(args, name)]
    remote = [f"--{name}" for name in ("api_model", "api_key") if getattr(args, name)]
    for wrong, message in (
        (bool(args.base_model) == bool(args.api_base), "give either --base_model or --api_base"),
        (args.api_base and local, f"{', '.join(local)}: of no use with --api_base, the server has its own model"),
        (args.base_model and remote, f"{', '.join(remote)}: of use with --api_base only"),
        (args.load_in_8bit and args.load_in_4bit, "--load_in_8bit and --load_in_4bit are both given: choose one"),
        (not re.fullmatch(r"\d+(,\d+)*", args.gpus), f"--gpus: expected numbers such as 0,1, got {args.gpus!r}"),
    ):
        if wrong:
            parser.error(message)


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a chat in the terminal and of a file of questions."""
    add_sampling_arguments(parser)
    add = parser.add_argument
    add("--interactive", action="store_true", help="chat in the terminal: several turns, streamed")
    add("--data_file", help="answer the questions of this file in batches")
    add("--output_file", default="predictions.jsonl", help="JSONL of rows with `prediction` (default: %(default)s)")
    add("--eval_batch_size", type=int, default=8, help="rows of a file answered together (default: %(default)s)")
    add("--single_turn", action="store_true", help="in a chat: every question stands alone")
    add(
        "--causal",
        nargs="?",
        const="data/causal",
        metavar="DIR",
        help="in a chat: reason with the causal network of this folder (default: %(const)s; off without the flag)",
    )


def check_answer_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop with a message where the flags do not go together; `--temperature` gets its default."""
    if args.interactive == bool(args.data_file):
        parser.error("give either --interactive or --data_file")
    if args.causal and not args.interactive:
        parser.error("--causal listens to a chat: give --interactive with it")
    if args.eval_batch_size < 1:
        parser.error(f"--eval_batch_size: expected at least 1, got {args.eval_batch_size}")
    if args.temperature is None:
        args.temperature = 0.7 if args.interactive else 0.0


def sampling_of(args: argparse.Namespace) -> Sampling:
    """How the flags of `add_sampling_arguments` want answers to be written."""
    stops = tuple(args.stop_str)
    return Sampling(args.max_new_tokens, args.temperature or 0.0, args.top_p, args.repetition_penalty, stops)


def select_gpus(args: argparse.Namespace) -> None:
    """Let this process see only the wanted ones of the GPUs that it was given. Before torch is imported."""
    given = "" if args.only_cpu else os.environ.get("CUDA_VISIBLE_DEVICES", args.gpus)
    if given and "CUDA_VISIBLE_DEVICES" in os.environ:
        names, numbers = given.split(","), [int(number) for number in args.gpus.split(",")]
        if max(numbers) >= len(names):
            sys.exit(f"error: --gpus {args.gpus}: CUDA_VISIBLE_DEVICES={given} leaves numbers 0 to {len(names) - 1}")
        given = ",".join(names[number] for number in numbers)
    os.environ["CUDA_VISIBLE_DEVICES"] = given


def load_engine(args: argparse.Namespace, merge: bool = True) -> Engine:
    """The model where the flags want it (`merge`: as `Generator.load` has it), or the server that they name.

    Raises FileNotFoundError or ValueError that says which flag names something that is not there.
    """
    if args.api_base:
        return Server(args.api_base, args.api_model, args.api_key)
    import torch

    from medical_qwen.generation.engine import Generator

    found, wanted = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES") and args.gpus.split(",")
    if wanted and found != len(wanted) and any(Path("/dev").glob("nvidia[0-9]*")):
        raise ValueError(f"--gpus {args.gpus}: {found} of these GPUs can be used")
    return Generator.load(
        args.base_model,
        args.lora_model,
        tokenizer_path=args.tokenizer_path,
        template_name=args.template_name,
        resize_emb=args.resize_emb,
        only_cpu=args.only_cpu,
        bits=4 if args.load_in_4bit else 8 if args.load_in_8bit else None,
        merge=merge,
    )


def describe_engine(args: argparse.Namespace) -> dict:
    """What of the flags an answer depends on, and the state of the model's files: for a job's journal."""
    if args.api_base:
        return {"api_base": args.api_base, "api_model": Server(args.api_base, args.api_model, args.api_key).model}
    from medical_qwen.lineage import resolve

    lineage = resolve(args.base_model, args.lora_model)
    flags = {name: getattr(args, name) for name in ("base_model", *_LOCAL)}
    return flags | {"model_files": describe_model(lineage.root, *lineage.adapters, args.tokenizer_path)}
