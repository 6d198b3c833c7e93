"""A file of questions in, a file of answers out, on all GPUs at once: every rank has the whole model.

    CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 inference_multigpu_demo.py \
        --base_model outputs/sft --data_file questions.jsonl --output_file answers.jsonl
    torchrun --nproc_per_node 2 inference_multigpu_demo.py --base_model outputs/sft --data_file q.jsonl --only_cpu
    torchrun --nproc_per_node 4 inference_multigpu_demo.py --base_model Qwen/Qwen3-8B --data_file q.jsonl --engine vllm

The files are those of inference.py, and so are the answers: the batches are planned over the whole file, the same ones
on every rank, and whoever is free takes the next. Each rank keeps a journal beside the output; a killed run goes on
with the same command, also with another number of ranks. Ranks on several machines need a folder that all of them see.
With --engine vllm each rank is a vLLM of its own, on --tensor_parallel_size GPUs.
"""

import argparse
import logging
import os

from medical_qwen.generation import (
    Engine,
    Ranks,
    add_engine_arguments,
    add_sampling_arguments,
    answer_file,
    check_engine_arguments,
    describe_engine,
    load_engine,
    sampling_of,
    select_gpus,
)

ROWS_AT_ONCE = {"transformers": 8, "vllm": 256}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_engine_arguments(parser)
    add_sampling_arguments(parser)
    parser.set_defaults(gpus="")
    add = parser.add_argument
    add("--data_file", required=True, help="the questions: .txt with one a line, or records of any known form")
    add("--output_file", default="predictions.jsonl", help="JSONL of rows with `prediction` (default: %(default)s)")
    add("--batch_size", type=int, help="rows that a rank answers together (default: 8, with vllm 256)")
    add("--engine", choices=ROWS_AT_ONCE, default="transformers", help="what computes (default: %(default)s)")
    add("--tensor_parallel_size", type=int, default=1, help="GPUs of each rank with --engine vllm (default: 1)")
    args = parser.parse_args(argv)
    if not (own := own_gpus(args)):
        parser.error(f"--gpus {args.gpus} has none left for rank {os.environ.get('LOCAL_RANK')}")
    args.gpus = own
    check_engine_arguments(parser, args)
    if args.batch_size is None:
        args.batch_size = ROWS_AT_ONCE[args.engine]
    ours = [f"--{name}" for name in ("load_in_8bit", "load_in_4bit", "resize_emb") if getattr(args, name)]
    for wrong, message in (
        (args.api_base, "--api_base: one process keeps a server busy, use inference.py"),
        (args.batch_size < 1, f"--batch_size: expected at least 1, got {args.batch_size}"),
        (args.tensor_parallel_size < 1, "--tensor_parallel_size: expected at least 1"),
        (args.engine != "vllm" and args.tensor_parallel_size > 1, "--tensor_parallel_size: of use with --engine vllm"),
        (args.engine == "vllm" and ours, f"{', '.join(ours)}: not with --engine vllm"),
    ):
        if wrong:
            parser.error(message)
    return args


def own_gpus(args: argparse.Namespace) -> str:
    """The numbers of this rank's GPUs among the visible ones, or among those that --gpus names; empty if too few."""
    first = int(os.environ.get("LOCAL_RANK", 0)) * args.tensor_parallel_size
    numbers = args.gpus.split(",") if args.gpus else [str(n) for n in range(first + args.tensor_parallel_size)]
    own = numbers[first : first + args.tensor_parallel_size]
    return ",".join(own) if len(own) == args.tensor_parallel_size else ""


def load(args: argparse.Namespace) -> Engine:
    """The engine of this rank."""
    if args.engine == "transformers":
        return load_engine(args)
    from medical_qwen.generation.vllm_engine import VllmEngine

    return VllmEngine.load(
        args.base_model,
        args.lora_model,
        tokenizer_path=args.tokenizer_path,
        template_name=args.template_name,
        tensor_parallel_size=args.tensor_parallel_size,
    )


def main(args: argparse.Namespace) -> None:
    from transformers.utils import logging as hf_logging

    ranks = Ranks.of_torchrun()
    logging.basicConfig(
        level=logging.INFO if ranks.rank == 0 else logging.WARNING,
        format=f"%(levelname)s rank {ranks.rank} %(name)s: %(message)s",
    )
    if ranks.rank:
        hf_logging.disable_progress_bar()
    summary = answer_file(
        args.data_file,
        args.output_file,
        lambda: load(args),
        sampling_of(args),
        batch_size=args.batch_size,
        system_prompt=args.system_prompt,
        seed=args.seed,
        job=describe_engine(args) | ({"engine": "vllm"} if args.engine == "vllm" else {}),
        ranks=ranks,
    )
    if ranks.rank == 0:
        print(f"{args.output_file}: {summary}, {ranks.size} ranks")


if __name__ == "__main__":
    arguments = parse_args()
    select_gpus(arguments)
    from medical_qwen.training import run

    run(lambda: main(arguments))
