"""Ask a model: chat in the terminal, or a file of questions in, a file of answers out.

    python inference.py --base_model outputs/sft --interactive
    python inference.py --base_model Qwen/Qwen3-0.6B --lora_model outputs/sft --interactive
    python inference.py --base_model outputs/sft --data_file questions.jsonl --output_file answers.jsonl
    python inference.py --api_base http://127.0.0.1:8000/v1 --interactive

--data_file is a .txt with a question a line, or holds records of any known form; of a conversation that ends with a
reply that reply is asked for. Every row comes back with its own fields and `prediction`, in the order of the file.
A killed run goes on where it was when the same command is given again. With --api_base a server answers, in the chat
and for a file; the model is not loaded here. With --causal the chat comes with what a causal network makes of the
words: likely causes and why, what to ask next, urgent notices. The model sees it before its answer.
"""

import argparse
import logging

from medical_qwen.causal import CausalStream
from medical_qwen.generation import (
    Sampling,
    add_answer_arguments,
    add_engine_arguments,
    answer_file,
    chat,
    check_answer_arguments,
    check_engine_arguments,
    describe_engine,
    load_engine,
    sampling_of,
    select_gpus,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_engine_arguments(parser)
    add_answer_arguments(parser)
    args = parser.parse_args(argv)
    check_engine_arguments(parser, args)
    check_answer_arguments(parser, args)
    return args


def batch(args: argparse.Namespace, sampling: Sampling) -> None:
    """Answer --data_file. What is wrong with the files is said before the model loads."""
    summary = answer_file(
        args.data_file,
        args.output_file,
        lambda: load_engine(args),
        sampling,
        batch_size=args.eval_batch_size,
        system_prompt=args.system_prompt,
        seed=args.seed,
        job=describe_engine(args),
    )
    print(f"{args.output_file}: {summary}")


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sampling = sampling_of(args)
    if args.interactive:
        chat(
            lambda: load_engine(args),
            sampling,
            system_prompt=args.system_prompt,
            single_turn=args.single_turn,
            seed=args.seed,
            causal=CausalStream.load(args.causal) if args.causal else None,
        )
    else:
        batch(args, sampling)


if __name__ == "__main__":
    arguments = parse_args()
    select_gpus(arguments)
    from medical_qwen.training import run

    run(lambda: main(arguments))
