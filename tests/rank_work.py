"""What one rank does, for tests that start many of them from a process which has loaded torch and done nothing yet."""

import torch
from torch.distributed import PrefixStore, TCPStore

from medical_qwen.generation import Ranks, Sampling, answer_file
from medical_qwen.generation.engine import Generator


def work(model: str, file: str, output: str, port: int, name: str, rank: int, size: int) -> None:
    """Answer the file as rank `rank` of `size`; the ranks of one `name` meet at the store behind `port`."""
    torch.set_num_threads(1)
    ranks = Ranks(rank, size, PrefixStore(name, TCPStore("127.0.0.1", port, is_master=False)))
    load = lambda: Generator.load(model, only_cpu=True)  # noqa: E731
    answer_file(file, output, load, Sampling(12), batch_size=3, seed=0, job={}, ranks=ranks)
