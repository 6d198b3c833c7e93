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
import contextlib
import logging
import signal
import sys

from medical_qwen.causal import CausalStream
from medical_qwen.evidence import with_documents
from medical_qwen.generation import (
    Engine,
    Request,
    Sampling,
    add_engine_arguments,
    answer_file,
    check_engine_arguments,
    describe_engine,
    load_engine,
    select_gpus,
)

NOTICE = """\
本模型的回答可能有误，仅供参考，不能代替医生的诊断和治疗；紧急情况请立即就医。
This model's answers may be wrong. They are not medical advice and replace no doctor; in an emergency call for help.
Ctrl-C stops an answer, `clear` forgets the conversation, `exit` leaves.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_engine_arguments(parser)
    add = parser.add_argument
    add("--interactive", action="store_true", help="chat in the terminal: several turns, streamed")
    add("--data_file", help="answer the questions of this file in batches")
    add("--output_file", default="predictions.jsonl", help="JSONL of rows with `prediction` (default: %(default)s)")
    add("--system_prompt", help="for conversations that have no system turn of their own")
    add("--max_new_tokens", type=int, default=512, help="longest answer (default: %(default)s)")
    add("--temperature", type=float, help="0: always the likeliest token; default: 0.7 in a chat, 0 for a file")
    add("--top_p", type=float, default=0.9, help="draw from the likeliest tokens of this mass (default: %(default)s)")
    add("--repetition_penalty", type=float, default=1.0, help="above 1: repeat less (default: %(default)s)")
    add("--stop_str", action="append", default=[], help="end an answer before this text; may be given several times")
    add("--eval_batch_size", type=int, default=8, help="rows of a file answered together (default: %(default)s)")
    add("--single_turn", action="store_true", help="in a chat: every question stands alone")
    add(
        "--causal",
        nargs="?",
        const="data/causal",
        metavar="DIR",
        help="in a chat: reason with the causal network of this folder (default: %(const)s; off without the flag)",
    )
    add("--seed", type=int, default=42, help="of the drawing; row n of a file uses seed + n (default: %(default)s)")
    args = parser.parse_args(argv)
    check_engine_arguments(parser, args)
    if args.interactive == bool(args.data_file):
        parser.error("give either --interactive or --data_file")
    if args.causal and not args.interactive:
        parser.error("--causal listens to a chat: give --interactive with it")
    if args.eval_batch_size < 1:
        parser.error(f"--eval_batch_size: expected at least 1, got {args.eval_batch_size}")
    if args.temperature is None:
        args.temperature = 0.7 if args.interactive else 0.0
    return args


def chat(args: argparse.Namespace, sampling: Sampling) -> None:
    """Several turns on the terminal. What was said stays as it was said, a stopped answer as far as it was shown."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives `input` line editing)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell hands on an ignored Ctrl-C
    causal = CausalStream.load(args.causal) if args.causal else None
    engine = load_engine(args)
    system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
    history, notice = list(system), NOTICE
    while True:
        try:
            print(notice)
            notice = ""
            question = input("User: ").strip()
            if question == "exit":
                return
            if question == "clear" or args.single_turn:
                history = list(system)
                causal = causal and CausalStream(causal.network)
            if question == "clear":
                notice = "The conversation is forgotten.\n"
            elif question:
                findings = listen(causal, question) if causal else ""
                reply(engine, history, question, sampling, args.seed + len(history), findings)
                notice = findings and f"\n{findings}\n"
        except KeyboardInterrupt:  # nothing that takes time happens here: a second Ctrl-C would end the chat
            notice = "\n`exit` leaves\n"
        except EOFError:
            print()
            return
        except ValueError as error:
            notice = f"error: {error}\n"


def listen(causal: CausalStream, question: str) -> str:
    """What the causal network makes of the talk so far; urgent notices are shown at once."""
    asked = causal.state and causal.state.question
    state = causal.hear(question, answer_to=asked.id if asked else None)
    for flag in state.urgent:
        print(f"⚠ {flag.message(causal.language)}")
    return causal.evidence()


def reply(
    engine: Engine, history: list[dict], question: str, sampling: Sampling, seed: int, findings: str = ""
) -> None:
    """Stream one answer, given the findings of the causal network; the turn as it was said is added to `history`."""
    turn = {"role": "user", "content": question}
    messages = with_documents([*history, turn], None, findings)
    stream = engine.stream(Request(messages, seed=seed), sampling)
    print("Assistant: ", end="", flush=True)
    try:
        for piece in stream:
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" [stopped]")
    finally:
        stream.close()
        if stream.answer.text:
            history += [turn, {"role": "assistant", "content": stream.answer.text}]
    if stream.answer.finish_reason == "length":
        print(f"[cut at --max_new_tokens {sampling.max_new_tokens}]")
    if stream.answer.truncated:
        print("[too long for the model's context: its oldest part was left out]")


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
    stops = tuple(args.stop_str)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.repetition_penalty, stops)
    chat(args, sampling) if args.interactive else batch(args, sampling)


if __name__ == "__main__":
    arguments = parse_args()
    select_gpus(arguments)
    from medical_qwen.training import run

    run(lambda: main(arguments))
