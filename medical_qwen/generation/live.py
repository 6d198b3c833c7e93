"""Streams that are read at the same time, by the threads of a web page, say: they share the passes of the model."""

import threading
from collections.abc import Callable, Iterator

from medical_qwen.generation.decoding import Batch, Row


class Live:
    """The rows of one model that are being streamed, in as few batches as its cache allows: mostly one.

    It has no thread of its own. Whoever wants a piece and finds none makes a step for everybody, the others wait for
    it. A new row is read in by the next step and joins the batch of the others, so that twenty readers cost one pass a
    token. Where nobody reads nothing is computed. A row that is given up leaves before the next step.

    Args:
        begin: makes the batch of a new row.
    """

    def __init__(self, begin: Callable[[list[Row]], Batch]) -> None:
        self._begin = begin
        self._changed = threading.Condition()
        self._stepping = False  # a thread makes a step; until it is done `_batches` belongs to that one
        self._new: list[Row] = []
        self._batches: list[Batch] = []

    def pieces(self, row: Row) -> Iterator[str]:
        """The text of the row as it comes, to its end or until it is given up."""
        with self._changed:
            self._new.append(row)
        sent = 0
        try:
            while not row.given_up and (row.finish_reason is None or sent < len(row.pieces)):
                while not self._settled(row, sent):
                    self._step_or_wait(row, sent)
                if row.error:
                    raise row.error
                new = row.pieces[sent:]
                sent += len(new)
                if text := "".join(new):
                    yield text
        finally:
            self.give_up(row)

    def give_up(self, row: Row) -> None:
        """No further token of this row is wanted. From any thread, at any time."""
        row.given_up = True
        with self._changed:
            if not self._stepping:
                self._sweep()
            self._changed.notify_all()

    def _settled(self, row: Row, sent: int) -> bool:
        return len(row.pieces) > sent or row.given_up or bool(row.finish_reason or row.error)

    def _step_or_wait(self, row: Row, sent: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._stepping or self._settled(row, sent))
            if self._settled(row, sent):
                return
            self._stepping = True
        try:
            self._step()
        finally:
            with self._changed:
                self._stepping = False
                self._changed.notify_all()

    def _step(self) -> None:
        """A token for every row, the new ones too."""
        with self._changed:
            new, self._new = self._new, []
        self._sweep()
        for batch in self._batches:
            self._try(batch.step, batch.rows)
        for row in new:
            self._try(lambda row=row: self._enter(row), [row])

    def _enter(self, row: Row) -> None:
        if row.given_up:
            return
        batch = self._begin([row])
        batch.step()
        if batch.rows and not any(other.rows and other.join(batch) for other in self._batches):
            self._batches.append(batch)

    def _try(self, work: Callable[[], None], rows: list[Row]) -> None:
        """An error belongs to these rows: their readers get it, the other ones go on."""
        try:
            work()
        except BaseException as error:
            for row in rows:
                row.error = error
            if not isinstance(error, Exception):  # Ctrl-C
                raise

    def _sweep(self) -> None:
        for batch in self._batches:
            batch.keep([not (row.given_up or row.error) for row in batch.rows])
        self._batches = [batch for batch in self._batches if batch.rows]
