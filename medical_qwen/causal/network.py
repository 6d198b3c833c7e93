"""The causal network: risk → disease → finding, read from a folder of CSV files.

Every arrow is an independent cause (noisy-OR, Pearl 1988): a present cause brings its effect about with probability
`strength`, and what lies outside the network with probability `base` (the prior of a risk or disease, the leak of a
finding):

    P(effect absent | causes) = (1 − base) · Π over present causes (1 − strength)

Probabilities lie strictly between 0 and 1, so no evidence is impossible, and every ratio below is finite.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

SHOWN = 20
KINDS = ("symptom", "sign", "test", "history")
BASES = ("reported", "estimated")
COLUMNS = {
    "diseases.csv": ("id", "name_zh", "name_en", "prior", "basis", "source"),
    "risks.csv": ("id", "name_zh", "name_en", "prior", "basis", "source"),
    "findings.csv": ("id", "name_zh", "name_en", "kind", "leak", "question_zh", "question_en", "basis", "source"),
    "risk_edges.csv": ("risk", "disease", "strength", "basis", "source"),
    "edges.csv": ("disease", "finding", "strength", "basis", "source"),
    "synonyms.csv": ("id", "synonym"),
    "red_flags.csv": ("id", "findings", "message_zh", "message_en", "source"),
}


@dataclass(frozen=True)
class Node:
    """A risk, a disease or a finding. `base`: its probability when no cause inside the network acts."""

    id: str
    kind: str  # risk, disease, or one of KINDS
    zh: str
    en: str
    base: float
    question_zh: str = ""
    question_en: str = ""

    def name(self, language: str) -> str:
        return self.zh if language == "zh" else self.en

    def question(self, language: str) -> str:
        """What to ask the patient."""
        if language == "zh":
            return self.question_zh or f"您是否有以下情况：{self.zh}？"
        return self.question_en or f"Does this apply to you: {self.en}?"


@dataclass(frozen=True)
class RedFlag:
    """Findings (or risks) that together call for help at once."""

    id: str
    findings: frozenset[str]
    zh: str
    en: str

    def message(self, language: str) -> str:
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in the order of their files, and the strengths between them; a strength of 0 is no arrow."""

    risks: tuple[Node, ...]
    diseases: tuple[Node, ...]
    findings: tuple[Node, ...]
    risk_strength: np.ndarray  # (risks, diseases)
    strength: np.ndarray  # (diseases, findings)
    synonyms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    red_flags: tuple[RedFlag, ...] = ()

    @cached_property
    def nodes(self) -> dict[str, Node]:
        return {node.id: node for node in (*self.risks, *self.diseases, *self.findings)}

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of an id among the risks, the diseases or the findings."""
        return {node.id: row for nodes in (self.risks, self.diseases, self.findings) for row, node in enumerate(nodes)}

    @classmethod
    def load(cls, folder: str | Path) -> "Network":
        """The network of a folder that holds the files of `COLUMNS`.

        Raises FileNotFoundError for a missing file, and ValueError with the first 20 problems, each as
        `file:line: field: expected … got …`.
        """
        return _Loader(Path(folder)).network()

    def sample(self, patients: int, seed: int) -> "Patients":
        """Patients drawn from the network, with the arrows that acted in each."""
        random = np.random.default_rng(seed)
        risks = random.random((patients, len(self.risks))) < base(self.risks)
        off = np.exp(risks @ np.log1p(-self.risk_strength)) * (1 - base(self.diseases))
        diseases = random.random(off.shape) >= off
        caused = np.zeros((*diseases.shape, len(self.findings)), dtype=bool)
        for row, strength in enumerate(self.strength):
            coins = random.random((int(diseases[:, row].sum()), len(strength)))
            caused[diseases[:, row], row] = coins < strength
        leaks = random.random((patients, len(self.findings))) < base(self.findings)
        return Patients(risks, diseases, leaks | caused.any(axis=1), caused)


@dataclass(frozen=True, eq=False)
class Patients:
    """Sampled patients: what each has, as bools."""

    risks: np.ndarray  # (patients, R)
    diseases: np.ndarray  # (patients, D)
    findings: np.ndarray  # (patients, F)
    caused: np.ndarray  # (patients, D, F) whether the disease brought the finding about


def base(nodes: Sequence[Node]) -> np.ndarray:
    """The nodes' base probabilities, shape (nodes,)."""
    return np.array([node.base for node in nodes], dtype=float)


