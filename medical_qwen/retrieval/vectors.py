"""Nearest passages by meaning: every vector compared up to some size, an inverted file of faiss above it.

The inverted file holds one byte a dimension and is asked for more than is wanted; the vectors themselves, which are
memory-mapped, then decide. So a cosine is always exact; only a passage in a cell that was not probed can be missed.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

EXACT = 200_000  # passages up to which all are compared
CELLS_PROBED = 32
TRAINED_ON = 40  # vectors a cell that k-means sees
BLOCK = 16_384
NAME = "vectors.faiss"


def faiss() -> Any:
    try:
        import faiss as library
    except ImportError as error:
        raise ImportError(f"more than {EXACT} passages need faiss: pip install faiss-cpu==1.15.1") from error
    return library


def build_cells(vectors: np.ndarray, folder: Path, before: Path | None) -> None:
    """Write the inverted file over all rows into a folder. One from before is added to while its cells are enough.

    Args:
        vectors: float32 of (rows, dimension), length 1.
        before: folder of an earlier update, if its rows are the first of these.
    """
    rows, dimension = vectors.shape
    if rows <= EXACT:
        return
    library = faiss()
    cells = 4 * 2 ** round(math.log2(rows) / 2)
    index = None
    if before and (before / NAME).exists():
        index = library.read_index(str(before / NAME))
    if index is None or index.ntotal > rows or index.nlist != cells:
        index = library.index_factory(dimension, f"IVF{cells},SQ8", library.METRIC_INNER_PRODUCT)
        index.cp.niter = 10
        sample = np.random.default_rng(0).choice(rows, min(rows, TRAINED_ON * cells), replace=False)
        index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    for start in range(index.ntotal, rows, BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
    library.write_index(index, str(folder / NAME))


class Nearest:
    """Vectors opened for search.

    Args:
        vectors: float32 of (rows, dimension), memory-mapped.
        alive: bool of (rows,): which of them may be found.
        folder: where `build_cells` wrote.
    """

    def __init__(self, vectors: np.ndarray, alive: np.ndarray, folder: Path) -> None:
        self.vectors, self.alive, self.cells = vectors, alive, None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor do we write
            self._same = torch.from_numpy(vectors)
        if (folder / NAME).exists():
            self.cells = faiss().read_index(str(folder / NAME), faiss().IO_FLAG_MMAP)
            self.cells.nprobe = CELLS_PROBED

    def rows(self, query: np.ndarray, depth: int) -> np.ndarray:
        """The living rows nearest to a vector of length 1, nearest first; at most `depth`."""
        if self.cells is None:
            # By torch, as its threads still spin from encoding the query: NumPy's would fight them for the cores.
            cosines = torch.mv(self._same, torch.from_numpy(query)).numpy()
            return best(np.where(self.alive, cosines, -np.inf), depth, above=-np.inf)
        found = self.cells.search(query[None], 4 * depth)[1][0]
        found = np.sort(found[found >= 0])
        found = found[self.alive[found]]
        return found[best(self.vectors[found] @ query, depth, above=-np.inf)]


def best(scores: np.ndarray, depth: int, above: float) -> np.ndarray:
    """Places of the `depth` highest scores above a bound, highest first; of equal ones the earlier first."""
    chosen = np.argpartition(-scores, depth - 1)[:depth] if len(scores) > depth else np.arange(len(scores))
    chosen = chosen[scores[chosen] > above]
    return chosen[np.lexsort((chosen, -scores[chosen]))]
