"""The processes that do one job together, as torchrun starts them.

What they share is the folder of the output and a few counters. Nothing is sent from GPU to GPU, so there is no backend
to choose: the counters are those of torchrun's own store, over TCP, whatever the ranks compute on.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta


class Ranks:
    """One of `size` processes, the one of number `rank`. Without torchrun: the only one."""

    def __init__(self, rank: int = 0, size: int = 1, store=None) -> None:
        self.rank, self.size = rank, size
        self._store, self._own = store, dict[str, int]()

    @classmethod
    def of_torchrun(cls) -> "Ranks":
        """This process among those that torchrun started; alone where it started none."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        from torch.distributed import PrefixStore, rendezvous

        store, rank, size = next(rendezvous("env://", timeout=timedelta(days=1)))
        return cls(rank, size, PrefixStore("job", store))

    def add(self, name: str, amount: int = 1) -> int:
        """Add to a counter; its new value over all ranks. No two ranks are given the same one."""
        if self._store is not None:
            return self._store.add(name, amount)
        self._own[name] = self._own.get(name, 0) + amount
        return self._own[name]

    def total(self, name: str) -> int:
        """What all ranks have added to a counter so far."""
        return self.add(name, 0)

    def meet(self, name: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return when every rank has come here. A rank that fails never comes: torchrun then ends the others."""
        self.add(name)
        while self.total(name) < self.size:
            meanwhile()
            time.sleep(0.02)
