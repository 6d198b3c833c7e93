"""The panel beside a talk: bars of the posteriors turn by turn, the active part of the causal graph, the reasons.

Strings of SVG and HTML, escaped, with no script and nothing loaded from elsewhere; a page puts them where it likes.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from html import escape

import numpy as np

from .network import Network, Node
from .stream import CausalStream, State
from .words import EXPECTED, in_words, ranking

TURNS = 4  # in the bar chart, the newest strongest
MOST = 12  # boxes in a column of the graph
FONT = "system-ui, 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"
INK, FAINT, GRID, CARD, PALE = "#1f2937", "#6b7280", "#e5e7eb", "#ffffff", "#f9fafb"
SHADES = ("#dbeafe", "#bfdbfe", "#93c5fd", "#2563eb")  # older turns to the newest
PRESENT, ABSENT, ASKED, DISEASE = "#0f766e", "#9ca3af", "#b45309", "#2563eb"
WORDS = {
    "zh": {"bars": "各轮之后的概率", "graph": "因果图（有关的部分）", "turn": "第{}轮", "risk": "风险因素",
           "disease": "可能的原因", "finding": "表现", "empty": "还没有可显示的内容"},
    "en": {"bars": "Probability after each turn", "graph": "Causal graph, active part", "turn": "turn {}",
           "risk": "Risk factors", "disease": "Possible causes", "finding": "Findings",
           "empty": "Nothing to show yet"},
}  # fmt: skip


def panel(stream: CausalStream, language: str | None = None) -> str:
    """HTML: urgent notices first, then both pictures and the reasons in words. Empty before the first turn.

    `language`, zh or en: that of the stream unless it is given.
    """
    if stream.state is None:
        return ""
    network, language = stream.network, language or stream.language
    urgent = [flag.message(language) for flag in stream.state.urgent]
    reasons = in_words(network, stream.state, language)[len(urgent) :]
    red = "margin:0 0 8px;padding:8px 12px;border-radius:8px;background:#fee2e2;color:#991b1b;font-weight:600"
    parts = [_tag("p", escape(f"⚠ {message}"), role="alert", style=red) for message in urgent]
    parts += [bar_chart(network, stream.states, language), causal_graph(network, stream.state, language)]
    parts += [_tag("p", escape(line), style="margin:2px 0") for line in reasons]
    return _tag("div", "".join(parts), class_="causal-panel")


def bar_chart(network: Network, states: Sequence[State], language: str) -> str:
    """SVG: a bar per turn (the last four) for each of the likeliest causes of the newest state."""
    words, shown = WORDS[language], list(states)[-TURNS:]
    rows = ranking(shown[-1]) if shown else []
    if not rows:
        return _svg(560, 64, words["bars"], [_text(24, 52, words["empty"], 13, FAINT)])
    shades = SHADES[-len(shown) :]
    thick, left, span, top, parts = 7, 208, 290, 66, []
    high = thick * len(shown)
    bottom = top + (high + 18) * len(rows)
    for place, shade in enumerate(shades):
        number = len(states) - len(shown) + 1 + place
        parts.append(_tag("rect", x=left + place * 78, y=38, width=10, height=10, rx=2, fill=shade))
        parts.append(_text(left + place * 78 + 15, 47, words["turn"].format(number), 11, FAINT))
    for tick in range(0, 101, 25):
        x = left + span * tick / 100
        parts.append(_tag("line", x1=x, y1=top - 6, x2=x, y2=bottom - 8, stroke=GRID))
        parts.append(_text(x, bottom + 8, f"{tick}%", 10, FAINT, anchor="middle"))
    for place, row in enumerate(rows):
        y = top + place * (high + 18)
        name = _cut(network.diseases[row].name(language), 188, 13)
        parts.append(_text(left - 10, y + high / 2 + 4, name, 13, INK, anchor="end"))
        for turn, (state, shade) in enumerate(zip(shown, shades, strict=True)):
            width = max(1.0, span * float(state.posterior.diseases[row]))
            parts.append(_tag("rect", x=left, y=y + turn * thick, width=width, height=thick - 1, rx=2, fill=shade))
        now = float(shown[-1].posterior.diseases[row])
        parts.append(_text(left + span * now + 8, y + high - 1, f"{now:.0%}", 12, INK))
    return _svg(560, bottom + 20, words["bars"], parts)


def causal_graph(network: Network, state: State, language: str) -> str:
    """SVG: known risks, likeliest causes, what is present, what is missing though expected, and the next question."""
    words, rows = WORDS[language], ranking(state)
    if not rows:
        return _svg(680, 64, words["graph"], [_text(24, 52, words["empty"], 13, FAINT)])
    columns = (
        _shown(network.risks, state, network.risk_strength[:, rows].max(axis=1), 0),
        [network.diseases[row] for row in rows],
        _shown(network.findings, state, network.strength[rows].max(axis=0), EXPECTED),
    )
    height = 74 + 40 * max(len(column) for column in columns)
    places: dict[str, tuple[float, float]] = {}
    headings, boxes = [], []
    for x, label, column in zip((24, 252, 480), ("risk", "disease", "finding"), columns, strict=True):
        headings.append(_text(x, 54, words[label], 12, FAINT))
        gap = (height - 74) / max(1, len(column))
        for place, node in enumerate(column):
            places[node.id] = x, 66 + gap * (place + 0.5) - 16
            boxes.append(_box(network, state, node, *places[node.id], language))
    stay = dict(zip(state.posterior.present, state.posterior.stay.T, strict=True))
    arrows = [
        *_arrows(network.risk_strength, network, columns[:2], places, state, {}),
        *_arrows(network.strength, network, columns[1:], places, state, stay),
    ]
    return _svg(680, height, words["graph"], [*headings, *arrows, *boxes])


def _shown(nodes: Iterable[Node], state: State, pull: np.ndarray, expected: float) -> list[Node]:
    """What is present or asked next, and what is absent though a shown cause (`pull`) brings it about so often."""
    present, absent = state.evidence.present, state.evidence.absent
    kept = []
    for node, strength in zip(nodes, pull, strict=True):
        linked = strength > 0 or node.kind != "risk"
        missing = node.id in absent and strength > 0 and strength >= expected
        asked = state.question is not None and node.id == state.question.id
        if (node.id in present and linked) or missing or asked:
            kept.append((node.id not in present, -float(strength), node))
    return [node for _, _, node in sorted(kept, key=lambda one: one[:2])[:MOST]]


def _arrows(
    strength: np.ndarray, network: Network, columns: Sequence[list[Node]], places: dict, state: State, stay: dict
) -> Iterator[str]:
    """Every arrow between two boxes. One into a present finding is as thick as its cause alone would keep that up
    (`stay`), one from a present risk is thin; one from or to what is not present is dashed."""
    for tail in columns[0]:
        for head in columns[1]:
            row = network.index[tail.id]
            if strength[row, network.index[head.id]]:
                (x1, y1), (x2, y2) = ((x, y + 15) for x, y in (places[tail.id], places[head.id]))
                active = (tail if tail.kind == "risk" else head).id in state.evidence.present
                share = float(stay[head.id][row]) if head.id in stay else 0.0
                yield _tag(
                    "path",
                    d=f"M{x1 + 176:g} {y1:g} C{x1 + 206:g} {y1:g} {x2 - 30:g} {y2:g} {x2:g} {y2:g}",
                    fill="none",
                    stroke=PRESENT if active else ABSENT,
                    stroke_opacity=0.4 + 0.5 * share,
                    stroke_width=1 + 5 * share,
                    stroke_dasharray="none" if active else "4 4",
                )


def _box(network: Network, state: State, node: Node, x: float, y: float, language: str) -> str:
    """A node: a disease filled as far as it is likely; findings green if present, struck out if absent."""
    label, line, fill, ink, style, level = node.name(language), ABSENT, PALE, INK, {}, 0.0
    if node.kind == "disease":
        level = float(state.posterior.diseases[network.index[node.id]])
        label, line, fill = f"{_cut(label, 118, 13)} {level:.0%}", DISEASE, CARD
    elif node.id in state.evidence.present:
        line, fill, ink = PRESENT, "#ccfbf1", "#134e4a"
    elif node.id in state.evidence.absent:
        ink, style = FAINT, {"text_decoration": "line-through"}
    else:
        label, line, fill = f"? {label}", ASKED, "#fffbeb"
    place = {"x": x, "y": y, "height": 30, "rx": 8}
    parts = [_tag("rect", width=176, fill=fill, **place)]
    parts += [_tag("rect", width=176 * level, fill=SHADES[0], **place)] if level else []
    parts.append(_tag("rect", width=176, fill="none", stroke=line, stroke_width=1.4, **place))
    return "".join(parts) + _text(x + 88, y + 20, _cut(label, 164, 13), 13, ink, anchor="middle", **style)


def _cut(text: str, room: float, size: float) -> str:
    """As much of the text as has room in pixels: a CJK character is a square, another some 0.62 of it."""
    widths = np.cumsum([size * (1 if unicodedata.east_asian_width(char) in "WFA" else 0.56) for char in text])
    if not len(text) or widths[-1] <= room:
        return text
    return text[: int(np.searchsorted(widths, room - size, side="right"))] + "…"


def _tag(name: str, content: str = "", **attributes: object) -> str:
    """An element; `content` is markup. An underscore in an attribute stands for a hyphen, one at its end for none."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{value:.4g}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{given}>{content}</{name}>"


def _text(x: float, y: float, text: str, size: int, fill: str, anchor: str = "start", **style: str) -> str:
    return _tag("text", escape(text), x=float(x), y=float(y), font_size=size, fill=fill, text_anchor=anchor, **style)


def _svg(width: int, height: float, title: str, parts: Sequence[str]) -> str:
    card = _tag("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=12, fill=CARD, stroke=GRID)
    heading = _text(16, 26, title, 14, INK, font_weight="600")
    return _tag(
        "svg",
        _tag("title", escape(title)) + card + heading + "".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height:g}",
        width=width,
        height=f"{height:g}",
        style="max-width:100%;height:auto",
        role="img",
        font_family=FONT,
    )
