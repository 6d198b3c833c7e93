"""The reader of network folders: what is right loads, what is wrong is named with its file, line and field."""

import numpy as np
import pytest
from causal_networks import random_network, write_network

from medical_qwen.causal import Network

GOOD = {
    "diseases.csv": [{"id": "flu", "name_zh": "流感", "prior": "0.02"}, {"id": "cold", "prior": "0.1"}],
    "risks.csv": [{"id": "contact", "name_zh": "接触过病人", "prior": "0.2"}],
    "findings.csv": [
        {"id": "fever", "name_zh": "发热", "leak": "0.03", "question_zh": "发烧吗？"},
        {"id": "cough", "kind": "sign"},
    ],
    "risk_edges.csv": [{"risk": "contact", "disease": "flu", "strength": "0.3"}],
    "edges.csv": [
        {"disease": "flu", "finding": "fever", "strength": "0.9"},
        {"disease": "flu", "finding": "cough", "strength": "0.7"},
        {"disease": "cold", "finding": "cough", "strength": "0.5"},
    ],
    "synonyms.csv": [{"id": "fever", "synonym": "发烧"}, {"id": "fever", "synonym": "热度"}],
    "red_flags.csv": [{"id": "alarm", "findings": "fever + cough", "message_zh": "马上就医"}],
}


def test_a_folder_becomes_a_network(tmp_path):
    network = Network.load(write_network(tmp_path / "net", GOOD))
    assert [node.id for node in network.diseases] == ["flu", "cold"]
    assert network.strength.tolist() == [[0.9, 0.7], [0, 0.5]]
    assert network.risk_strength.tolist() == [[0.3, 0]]
    assert network.nodes["fever"].question("zh") == "发烧吗？" and network.nodes["cough"].kind == "sign"
    assert network.nodes["contact"].question("zh") == "您是否有以下情况：接触过病人？"
    assert network.synonyms == {"fever": ("发烧", "热度")}
    assert network.red_flags[0].findings == {"fever", "cough"}


NUMBER = "expected a number between 0 and 1, both excluded"
EDGE = {"disease": "flu", "finding": "fever", "strength": "0.1"}
RISK_EDGE = {"risk": "contact", "disease": "cold", "strength": "0.1"}


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("diseases.csv", {"id": "fever"}, "expected one that diseases.csv:4 does not have, got 'fever'"),
        ("diseases.csv", {"id": "mumps", "prior": "1"}, f"4: prior: {NUMBER}, got '1'"),
        ("findings.csv", {"id": "rash", "leak": "often"}, f"4: leak: {NUMBER}, got 'often'"),
        ("findings.csv", {"id": "rash", "leak": "nan"}, f"4: leak: {NUMBER}, got 'nan'"),
        (
            "findings.csv",
            {"id": "rash", "kind": "smell"},
            "4: kind: expected symptom, sign, test, history, got 'smell'",
        ),
        ("findings.csv", {"id": "rash", "source": ""}, "4: source: expected a value, got ''"),
        ("edges.csv", EDGE | {"finding": "rash"}, "5: finding: expected the id of a finding, got 'rash'"),
        ("edges.csv", EDGE, "5: disease,finding: expected one that edges.csv:2 does not have, got 'flu → fever'"),
        ("edges.csv", EDGE | {"disease": "contact"}, "5: disease: expected the id of a disease, got 'contact'"),
        ("risk_edges.csv", RISK_EDGE | {"strength": "0"}, f"3: strength: {NUMBER}, got '0'"),
        (
            "risk_edges.csv",
            RISK_EDGE | {"basis": "guessed"},
            "3: basis: expected reported or estimated, got 'guessed'",
        ),
        ("synonyms.csv", {"id": "cough", "synonym": "发烧"}, "4: synonym: expected one that synonyms.csv:2 does not"),
        ("synonyms.csv", {"id": "flu", "synonym": "流行性感冒"}, "4: id: expected the id of a finding or a risk"),
        ("red_flags.csv", {"id": "other", "findings": "fever+rash"}, "3: findings: expected ids of findings or risks"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_field(tmp_path, file, row, message):
    with pytest.raises(ValueError) as caught:
        Network.load(write_network(tmp_path / "net", GOOD | {file: [*GOOD[file], row]}))
    assert message in str(caught.value)
    assert "1 problem in the network" in str(caught.value)


def test_all_problems_come_at_once_the_first_twenty_shown(tmp_path):
    rows = [{"id": f"f{number}", "leak": "2"} for number in range(25)]
    with pytest.raises(ValueError, match="25 problems in the network") as caught:
        Network.load(write_network(tmp_path / "net", GOOD | {"findings.csv": [*GOOD["findings.csv"], *rows]}))
    lines = str(caught.value).splitlines()
    assert len(lines) == 22 and lines[-1].strip() == "… and 5 more"


def test_missing_folders_files_and_columns_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"diseases\.csv"):
        Network.load(tmp_path / "nowhere")
    folder = write_network(tmp_path / "net", GOOD)
    (folder / "edges.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"edges\.csv missing"):
        Network.load(folder)
    (folder / "edges.csv").write_text("disease,finding,weight\nflu,fever,0.3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"edges\.csv:1: header: expected disease,finding,strength,basis,source"):
        Network.load(folder)
    (folder / "edges.csv").write_bytes("disease,finding,strength,basis,source\n流感".encode("gb18030"))
    with pytest.raises(ValueError, match=r"edges\.csv:1: encoding: expected UTF-8"):
        Network.load(folder)


def test_sampled_patients_have_the_frequencies_of_the_network():
    network = random_network(0, 3, 4, 5)
    drawn = network.sample(200_000, seed=1)
    risks, diseases, findings = drawn.risks, drawn.diseases, drawn.findings
    for row, node in enumerate(network.risks):
        assert risks[:, row].mean() == pytest.approx(node.base, abs=0.005)
    state = risks[0]
    same = (risks == state).all(axis=1)
    off = [
        (1 - node.base) * np.prod(1 - network.risk_strength[state, row]) for row, node in enumerate(network.diseases)
    ]
    assert diseases[same].mean(axis=0) == pytest.approx(1 - np.array(off), abs=0.01)
    healthy = ~diseases.any(axis=1)
    assert findings[healthy].mean(axis=0) == pytest.approx([node.base for node in network.findings], abs=0.01)
    assert not drawn.caused[healthy].any() and (findings | ~drawn.caused.any(axis=1)).all()
    ill = diseases[:, 3]
    assert drawn.caused[ill, 3].mean(axis=0) == pytest.approx(network.strength[3], abs=0.02)


def test_the_shipped_network_is_as_large_as_promised_and_names_its_sources(root):
    network = Network.load(root / "data" / "causal")
    assert len(network.diseases) >= 40 and len(network.findings) >= 120 and len(network.risks) >= 20
    assert network.strength.any(axis=1).all(), "a disease without a finding can never be inferred"
    assert network.red_flags and len(network.synonyms) > 100
