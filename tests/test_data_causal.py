"""data/causal: the shipped network is whole, says where each figure comes from, and its labelled set fits it."""

import csv
import json
import re
from collections import Counter

import pytest

from medical_qwen.causal.network import COLUMNS, Network

PROBABILITIES = {"diseases.csv": "prior", "risks.csv": "prior", "findings.csv": "leak", "risk_edges.csv": "strength",
                 "edges.csv": "strength"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(root):
    return root / "data/causal"


@pytest.fixture(scope="module")
def tables(folder):
    def rows(name):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return {name: rows(name) for name in COLUMNS}


def test_the_reader_accepts_it_and_it_is_large_enough(folder):
    network = Network.load(folder)
    assert len(network.diseases) >= 45
    assert len(network.findings) >= 125
    assert len(network.risks) >= 22
    assert (network.strength > 0).sum() >= 400
    assert len(network.red_flags) >= 15


def test_every_row_names_its_source_and_basis(tables):
    for name, rows in tables.items():
        for row in rows:
            if "source" in row:
                assert len(row["source"]) >= 8, (name, row)
            if "basis" in row:
                assert row["basis"] in ("reported", "estimated"), (name, row)


def test_a_reported_figure_names_a_year(tables):
    for name, rows in tables.items():
        for row in rows:
            if row.get("basis") == "reported":
                assert any(f"{year}" in row["source"] for year in range(1980, 2027)), (name, row)


def test_figures_are_probabilities_of_the_right_size(tables):
    limits = {"diseases.csv": 0.15, "findings.csv": 0.15, "risks.csv": 0.6, "risk_edges.csv": 0.99, "edges.csv": 0.99}
    for name, column in PROBABILITIES.items():
        for row in tables[name]:
            assert 0 < float(row[column]) <= limits[name], (name, row)


def test_ids_are_lower_snake(tables):
    for name in ("diseases.csv", "risks.csv", "findings.csv", "red_flags.csv"):
        for row in tables[name]:
            assert row["id"].isascii() and row["id"].replace("_", "a").isalnum() and row["id"] == row["id"].lower()


def test_every_disease_has_findings_and_every_finding_and_risk_a_use(tables):
    per_disease = Counter(row["disease"] for row in tables["edges.csv"])
    assert not [row["id"] for row in tables["diseases.csv"] if per_disease[row["id"]] < 5]
    per_finding = Counter(row["finding"] for row in tables["edges.csv"])
    per_finding += Counter(id_ for row in tables["red_flags.csv"] for id_ in row["findings"].split("+"))
    assert not [row["id"] for row in tables["findings.csv"] if not per_finding[row["id"]]]
    per_risk = Counter(row["risk"] for row in tables["risk_edges.csv"])
    assert not [row["id"] for row in tables["risks.csv"] if not per_risk[row["id"]]]


def test_each_disease_has_a_finding_that_stands_out(folder):
    """Of every disease, one finding is common in it, and ten times as likely as without any disease."""
    network = Network.load(folder)
    leak = [node.base for node in network.findings]
    for row, disease in enumerate(network.diseases):
        pairs = zip(network.strength[row], leak, strict=True)
        assert any(strength >= 0.5 and strength >= 10 * base for strength, base in pairs), disease.id


def test_synonyms_are_unique_and_cover_every_finding_and_risk(tables):
    words = [row["synonym"].lower() for row in tables["synonyms.csv"]]
    assert not [word for word, count in Counter(words).items() if count > 1]
    per_id = Counter(row["id"] for row in tables["synonyms.csv"])
    nodes = [row["id"] for row in tables["findings.csv"] + tables["risks.csv"]]
    assert not [node for node in nodes if not per_id[node]]
    assert sum(per_id.values()) >= 4 * len(nodes)


def test_red_flags_speak_both_languages_and_name_known_ids(tables):
    known = {row["id"] for row in tables["findings.csv"] + tables["risks.csv"]}
    for row in tables["red_flags.csv"]:
        assert set(row["findings"].split("+")) <= known, row
        assert not row["message_zh"].isascii() and row["message_en"].isascii(), row
        assert any(word in row["message_zh"] for word in ("120", "急诊", "就医")), row


@pytest.mark.parametrize(
    ("file", "least", "english", "unknown"), [("labelled", 100, 20, 15), ("labelled_strangers", 60, 0, 10)]
)
def test_labelled_sentences_fit_the_network(folder, file, least, english, unknown):
    known = Network.load(folder).nodes
    rows = [json.loads(line) for line in (folder / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == len(rows)
    splits = Counter(row["split"] for row in rows)
    assert set(splits) == {"dev", "test"} and min(splits.values()) >= least, splits
    assert sum(row["text"].isascii() for row in rows) >= english
    states = Counter()
    for row in rows:
        end = 0
        for mention in row["mentions"]:
            assert mention["id"] in known, row
            assert mention["start"] < mention["end"] <= len(row["text"]), row
            assert end <= mention["start"] or file == "labelled_strangers", row  # one phrase may say two things there
            words = row["text"][mention["start"] : mention["end"]]
            assert words == words.strip("，。、？！,.?! "), row
            assert mention["who"] in ("patient", "relative"), row
            assert mention.get("severity", "mild") in ("mild", "moderate", "severe"), row
            assert mention.get("duration_days", 1) > 0, row
            states[mention["state"]] += 1
            end = mention["end"]
    assert set(states) == {"present", "absent", "unknown"}
    assert states["absent"] >= 80 and states["unknown"] >= unknown, states


def test_the_readme_counts_and_shows_the_rows_that_are_there(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\S+)` \| (\d+) \| `(.*)` \|$", text, re.MULTILINE)
    assert {name for name, _, _ in table} == {*COLUMNS, "labelled.jsonl", "labelled_strangers.jsonl"}
    for name, count, row in table:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()[name.endswith(".csv") :]
        assert len(lines) == int(count), name
        assert row in lines or "…" in row, name
    basis = re.search(r"\((\d+) edges, (\d+) risks\)", text)
    for name, count in zip(("edges.csv", "risks.csv"), basis.groups(), strict=True):
        assert (folder / name).read_text(encoding="utf-8").count(",reported,") == int(count), name
