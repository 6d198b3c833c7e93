"""Ask your documents: answers from what they say, with citations, or 「资料中没有」.

    python chatpdf.py --base_model outputs/sft --corpus data/rag/documents --interactive
    python chatpdf.py --base_model outputs/sft --corpus papers report.pdf --embedding_model BAAI/bge-small-zh-v1.5 \\
        --interactive
    python chatpdf.py --api_base http://127.0.0.1:8000/v1 --data_file questions.jsonl --output_file answers.jsonl

Reads pdf, docx, md, txt, html, csv, xlsx and jsonl. The index is kept in --index_dir: the next start reads new and
changed files only, and without --corpus the index is used as it is. With --data_file every row comes back with
`prediction`, the `passages` it was written from with their scores, and the numbers of those it cites;
`evaluate_metrics.py --retrieval` scores such a file.
"""

import argparse
import logging
import shutil
from pathlib import Path

from medical_qwen.causal import CausalStream, Network
from medical_qwen.evidence import label
from medical_qwen.generation import (
    add_answer_arguments,
    add_engine_arguments,
    answer_file,
    chat,
    check_answer_arguments,
    check_engine_arguments,
    describe_engine,
    describe_files,
    load_engine,
    sampling_of,
    select_gpus,
)
from medical_qwen.pages import add_page_arguments, check_page_arguments, serve


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_engine_arguments(parser)
    add_answer_arguments(parser)
    add = parser.add_argument_group("documents").add_argument
    add("--corpus", "--corpus_files", nargs="+", help="files and folders; default: what the index holds already")
    add("--index_dir", default="outputs/index", help="where the index is kept (default: %(default)s)")
    add(
        "--embedding_model", help="model of sentence-transformers; without one passages are found by their words alone"
    )
    add("--rerank_model", help="cross-encoder that sorts what was found")
    add("--chunk_size", type=int, default=256, help="longest passage in tokens (default: %(default)s)")
    add("--chunk_overlap", type=int, default=32, help="tokens that neighbours may share (default: %(default)s)")
    add("--top_k", type=int, default=4, help="passages put before the model (default: %(default)s)")
    add("--min_support", type=float, help="0..1: below it the answer is a refusal; default: as calibrated")
    add("--rewrite_questions", action="store_true", help="let the model rewrite follow-up questions for the search")
    add("--page", action="store_true", help="ask in the browser: add files, see the passages behind an answer")
    add_page_arguments(parser)
    args = parser.parse_args(argv)
    args.interactive = args.interactive or args.page
    check_engine_arguments(parser, args)
    check_answer_arguments(parser, args)
    if args.page:
        check_page_arguments(parser, args)
    if args.top_k < 1:
        parser.error(f"--top_k: expected at least 1, got {args.top_k}")
    if args.min_support is not None and not 0 <= args.min_support <= 1:
        parser.error(f"--min_support: expected a number in 0..1, got {args.min_support}")
    return args


def open_index(args: argparse.Namespace):
    """The index of the flags, brought up to date with --corpus."""
    from medical_qwen.retrieval import Encoder, Index, Reranker

    encoder = Encoder(args.embedding_model) if args.embedding_model else None
    reranker = Reranker(args.rerank_model) if args.rerank_model else None
    if not args.corpus:
        return Index.open(args.index_dir, encoder, reranker)
    sizes = {"chunk_size": args.chunk_size, "overlap": args.chunk_overlap}
    return Index.build(args.index_dir, args.corpus, encoder, reranker=reranker, **sizes)


def open_library(args: argparse.Namespace):
    """The engine that answers from the documents: the index is made before the model loads."""
    from medical_qwen.retrieval import Library

    index = open_index(args)
    if not len(index):
        raise ValueError(f"--corpus: {args.index_dir} holds no passage; nothing could be read, see the messages above")
    return Library(index, load_engine(args), args.top_k, args.min_support, args.rewrite_questions)


def show_passages(reply) -> None:
    """The passages below an answer, cited ones marked."""
    width = max(40, shutil.get_terminal_size().columns) // 2  # an ideograph takes two columns
    if not reply.found.request:
        print(f"[support {reply.found.support:.2f}: too little in the documents to answer from]")
    for number, hit in enumerate(reply.found.hits, 1):
        passage = hit.passage
        mark = "*" if number in reply.citations.cited else " "
        print(f"{mark}[{number}] {label(vars(passage))}\n      {' '.join(passage.text.split())[: width - 6]}")


def main(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sampling = sampling_of(args)
    if args.page:
        from medical_qwen.pages.documents import documents_page

        network = Network.load(args.causal) if args.causal else None
        added = Path(f"{args.index_dir}_added")
        serve(documents_page(open_library(args), added, args.preference_file, network), args)
        return
    if args.interactive:
        chat(
            lambda: open_library(args),
            sampling,
            system_prompt=args.system_prompt,
            single_turn=args.single_turn,
            seed=args.seed,
            causal=CausalStream.load(args.causal) if args.causal else None,
            after=show_passages,
        )
        return
    if any(Path(folder).resolve() in Path(args.output_file).resolve().parents for folder in args.corpus or ()):
        raise ValueError(f"--output_file {args.output_file} lies in --corpus and would be read as a document")
    documents = describe_files(*args.corpus, without=args.index_dir) if args.corpus else describe_files(args.index_dir)
    names = ("corpus", "index_dir", "embedding_model", "rerank_model", "chunk_size", "chunk_overlap", "top_k",
             "min_support", "rewrite_questions")  # fmt: skip
    summary = answer_file(
        args.data_file,
        args.output_file,
        lambda: open_library(args),
        sampling,
        batch_size=args.eval_batch_size,
        system_prompt=args.system_prompt,
        seed=args.seed,
        job=describe_engine(args) | {name: getattr(args, name) for name in names} | {"documents": documents},
        details=lambda library, request, answer: library.details(request, sampling, answer),
    )
    print(f"{args.output_file}: {summary}")


if __name__ == "__main__":
    arguments = parse_args()
    select_gpus(arguments)
    from medical_qwen.training import run

    run(lambda: main(arguments))
