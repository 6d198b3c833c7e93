"""What was read, what was changed and what was left out: printed before training, kept in the run's summary."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from .problems import SHOWN


@dataclass
class FileReport:
    """One file, or one data set that was loaded by name."""

    path: str
    part: str  # train or validation
    sha256: str
    encoding: str = ""
    format: str = ""
    rows: int = 0
    bad: int = 0
    records: int = 0


@dataclass
class Report:
    """Counts of a reading. `str()` is a table for people, `as_dict()` goes into run_summary.json."""

    form: str
    files: list[FileReport] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # files of a folder that no reader takes
    problems: list[str] = field(default_factory=list)  # the first ones
    bad: int = 0
    fatal: bool = False  # some file could not be read to its end
    reasons: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    overlap: int = 0
    train: int = 0
    validation: int = 0

    def add_problem(self, file: FileReport, where: str, problem: Exception, reason: str) -> None:
        file.bad += 1
        self.bad += 1
        self.reasons[reason] += 1
        if len(self.problems) < SHOWN:
            self.problems.append(f"{where}: {problem}")

    def as_dict(self) -> dict[str, Any]:
        counts = {name: dict(value) for name, value in vars(self).items() if isinstance(value, Counter)}
        return vars(self) | counts | {"files": [asdict(file) for file in self.files]}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Report":
        counts = {name: Counter(value) for name, value in saved.items() if isinstance(value, dict)}
        return cls(**saved | counts | {"files": [FileReport(**file) for file in saved["files"]]})

    def __str__(self) -> str:
        head = ("file", "part", "format", "encoding", "rows", "bad", "records", "sha256")
        table = [
            (
                f.path,
                f.part,
                f.format or "-",
                f.encoding or "-",
                f"{f.rows}",
                f"{f.bad}",
                f"{f.records}",
                f.sha256[:12],
            )
            for f in self.files
        ]
        widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
        lines = [f"data as `{self.form}`"]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *table)
        ]
        for title, counts in (("repaired", self.repairs), ("left out", self.left_out), ("bad", self.reasons)):
            lines += [f"{title}: {count} × {what}" for what, count in counts.items()]
        if self.duplicates:
            lines.append(f"left out: {self.duplicates} × exact duplicate")
        if self.overlap:
            lines.append(f"left out: {self.overlap} × training record that asks a question of the validation records")
        if self.ignored:
            more = f" and {len(self.ignored) - 5} more" if len(self.ignored) > 5 else ""
            lines.append(f"files not read (unknown extension): {', '.join(self.ignored[:5])}{more}")
        if self.train or self.validation:
            lines.append(f"{self.train} training records, {self.validation} validation records")
        return "\n".join(line.rstrip() for line in lines)
