"""The stream of a talk on a small network: what is heard, concluded, asked, warned of and shown."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from causal_networks import write_network

import inference
from medical_qwen.causal import CausalStream, Evidence, Network, in_words, infer
from medical_qwen.causal.panel import bar_chart, causal_graph, panel
from medical_qwen.evidence import asked
from medical_qwen.generation import Answer, Sampling, terminal

TABLES = {
    "diseases.csv": [
        {"id": "pneumonia", "name_zh": "肺炎", "name_en": "pneumonia", "prior": "0.01"},
        {"id": "infarction", "name_zh": "心肌梗死", "name_en": "heart attack", "prior": "0.005"},
        {"id": "cold", "name_zh": "普通感冒", "name_en": "common cold", "prior": "0.05"},
    ],
    "risks.csv": [{"id": "smoking", "name_zh": "吸烟", "name_en": "smoking", "prior": "0.25"}],
    "findings.csv": [
        {"id": "fever", "name_zh": "发热", "name_en": "fever", "leak": "0.01", "question_zh": "发烧吗？"},
        {"id": "cough", "name_zh": "咳嗽", "name_en": "cough", "leak": "0.03", "question_zh": "咳嗽吗？"},
        {"id": "chest_pain", "name_zh": "胸痛", "name_en": "chest pain", "question_zh": "胸口疼吗？"},
        {"id": "sweating", "name_zh": "出汗", "name_en": "sweating", "question_zh": "出冷汗吗？"},
        {"id": "runny_nose", "name_zh": "流鼻涕", "name_en": "runny nose", "question_zh": "流鼻涕吗？"},
        {"id": "shadow", "name_zh": "胸片有阴影", "name_en": "shadow on the X-ray", "kind": "test", "leak": "0.001"},
    ],
    "risk_edges.csv": [
        {"risk": "smoking", "disease": "pneumonia", "strength": "0.01"},
        {"risk": "smoking", "disease": "infarction", "strength": "0.02"},
    ],
    "edges.csv": [
        {"disease": disease, "finding": finding, "strength": strength}
        for disease, finding, strength in (
            ("pneumonia", "fever", "0.8"), ("pneumonia", "cough", "0.9"), ("pneumonia", "chest_pain", "0.3"),
            ("pneumonia", "shadow", "0.95"), ("infarction", "chest_pain", "0.9"), ("infarction", "sweating", "0.6"),
            ("cold", "cough", "0.6"), ("cold", "runny_nose", "0.8"), ("cold", "fever", "0.2"),
        )
    ],
    "synonyms.csv": [{"id": "fever", "synonym": "发烧"}, {"id": "smoking", "synonym": "抽烟"},
                     {"id": "chest_pain", "synonym": "胸口疼"}],
    "red_flags.csv": [{"id": "heart", "findings": "chest_pain+sweating", "message_zh": "胸痛伴出汗：立即拨打120",
                       "message_en": "Chest pain with sweating: call an ambulance now"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Network:
    return Network.load(write_network(tmp_path_factory.mktemp("net"), TABLES))


def test_what_is_heard_becomes_evidence_and_later_statements_override(network):
    stream = CausalStream(network)
    stream.hear("我发烧三天了，还咳嗽。不流鼻涕。")
    assert stream.state.evidence == Evidence(frozenset(("fever", "cough")), frozenset(("runny_nose",)))
    assert stream.state.posterior.diseases == pytest.approx(infer(network, stream.state.evidence).diseases)
    assert stream.state.details["fever"].duration == 3
    stream.hear("说错了，没有咳嗽。")
    assert stream.state.evidence == Evidence(frozenset(("fever",)), frozenset(("cough", "runny_nose")))
    assert len(stream.states) == 2


def test_what_a_relative_has_is_not_the_patients(network):
    stream = CausalStream(network)
    stream.hear("我爸爸胸痛，我自己咳嗽。")
    assert stream.state.subject == "patient"
    assert stream.state.evidence == Evidence(frozenset(("cough",)))
    assert [(one.id, one.who) for one in stream.state.heard] == [("chest_pain", "relative"), ("cough", "patient")]
    stream.hear("他还发烧。")
    assert stream.state.evidence == Evidence(frozenset(("cough",)))


def test_who_speaks_of_a_relative_alone_asks_for_them(network):
    stream = CausalStream(network)
    stream.hear("你好，我想替孩子问问。")
    stream.hear("孩子咳嗽，不流鼻涕。")
    assert stream.state.subject == "relative"
    assert stream.state.evidence == Evidence(frozenset(("cough",)), frozenset(("runny_nose",)))
    assert stream.evidence().startswith("说的是家人或别人：以下按那个人推算。")
    stream.hear("还胸痛。我自己抽烟，也发烧。")
    assert stream.state.evidence.present == {"cough", "chest_pain"}
    risks_alone = CausalStream(network)
    risks_alone.hear("我爸抽烟。")
    assert risks_alone.state.subject == "patient" and risks_alone.state.evidence == Evidence()


@pytest.mark.parametrize("size", [1, 3, 7])
def test_text_in_pieces_gives_the_state_of_the_whole_text(network, size):
    text = "我抽烟。最近发烧，胸口疼！没有流鼻涕。"
    whole, pieces = CausalStream(network), CausalStream(network)
    whole.hear(text)
    seen = [pieces.hear(text[start : start + size], done=False) for start in range(0, len(text), size)]
    pieces.hear("")
    assert (seen[0] is None) == (size < len("我抽烟。"))
    assert any(state and state.evidence.present == {"smoking"} for state in seen)  # before the text has ended
    assert pieces.state.evidence == whole.state.evidence
    assert len(pieces.states) == 1
    pieces.hear("咳嗽。")
    assert len(pieces.states) == 2 and "cough" in pieces.state.evidence.present


@pytest.mark.parametrize(
    ("answer", "state"),
    [("有", "present"), ("没有。", "absent"), ("不知道", "unknown"), ("嗯，是的", "present"), ("no", "absent")],
)
def test_a_bare_answer_is_taken_for_what_was_asked(network, answer, state):
    stream = CausalStream(network)
    stream.hear("咳嗽")
    asked = stream.state.question.id
    stream.hear(answer, answer_to=asked)
    assert stream.state.details[asked].state == state
    assert asked not in [gain.id for gain in stream.state.questions]  # not asked again, the unknown one included
    silent = CausalStream(network)
    silent.hear("咳嗽")
    silent.hear(answer)
    assert silent.state.evidence == Evidence(frozenset(("cough",)))


def test_questions_have_to_do_with_the_complaint_and_tests_are_named_apart(network):
    stream = CausalStream(network)
    stream.hear("我咳嗽，发烧")
    kinds = {network.nodes[gain.id].kind for gain in stream.state.questions}
    assert "test" not in kinds
    assert stream.state.question.id == "runny_nose"
    assert stream.state.examination.id == "shadow"


def test_red_flags_lead_to_an_urgent_notice_that_stands_first(network):
    stream = CausalStream(network)
    stream.hear("胸痛")
    assert not stream.state.urgent
    stream.hear("还出汗")
    assert [flag.id for flag in stream.state.urgent] == ["heart"]
    assert stream.evidence().startswith("紧急：胸痛伴出汗：立即拨打120")
    stream.hear("现在不出汗了，没有出汗")
    assert not stream.state.urgent


URGENT = {  # as people say it: persons in passing, conditions, other verbs' denials, what another clause ends
    "我昨天拉黑便，今天在家里晕倒了。": "black_stool_fainting",
    "我胸口疼，一直吃阿托伐他汀，今天出了一身冷汗。": "heart_attack_sweating",
    "大姨妈推迟了十天，小肚子疼，下面出血。": "ectopic_bleeding",
    "我对不起家人，不想活了。": "self_harm",
    "要是没有我大家会更好": "self_harm",
    "如果死了就解脱了": "self_harm",
    "怀孕8周，和老公同房后下面出血，小肚子疼。": "pregnancy_bleeding",
    "我爸胸口疼，自己开车去医院，出了一身冷汗。": "heart_attack_sweating",
    "每次爬楼都会出现胸口疼，还出冷汗": "heart_attack_exertion",
    "没走几步就胸口疼，出冷汗": "heart_attack_exertion",
    "拉黑便，动不动就晕倒": "black_stool_fainting",
    "拉黑便，还没到医院就晕倒了": "black_stool_fainting",
    "吃了海鲜没多久就喘不上气，浑身起风团": "anaphylaxis_breathing",
    "不知道怎么突然左边手脚没劲": "stroke_arm",
    "不知道为什么胸口疼，还出冷汗": "heart_attack_sweating",
    "昨晚胸口疼我没注意，今天出了一身冷汗": "heart_attack_sweating",
    "早上吐了两次，现在胸口压得慌，不吐了。": "heart_attack_crushing",
    "血糖降到2.1了，人叫不醒": "low_sugar_confused",
    "发烧三天，血压降到70/40": "sepsis_pressure",
    # a wish to die among other words' denials, and behind questions
    "有没有不痛苦的自杀方法": "self_harm",
    "我不想活了不知道怎么办": "self_harm",
    "不知道该跟谁说我想自杀": "self_harm",
    "我真的受不了了想自杀": "self_harm",
    "控制不了想死的念头": "self_harm",
    "没人理解我我想死": "self_harm",
    "不敢自杀": "self_harm",
    "我喝了农药": "self_harm",
    "我刚吞了一百片安眠药": "self_harm",
    "吃了一瓶安眠药没死": "self_harm",
    "孩子误服了老鼠药": "poisoning",
    "我爸没呼吸了，没有心跳": "cardiac_arrest",
    # what is over
    "早上突然右手没劲、说话不清，现在好了": "stroke_speech",
    "孩子刚才抽了三分钟，现在停了": "seizure",
    "吐血停了": "vomiting_blood",
    "昨晚烧到39度8，吃了退烧药现在37度，脖子硬得低不下头": "fever_stiff_neck",
    # a blank for a comma, 无 and 不 and 没 inside other words
    "没发烧 胸口疼得厉害 一直冒冷汗": "heart_attack_sweating",
    "右边手脚没劲不知道怎么回事": "stroke_arm",
    "无明显诱因出现右侧肢体无力2小时": "stroke_arm",
    "拉黑便，无缘无故晕倒了": "black_stool_fainting",
    "吃了药没用胸口疼得出冷汗": "heart_attack_sweating",
    "拉黑便，没吃早饭突然晕倒了": "black_stool_fainting",
    # requests and worries
    "能不能帮我看看我胸口疼出冷汗怎么回事": "heart_attack_sweating",
    "有没有医生帮我看看我突然右手没劲说话不清": "stroke_arm",
    "我这是怎么了突然半边身子动不了": "stroke_arm",
    "我很担心我爸一直胸口疼冒冷汗": "heart_attack_sweating",
    "拉黑便，不知道是不是太累了突然晕倒在厕所": "black_stool_fainting",
    # combinations
    "停经50天，右下腹疼，下面出血": "ectopic_bleeding_right",
    "怀孕7周，右下腹剧痛": "pregnancy_pain_right",
    "停经45天，肚子剧痛，晕倒了": "ectopic_fainting_alone",
    "我妈突然叫不醒了": "unconscious",
    "身上起风团，喉咙发紧": "anaphylaxis_hives_throat",
    "起风团后血压掉到80/50": "anaphylaxis_hives_pressure",
    "血糖22，尿酮体3+": "ketoacidosis_ketones",
    "早上起来半边身子麻": "stroke_numbness",
    # the second of two values
    "血氧从98掉到86": "low_oxygen",
    "血糖从15掉到2.3": "low_sugar",
    "血压从130掉到80/50，发烧39度": "sepsis_pressure",
}
CALM = (  # other words, denials, what is long over
    "昨天在医院抽了一次血",
    "冷得起鸡皮疙瘩，喘不上气",
    "嘴偏干，老想喝水",
    "没有恶心 呕吐 胸痛",
    "没有发烧 咳嗽的症状",
    "我从来没想过自杀",
    "没有任何轻生的念头",
    "我没有自杀的想法",
    "我爸没有呼吸困难",
    "小时候抽过风，早就好了",
    "无胸痛，无大汗",
    "没有胸口疼，没有出冷汗",
    "是不是得了心梗",
    "会不会晕倒？",
)


@pytest.fixture(scope="module")
def shipped(root) -> Network:
    return Network.load(root / "data" / "causal")


@pytest.mark.parametrize(("said", "flag"), URGENT.items())
def test_red_flags_in_everyday_words(shipped, said, flag):
    assert flag in [one.id for one in CausalStream(shipped).hear(said).urgent]


@pytest.mark.parametrize("said", CALM)
def test_no_urgent_notice_without_a_reason(shipped, said):
    assert not CausalStream(shipped).hear(said).urgent


@pytest.mark.parametrize("answer", ["有时候会", "有一点", "偶尔有", "经常"])
def test_a_graded_yes_to_a_question_of_danger_is_a_yes(shipped, answer):
    stream = CausalStream(shipped)
    stream.hear("最近心情很差，睡不着。")
    assert "self_harm" in [flag.id for flag in stream.hear(answer, answer_to="self_harm_thoughts").urgent]


def test_a_red_flag_may_be_of_two_turns_and_two_persons(shipped):
    stream = CausalStream(shipped)
    stream.hear("昨晚和同事喝酒，今天拉黑便。")
    assert [flag.id for flag in stream.hear("我刚才晕倒了。").urgent] == ["black_stool_fainting"]
    stream = CausalStream(shipped)
    assert "heart_attack_sweating" in [flag.id for flag in stream.hear("我爸胸口疼。我看他出冷汗，我也头晕。").urgent]


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("没走几步就喘", [("exertional_breathlessness", "present")]),
        ("I don't smoke and have chest pain", [("smoking", "absent"), ("chest_pain", "present")]),
        ("还在拉肚子，不吐了", [("diarrhoea", "present"), ("vomiting", "absent")]),
        ("头还疼，不烧了", [("headache", "present"), ("fever", "absent")]),
        ("没有咳嗽，就是头晕", [("cough", "absent"), ("dizziness", "present")]),
        ("我没有胸痛，不发烧", [("chest_pain", "absent"), ("fever", "absent")]),
        ("有没有发烧我没注意", [("fever", "unknown")]),
        ("否认就诊前有胸痛", [("chest_pain", "absent")]),
        ("不知道有没有糖尿病", [("known_diabetes", "unknown")]),
        ("孩子发烧三天，没有抽筋", [("fever", "present"), ("seizure", "absent")]),
        ("如果发烧怎么办", []),
        ("会不会有胸痛？", []),
        ("男，62岁，血红蛋白121g/L", []),  # normal for a woman, low for a man
        ("血红蛋白108g/L", [("haemoglobin_low", "present")]),
    ],
)
def test_what_a_sentence_says_of_its_findings(shipped, said, read):
    assert [(one.id, one.state) for one in CausalStream(shipped).hear(said).heard] == read


def test_the_evidence_says_causes_reasons_gaps_and_that_it_is_no_diagnosis(network):
    stream = CausalStream(network)
    stream.hear("医生您好，我发烧三天，咳嗽得厉害，不流鼻涕。我抽烟。")
    text = stream.evidence()
    share = round(100 * stream.state.posterior.diseases[0])
    assert f"1. 肺炎 {share}%" in text and "可解释：" in text and "风险因素：吸烟" in text
    assert "但没有：流鼻涕" in text  # against the cold
    assert "发热 (3天)" in text and "咳嗽 (重)" in text
    assert "接着问：" in text and "最有用的检查：胸片有阴影" in text
    assert "没有读懂：医生您好" in text and "网络只有 3 种病" in text and "不是诊断" in text
    english = CausalStream(network)  # answers in the language of the first turn
    english.hear("I have a fever and a cough, and smoking is a habit. no runny nose.")
    assert english.state.evidence.present == {"fever", "cough", "smoking"}
    assert "1. pneumonia" in english.evidence() and "not a diagnosis" in english.evidence()
    assert not re.search(r"[\u4e00-\u9fff]", english.evidence())
    assert "可能的原因" in "\n".join(in_words(network, english.state, "zh"))


def test_before_anything_is_said_there_is_nothing_to_show(network):
    stream = CausalStream(network)
    assert stream.state is None and stream.evidence() == "" and panel(stream) == ""
    stream.hear("你好")
    assert "还没有听到" in stream.evidence()


def test_pictures_are_xml_with_the_figures_of_the_state(network):
    stream = CausalStream(network)
    for turn in ("咳嗽", "发烧", "不流鼻涕", "抽烟", "胸口疼"):
        stream.hear(turn)
    bars = ElementTree.fromstring(bar_chart(network, stream.states, "zh"))
    texts = [node.text for node in bars.iter() if node.text]
    assert "第5轮" in texts and "第2轮" in texts and "第1轮" not in texts
    assert f"{stream.state.posterior.diseases[0]:.0%}" in texts
    graph = ElementTree.fromstring(causal_graph(network, stream.state, "en"))
    labels = " ".join(node.text or "" for node in graph.iter())
    assert "pneumonia" in labels and "smoking" in labels and "cough" in labels
    struck = [node.text for node in graph.iter() if node.get("text-decoration") == "line-through"]
    assert struck == ["runny nose"]


def test_names_and_text_with_markup_stay_text(tmp_path):
    evil = '<script>alert("1")</script>&'
    tables = TABLES | {"diseases.csv": [row | {"name_zh": evil + row["id"]} for row in TABLES["diseases.csv"]]}
    stream = CausalStream(Network.load(write_network(tmp_path / "net", tables)))
    stream.hear(f"咳嗽，{evil}。")
    html = panel(stream)
    assert "<script" not in html and "&lt;script&gt;" in html
    ElementTree.fromstring(html)


def test_wrong_arguments_are_refused(network):
    with pytest.raises(ValueError, match="expected zh or en, got 'fr'"):
        CausalStream(network, language="fr")
    with pytest.raises(ValueError, match="answer_to: expected an id of the network, got 'itch'"):
        CausalStream(network).hear("有", answer_to="itch")


def test_the_chat_shows_what_the_network_makes_of_it(root, network, tiny_model, tmp_path):
    """Through a pipe: causes after the first turn, a bare answer understood, the urgent notice before the answer."""
    folder = write_network(tmp_path / "net", TABLES)
    flags = ["--base_model", tiny_model, "--interactive", "--only_cpu", "--max_new_tokens", "4", "--causal", folder]
    turns = "".join(f"{line}\n" for line in ("我胸痛", "没有", "出汗了", "clear", "我咳嗽"))
    done = subprocess.run(
        [sys.executable, root / "inference.py", *flags], input=turns.encode(), capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    before, first, second, third, last = done.stdout.decode().split("Assistant: ")
    assert "心肌梗死" not in before and "1. 心肌梗死" in first and "接着问：发烧吗？" in first
    assert "没有：发热" in second
    assert second.rstrip().endswith("⚠ 胸痛伴出汗：立即拨打120")  # before the answer to the third turn
    assert "紧急：胸痛伴出汗" in third and "有：咳嗽" in last and "胸痛" not in last


def test_the_model_sees_the_findings_and_the_history_keeps_the_words_of_the_patient(network):
    class Listener:
        """An engine that notes what it is asked."""

        def stream(self, request, sampling):
            self.asked = request.messages
            return self

        def __iter__(self):
            return iter(())

        def close(self) -> None:
            self.answer = Answer("多休息", finish_reason="stop", truncated=False, prompt_tokens=1, completion_tokens=1)

    causal, engine, history = CausalStream(network), Listener(), []
    terminal.reply(engine, history, "我咳嗽", Sampling(), 0, terminal.listen(causal, "我咳嗽"))
    assert "> 1. 普通感冒" in engine.asked[-1]["content"] and asked(engine.asked[-1]["content"]) == "我咳嗽"
    assert [turn["content"] for turn in history] == ["我咳嗽", "多休息"]


def test_the_flag_needs_a_chat_and_is_off_by_default(capsys):
    with pytest.raises(SystemExit):
        inference.parse_args(["--base_model", "m", "--data_file", "f", "--causal"])
    assert "--causal listens to a chat" in capsys.readouterr().err
    assert inference.parse_args(["--base_model", "m", "--interactive"]).causal is None
    assert inference.parse_args(["--base_model", "m", "--interactive", "--causal"]).causal == "data/causal"