class _Loader:
    """Reads the files of a folder and collects what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder with {', '.join(COLUMNS)}")
        missing = [name for name in COLUMNS if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder}: {', '.join(missing)} missing; expected {', '.join(COLUMNS)}")
        self.folder = folder
        self.problems: list[str] = []
        self.seen: dict[object, str] = {}  # what may come once -> where it came first

    def network(self) -> Network:
        risks = self.layer("risks.csv", "prior")
        diseases = self.layer("diseases.csv", "prior")
        findings = self.layer("findings.csv", "leak")
        if not self.problems and not (diseases and findings):
            self.problem("diseases.csv", 1, "rows", "at least one disease and one finding", "none")
        risk_strength = self.edges("risk_edges.csv", ("risk", risks), ("disease", diseases))
        strength = self.edges("edges.csv", ("disease", diseases), ("finding", findings))
        named = {node.id for node in (*risks, *findings)}
        synonyms, red_flags = self.synonyms(named), self.red_flags(named)
        if self.problems:
            shown = self.problems[:SHOWN]
            if len(self.problems) > SHOWN:
                shown.append(f"… and {len(self.problems) - SHOWN} more")
            count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
            raise ValueError("\n".join([f"{self.folder}: {count} in the network:", *(f"  {line}" for line in shown)]))
        return Network(risks, diseases, findings, risk_strength, strength, synonyms, red_flags)

    def problem(self, file: str, line: int, name: str, expected: str, got: object) -> None:
        shown = got if isinstance(got, str) and got.startswith("none") else repr(got)
        self.problems.append(f"{file}:{line}: {name}: expected {expected}, got {shown}")

    def rows(self, file: str) -> Iterator[tuple[int, dict[str, str]]]:
        """(line, row) of every row that has a value in each column, stripped."""
        columns = COLUMNS[file]
        try:
            text = (self.folder / file).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            self.problem(file, 1, "encoding", "UTF-8", error.reason)
            return
        reader = csv.DictReader(text.splitlines(keepends=True), restkey="")
        if reader.fieldnames is None or set(reader.fieldnames) != set(columns):
            self.problem(file, 1, "header", ",".join(columns), ",".join(reader.fieldnames or ()))
            return
        for row in reader:
            if "" in row:
                self.problem(file, reader.line_num, "row", f"{len(columns)} values", len(columns) + len(row[""]))
                continue
            row = {name: (value or "").strip() for name, value in row.items()}
            empty = [name for name in columns if not row[name]]
            for name in empty:
                self.problem(file, reader.line_num, name, "a value", "")
            if "basis" in row and row["basis"] and row["basis"] not in BASES:
                self.problem(file, reader.line_num, "basis", " or ".join(BASES), row["basis"])
            if not empty:
                yield reader.line_num, row

    def once(self, file: str, line: int, name: str, key: object, got: str) -> bool:
        """Whether `key` comes for the first time; else a problem is noted."""
        if key in self.seen:
            self.problem(file, line, name, f"one that {self.seen[key]} does not have", got)
            return False
        self.seen[key] = f"{file}:{line}"
        return True

    def probability(self, file: str, line: int, row: dict[str, str], name: str) -> float | None:
        try:
            value = float(row[name])
        except ValueError:
            value = float("nan")
        if 0 < value < 1:
            return value
        self.problem(file, line, name, "a number between 0 and 1, both excluded", row[name])
        return None

    def layer(self, file: str, probability: str) -> tuple[Node, ...]:
        nodes = []
        for line, row in self.rows(file):
            kind = row.get("kind", file.removesuffix("s.csv"))
            if "kind" in row and kind not in KINDS:
                self.problem(file, line, "kind", ", ".join(KINDS), kind)
            value = self.probability(file, line, row, probability)
            self.once(file, line, "id", ("node", row["id"]), row["id"])
            questions = (row.get("question_zh", ""), row.get("question_en", ""))
            nodes.append(Node(row["id"], kind, row["name_zh"], row["name_en"], value or 0.5, *questions))
        return tuple(nodes)

    def edges(self, file: str, tail: tuple[str, Sequence[Node]], head: tuple[str, Sequence[Node]]) -> np.ndarray:
        index = [{node.id: row for row, node in enumerate(nodes)} for _, nodes in (tail, head)]
        strength = np.zeros((len(tail[1]), len(head[1])))
        for line, row in self.rows(file):
            ends = [row[tail[0]], row[head[0]]]
            for name, end, rows in zip((tail[0], head[0]), ends, index, strict=True):
                if end not in rows:
                    self.problem(file, line, name, f"the id of a {name}", end)
            value = self.probability(file, line, row, "strength")
            known = all(end in rows for end, rows in zip(ends, index, strict=True))
            if self.once(file, line, f"{tail[0]},{head[0]}", (file, *ends), " → ".join(ends)) and known and value:
                strength[index[0][ends[0]], index[1][ends[1]]] = value
        return strength

    def synonyms(self, named: set[str]) -> dict[str, tuple[str, ...]]:
        synonyms: dict[str, tuple[str, ...]] = {}
        for line, row in self.rows("synonyms.csv"):
            if row["id"] not in named:
                self.problem("synonyms.csv", line, "id", "the id of a finding or a risk", row["id"])
            elif self.once("synonyms.csv", line, "synonym", ("synonym", row["synonym"].lower()), row["synonym"]):
                synonyms[row["id"]] = (*synonyms.get(row["id"], ()), row["synonym"])
        return synonyms

    def red_flags(self, named: set[str]) -> tuple[RedFlag, ...]:
        flags = []
        for line, row in self.rows("red_flags.csv"):
            ids = [part.strip() for part in row["findings"].split("+")]
            for unknown in (part for part in ids if part not in named):
                self.problem("red_flags.csv", line, "findings", "ids of findings or risks joined by +", unknown)
            if self.once("red_flags.csv", line, "id", ("red flag", row["id"]), row["id"]):
                flags.append(RedFlag(row["id"], frozenset(ids), row["message_zh"], row["message_en"]))
        return tuple(flags)
