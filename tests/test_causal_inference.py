"""Posteriors, counterfactuals and interventions against sums over all states, sampled twins and pgmpy."""

import functools
import itertools

import numpy as np
import pytest
from causal_networks import States, random_evidence, random_network

from medical_qwen.causal import Evidence, Network, Node, gains, infer, predict
from medical_qwen.causal import inference as causal_inference

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of pgmpy, about its own modules


def test_posteriors_and_counterfactuals_equal_the_sum_over_all_states_on_200_networks():
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    for seed in range(200):
        random = np.random.default_rng(seed)
        network = random_network(seed, *random.integers((0, 1, 1), (5, 13, 13)), density=random.uniform(0.1, 1))
        evidence = random_evidence(network, seed, interventions=0 if len(network.nodes) < 4 else seed % 3)
        found, states = infer(network, evidence), States(network, evidence)
        vanish, stay = states.counterfactuals()
        for got, wanted in (
            (found.diseases, states.mean(states.diseases)),
            (found.risks, states.mean(states.risks)),
            (found.disablement, vanish),
            (found.sufficiency, stay),
            (found.log_evidence, np.log(states.weight.sum())),
        ):
            close(got, wanted)
        unknown = [node.id for node in network.findings if evidence.known(node.id) is None]
        absent = [states.mean(states.off(network.index[node])) for node in unknown]
        close(predict(network, evidence, unknown), 1 - np.array(absent))


def test_many_rare_positive_findings_lose_no_digits():
    """16 findings with a probability of 1e-41 together, where an alternating sum over subsets has no digit left."""
    network = random_network(3, 2, 10, 16, density=0.9)
    network = Network(
        network.risks,
        network.diseases,
        tuple(Node(node.id, node.kind, node.zh, node.en, 1e-4) for node in network.findings),
        network.risk_strength,
        network.strength * 1e-3,
    )
    evidence = Evidence(frozenset(node.id for node in network.findings))
    found, states = infer(network, evidence), States(network, evidence)
    assert found.log_evidence < -90
    assert found.diseases == pytest.approx(states.mean(states.diseases), rel=1e-9)
    assert found.disablement == pytest.approx(states.counterfactuals()[0], rel=1e-9)


def twin(network: Network, risks, leak_d, risk_arrows, leak_f, arrows, forced_off=()):
    """Diseases (…, D) and findings (…, F) that the coins (…, shapes of the network) bring about, by definition."""
    diseases = leak_d | (risk_arrows & risks[..., None]).any(axis=-2)
    diseases = diseases & ~np.isin(np.arange(diseases.shape[-1]), list(forced_off))
    return diseases, leak_f | (arrows & diseases[..., None]).any(axis=-2)


def coins_of(network: Network):
    """Probabilities of the coins: risks, leaks of diseases, arrows, leaks of findings, arrows."""
    bases = [np.array([node.base for node in nodes]) for nodes in (network.risks, network.diseases, network.findings)]
    return bases[0], bases[1], network.risk_strength, bases[2], network.strength


def counterfactuals_of(network, coins, weight, evidence):
    """Means over the coins that agree with the evidence: per disease the findings that vanish and those that stay."""
    findings = twin(network, *coins)[1]
    fits = np.ones(len(weight), dtype=bool)
    for row, node in enumerate(network.findings):
        if evidence.known(node.id) is not None:
            fits &= findings[:, row] == evidence.known(node.id)
    present = [row for row, node in enumerate(network.findings) if node.id in evidence.present]
    coins, weight = [coin[fits] for coin in coins], weight[fits]
    risks, leak_d, risk_arrows, leak_f, arrows = coins
    result = []
    for disease in range(len(network.diseases)):
        without = twin(network, *coins, forced_off=[disease])[1]
        others = [row for row in range(len(network.diseases)) if row != disease]
        alone = twin(network, risks, leak_d, risk_arrows, np.zeros_like(leak_f), arrows, forced_off=others)[1]
        counts = np.stack([(~without[:, present]).sum(axis=1), alone[:, present].sum(axis=1)])
        mean = (counts * weight).sum(axis=1) / weight.sum()
        spread = np.sqrt(((counts - mean[:, None]) ** 2 * weight).sum(axis=1) / weight.sum() / len(weight))
        result.append((mean, spread))
    return result


