"""A chat in the terminal, with any engine."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator

from medical_qwen.causal import CausalStream
from medical_qwen.evidence import with_documents
from medical_qwen.generation.interface import Engine, Request, Sampling, Stream
from medical_qwen.generation.text import THINK_CLOSE, THINK_OPEN, overlap

NOTICE = """\
本模型的回答可能有误，仅供参考，不能代替医生的诊断和治疗；紧急情况请立即就医。
This model's answers may be wrong. They are not medical advice and replace no doctor; in an emergency call for help.
Ctrl-C stops an answer, `clear` forgets the conversation, `exit` leaves.
"""
DIM, PLAIN = "\033[2m", "\033[0m"


def chat(
    load: Callable[[], Engine],
    sampling: Sampling,
    *,
    system_prompt: str | None = None,
    single_turn: bool = False,
    seed: int = 0,
    causal: CausalStream | None = None,
    after: Callable[[Stream], object] = lambda stream: None,
) -> None:
    """Several turns, streamed. What was said stays as it was said, a stopped answer as far as it was shown.

    Args:
        single_turn: every question stands alone.
        causal: listens, and its findings go to the model and below the answer.
        after: called with every answer when it has been written or stopped, to tell more about it.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives `input` line editing)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell hands on an ignored Ctrl-C
    engine = load()
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    history, notice = list(system), NOTICE
    while True:
        try:
            print(notice)
            notice = ""
            question = input("User: ").strip()
            if question == "exit":
                return
            if question == "clear" or single_turn:
                history = list(system)
                causal = causal and CausalStream(causal.network)
            if question == "clear":
                notice = "The conversation is forgotten.\n"
            elif question:
                findings = listen(causal, question) if causal else ""
                after(reply(engine, history, question, sampling, seed + len(history), findings))
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
) -> Stream:
    """Write one answer, given the findings of the causal network; the turn as it was said is added to `history`."""
    turn = {"role": "user", "content": question}
    stream = engine.stream(Request(with_documents([*history, turn], None, findings), seed=seed), sampling)
    colours = sys.stdout.isatty()
    print("Assistant: ", end="", flush=True)
    try:
        for piece in dimmed(stream) if colours else stream:
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(f"{PLAIN if colours else ''} [stopped]")
    finally:
        stream.close()
        if stream.answer.text:
            history += [turn, {"role": "assistant", "content": stream.answer.text}]
    if stream.answer.finish_reason == "length":
        print(f"[cut at --max_new_tokens {sampling.max_new_tokens}]")
    if stream.answer.truncated:
        print("[too long for the model's context: its oldest part was left out]")
    return stream


def dimmed(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces with thoughts in a faint colour instead of between tags, wherever a tag is cut."""
    held, thinking = "", False
    for piece in pieces:
        held += piece
        while (tag := THINK_CLOSE if thinking else THINK_OPEN) in held:
            before, _, held = held.partition(tag)
            yield before + (PLAIN if thinking else DIM)
            thinking = not thinking
        keep = overlap(held, tag)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held + (PLAIN if thinking else "")
