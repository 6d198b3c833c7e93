"""A state in words, Chinese or English: for the panel, the terminal and the prompt of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from .network import Network

if TYPE_CHECKING:
    from .stream import State

SHOWN = 5  # causes
LIKELY = 0.02  # a cause below this probability that explains nothing is not shown
PART = 0.2  # a finding is named as explained when it would stay with this cause alone so often
EXPECTED = 0.3  # a missing finding speaks against a cause that brings it about so often

NOTICE = {
    "zh": "以上是因果网络的概率推算，不是诊断，不能代替医生。",
    "en": "This is what a causal network computes. It is not a diagnosis and replaces no doctor.",
}
LABELS = {
    "zh": {
        "urgent": "紧急", "present": "有", "absent": "没有", "unsure": "不清楚", "causes": "可能的原因",
        "ask": "接着问", "test": "最有用的检查", "unread": "没有读懂", "left_out": "没有计入（可能的原因太多）",
        "none": "还没有听到网络里的表现。", "relative": "说的是家人或别人：以下按那个人推算。",
        "scope": "网络只有 {} 种病，其他的病算不出来。",
        "explains": "可解释", "against": "但没有", "risk": "风险因素", "sep": "、", "end": "；", "years": "{:.0f}年",
        "months": "{:.0f}个月", "days": "{:g}天",
        "mild": "轻", "moderate": "中", "severe": "重", "gone": "若没有它，预计少 {:.2f} 个表现", "colon": "：",
    },
    "en": {
        "urgent": "Urgent", "present": "present", "absent": "absent", "unsure": "not known",
        "causes": "possible causes", "ask": "ask next", "test": "most telling test", "unread": "not understood",
        "left_out": "left out (too many possible causes)", "none": "No finding of the network has been heard yet.",
        "relative": "This is about a relative or somebody else: what follows is worked out for them.",
        "scope": "The network knows {} diseases; it cannot name any other.",
        "explains": "explains", "against": "but absent", "risk": "risk factors", "sep": ", ", "end": "; ",
        "years": "{:.0f} years", "months": "{:.0f} months", "days": "{:g} days",
        "mild": "mild", "moderate": "moderate", "severe": "severe",
        "gone": "without it, {:.2f} fewer findings expected", "colon": ": ",
    },
}  # fmt: skip


def ranking(state: State) -> list[int]:
    """Rows of the diseases that are worth showing: by expected disablement, then by posterior."""
    found = state.posterior
    order = np.lexsort((-found.diseases, -found.disablement.round(6)))
    return [int(row) for row in order if found.diseases[row] >= LIKELY or found.disablement[row] >= LIKELY][:SHOWN]


def cause(network: Network, state: State, row: int, language: str) -> str:
    """One disease: how likely, what it explains, what speaks for and against it."""
    found, word, strength = state.posterior, LABELS[language], network.strength
    explained = sorted(
        (share, node) for share, node in zip(found.stay[row], found.present, strict=True) if share >= PART
    )
    missing = [node for node in state.evidence.absent if node in _findings(network)
               and strength[row, network.index[node]] >= EXPECTED]  # fmt: skip
    risks = [node.id for node, pull in zip(network.risks, network.risk_strength[:, row], strict=True)
             if pull and node.id in state.evidence.present]  # fmt: skip
    parts = [f"{network.diseases[row].name(language)} {found.diseases[row]:.0%}"]
    parts += [word["gone"].format(found.disablement[row])] if found.disablement[row] >= 0.005 else []
    for label, ids in (("explains", [node for _, node in reversed(explained)]), ("against", missing), ("risk", risks)):
        parts += [f"{word[label]}{word['colon']}{_names(network, ids, language)}"] if ids else []
    return word["end"].join(parts)


def in_words(network: Network, state: State, language: str) -> list[str]:
    """Lines: urgent notices, what was understood, ranked causes, the next question, the limits, the notice."""
    word, found = LABELS[language], state.posterior
    colon = word["colon"]
    lines = [f"{word['urgent']}{colon}{flag.message(language)}" for flag in state.urgent]
    lines += [word["relative"]] if state.subject == "relative" else []
    for label, ids in (("present", state.evidence.present), ("absent", state.evidence.absent),
                       ("unsure", state.unsure)):  # fmt: skip
        known = [node for node in network.nodes if node in ids]
        if known:
            lines.append(f"{word[label]}{colon}{word['sep'].join(_told(network, state, n, language) for n in known)}")
    if not found.present:
        lines.append(word["none"])
    else:
        lines.append(f"{word['causes']}{colon}")
        lines += [f"{place}. {cause(network, state, row, language)}" for place, row in enumerate(ranking(state), 1)]
    if state.question:
        lines.append(f"{word['ask']}{colon}{network.nodes[state.question.id].question(language)}")
    if state.examination and found.present:
        lines.append(f"{word['test']}{colon}{network.nodes[state.examination.id].name(language)}")
    if found.left_out:
        lines.append(f"{word['left_out']}{colon}{_names(network, found.left_out, language)}")
    if state.unread:
        lines.append(f"{word['unread']}{colon}{word['sep'].join(state.unread)}")
    return [*lines, word["scope"].format(len(network.diseases)), NOTICE[language]]


def _findings(network: Network) -> set[str]:
    return {node.id for node in network.findings}


def _names(network: Network, ids: Iterable[str], language: str) -> str:
    return LABELS[language]["sep"].join(network.nodes[node].name(language) for node in ids)


def _told(network: Network, state: State, node: str, language: str) -> str:
    """A finding with its duration and severity."""
    word, mention = LABELS[language], state.details[node]
    details = []
    if days := mention.duration:
        unit, length = ("years", 365) if days >= 700 else ("months", 30.4) if days >= 60 else ("days", 1)
        details.append(word[unit].format(days / length))
    details += [word[mention.severity]] if mention.severity and mention.state == "present" else []
    name = network.nodes[node].name(language)
    return f"{name} ({word['sep'].join(details)})" if details else name