@pytest.mark.parametrize("seed", range(6))
def test_counterfactuals_equal_the_enumerated_twin_network(seed):
    """Every coin of the structural model thrown both ways: 2^(coins) patients, each compared with their twin."""
    network = random_network(seed, 1, 2, 3, density=1)
    probabilities = np.concatenate([np.ravel(part) for part in coins_of(network)])
    throws = np.array(list(itertools.product((False, True), repeat=len(probabilities))))
    weight = np.prod(np.where(throws, probabilities, 1 - probabilities), axis=1)
    parts, start = [], 0
    for part in coins_of(network):
        parts.append(throws[:, start : start + part.size].reshape(-1, *part.shape))
        start += part.size
    evidence = Evidence(frozenset(("f0", "f1")), frozenset(("f2",)) if seed % 2 else frozenset())
    found = infer(network, evidence)
    for disease, (mean, _) in enumerate(counterfactuals_of(network, parts, weight, evidence)):
        assert found.disablement[disease] == pytest.approx(mean[0], abs=1e-12)
        assert found.sufficiency[disease] == pytest.approx(mean[1], abs=1e-12)


def test_counterfactuals_equal_monte_carlo_on_sampled_coins():
    network = random_network(11, 3, 6, 6, density=0.6)
    random = np.random.default_rng(0)
    coins = [random.random((300_000, *part.shape)) < part for part in coins_of(network)]
    evidence = Evidence(frozenset(("f0", "f3")), frozenset(("f1",)))
    found = infer(network, evidence)
    distances = []  # in standard errors
    for disease, (mean, error) in enumerate(counterfactuals_of(network, coins, np.ones(300_000), evidence)):
        exact = np.array([found.disablement[disease], found.sufficiency[disease]])
        distances.append(np.abs(exact - mean) / np.maximum(error, 1e-4))
    disablement, sufficiency = np.array(distances).T
    assert disablement.max() < 2
    assert sufficiency.max() < 3 and (sufficiency > 2).sum() <= 1  # of six, one in twenty lies beyond 2


def confounded() -> Network:
    """Smoking causes two diseases; each has a finding of its own."""
    return Network(
        (Node("smoking", "risk", "吸烟", "smoking", 0.3),),
        (Node("copd", "disease", "慢阻肺", "COPD", 0.01), Node("chd", "disease", "冠心病", "CHD", 0.02)),
        (
            Node("cough", "symptom", "咳嗽", "cough", 0.05),
            Node("chest_pain", "symptom", "胸痛", "chest pain", 0.02),
        ),
        np.array([[0.2, 0.15]]),
        np.array([[0.8, 0.0], [0.0, 0.6]]),
    )


def as_pgmpy(network: Network):
    """The same network with its tables written out."""
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.models import DiscreteBayesianNetwork

    layers = (network.risks, network.diseases, network.findings)
    model = DiscreteBayesianNetwork()
    model.add_nodes_from(network.nodes)
    tables = [TabularCPD(node.id, 2, [[1 - node.base], [node.base]]) for node in network.risks]
    for tails, heads, strength in zip(layers, layers[1:], (network.risk_strength, network.strength), strict=False):
        for column, node in enumerate(heads):
            causes = [row for row in range(len(tails)) if strength[row, column]]
            model.add_edges_from((tails[row].id, node.id) for row in causes)
            states = itertools.product((0, 1), repeat=len(causes))
            off = [(1 - node.base) * np.prod((1 - strength[causes, column]) ** np.array(state)) for state in states]
            names = [tails[row].id for row in causes]
            tables.append(TabularCPD(node.id, 2, [off, [1 - p for p in off]], names, [2] * len(causes)))
    model.add_cpds(*tables)
    assert model.check_model()
    return model


def ask_pgmpy(model, evidence: Evidence, node: str) -> float:
    """P(node | evidence) after the interventions: arrows into a set node are cut, then its value is conditioned on."""
    from pgmpy.inference import VariableElimination

    cut = model.do(list(evidence.do)) if evidence.do else model
    known = {name: int(bool(evidence.known(name))) for name in {*evidence.present, *evidence.absent, *evidence.do}}
    return float(VariableElimination(cut).query([node], known, show_progress=False).values[1])


def test_interventions_differ_from_conditioning_where_they_must_and_equal_pgmpy():
    network, model = confounded(), as_pgmpy(confounded())
    seen, done = Evidence(frozenset(("copd",))), Evidence(do={"copd": True})
    assert infer(network, seen).diseases[1] > 1.5 * infer(network, Evidence()).diseases[1]  # through smoking
    assert infer(network, done).diseases[1] == pytest.approx(infer(network, Evidence()).diseases[1], abs=1e-12)
    # treating COPD says nothing about smoking; finding it absent does
    assert infer(network, Evidence(do={"copd": False})).risks[0] == pytest.approx(0.3)
    assert infer(network, Evidence(absent=frozenset(("copd",)))).risks[0] < 0.29
    # suppressing the cough tells nothing about its cause; a cough that is not there does
    assert infer(network, Evidence(do={"cough": False})).diseases[0] == pytest.approx(
        infer(network, Evidence()).diseases[0]
    )
    for evidence in (
        seen, done, Evidence(do={"copd": False}), Evidence(frozenset(("cough",)), do={"smoking": False}),
        Evidence(frozenset(("chest_pain",)), frozenset(("cough",)), {"copd": True}),
        Evidence(frozenset(("chest_pain",)), do={"cough": True}),
    ):  # fmt: skip
        found = infer(network, evidence)
        for probability, node in zip((*found.diseases, *found.risks), ("copd", "chd", "smoking"), strict=True):
            if evidence.known(node) is None:
                assert probability == pytest.approx(ask_pgmpy(model, evidence, node), abs=1e-9), (evidence, node)
        for node in ("cough", "chest_pain"):
            if evidence.known(node) is None:
                assert predict(network, evidence, [node])[0] == pytest.approx(
                    ask_pgmpy(model, evidence, node), abs=1e-9
                )


def test_larger_networks_with_interventions_equal_pgmpy():
    for seed in range(3):
        network = random_network(seed, 3, 5, 6)
        evidence = random_evidence(network, seed, interventions=2)
        model, found = as_pgmpy(network), infer(network, evidence)
        for row, node in enumerate(network.diseases):
            if evidence.known(node.id) is None:
                assert found.diseases[row] == pytest.approx(ask_pgmpy(model, evidence, node.id), abs=1e-9)


def test_gains_are_the_mutual_informations_with_the_causes_of_the_present_findings():
    for seed in range(10):
        network = random_network(seed, 3, 6, 8)
        evidence = random_evidence(network, seed)
        states = States(network, evidence)
        candidates = [
            node.id for node in (*network.findings, *network.risks) if evidence.known(node.id) is None
        ]  # fmt: skip
        found = gains(network, evidence, candidates)
        assert sorted(gain.id for gain in found) == sorted(candidates)
        assert [gain.bits for gain in found] == sorted((gain.bits for gain in found), reverse=True)
        for gain in found:
            row = network.index[gain.id]
            yes = states.risks[:, row] if gain.id.startswith("r") else 1 - states.off(row)
            expected = 0.0
            rows = [network.index[name] for name in evidence.present if name.startswith("f")]
            causes = network.strength[:, rows].any(axis=1)
            for disease in states.diseases.T[causes if causes.any() else slice(None)]:
                joint = np.array([[states.mean(d * a) for a in (yes, 1 - yes)] for d in (disease, 1 - disease)])
                independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
                terms = np.where(joint > 1e-15, joint * np.log2(np.maximum(joint, 1e-300) / independent), 0)
                expected += terms.sum()
            assert gain.bits == pytest.approx(expected, abs=1e-9)
            assert gain.present == pytest.approx(states.mean(yes), abs=1e-9)


def test_beyond_the_limit_the_vaguest_findings_are_left_out_and_named(monkeypatch):
    network = random_network(1, 4, 12, 12, density=0.8)
    evidence = Evidence(frozenset(node.id for node in network.findings))
    monkeypatch.setattr(causal_inference, "WORK", 20_000)
    found = infer(network, evidence)
    assert found.left_out and set(found.left_out) | set(found.present) == evidence.present
    causes = {node.id: np.count_nonzero(network.strength[:, row]) for row, node in enumerate(network.findings)}
    assert min(causes[node] for node in found.left_out) >= max(causes[node] for node in found.present)
    exact = infer(network, Evidence(frozenset(found.present)))
    assert found.diseases == pytest.approx(exact.diseases, abs=1e-12)
    monkeypatch.setattr(causal_inference, "WORK", 100)
    with pytest.raises(ValueError, match="4 unknown risks couple the diseases"):
        infer(network, evidence)


def test_memory_is_bounded_by_judging_few_worlds_at_once(monkeypatch):
    network = random_network(2, 3, 8, 8)
    evidence = random_evidence(network, 2)
    whole = infer(network, evidence)
    monkeypatch.setattr(causal_inference, "KEPT", 1)
    parts = infer(network, evidence)
    assert parts.disablement == pytest.approx(whole.disablement, rel=1e-12)


def test_wrong_evidence_is_refused():
    network = confounded()
    with pytest.raises(ValueError, match="ids of the network, got fever"):
        infer(network, Evidence(frozenset(("fever",))))
    with pytest.raises(ValueError, match="one state each, got two for cough"):
        infer(network, Evidence(frozenset(("cough",)), frozenset(("cough",))))
    with pytest.raises(ValueError, match="unknown findings or risks, got cough"):
        gains(network, Evidence(frozenset(("cough",))), ["cough"])
