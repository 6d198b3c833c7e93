"""Measured values, and quantities that are spoken of without one: T 39.3℃, BP 192/108, 血压没量, 胃口不错.

The limits are those for adults: WS/T 404, 405 and 886 for laboratories in China, the guidelines of `data/causal` for
the rest. Where two units are in use, each has a range of its own, as the numbers tell the units apart.
"""

import re

# What may stand between a quantity and its value: 血糖降到2.1, but not 血糖降了2.1.
_NEAR = r"(?:(?![从由]\s*\d)[^，、。；！？,;!?\d病史药差降]|降(?=[到至为])){0,8}?"
_FROM = r"(?:[^，。；\d]{0,4}?[从由]\s*\d[\d./]*[^，。；\d]{0,4}?(?:到|至|成)了?)?"  # 血氧从98掉到86: it is 86
_DECIMAL = r"(?P<a>\d{1,5})(?:\.(?P<b>\d+))?(?![\d+/]|\.\d|[^，。；,;]{0,3}[/每]\s*hp)"
_WHOLE = r"(?P<a>\d{2,3})(?!\d)"
_WARMTH = (
    r"(?P<a>3[4-9]|4[0-3])(?:[.度点](?P<b>\d))?(?!\d|\s*(?:小时|[个天周次分岁年月斤公克%hm]))"
    r"\s*(?:度|℃|°c|c\b)?"
)
_RATE = r"\s*(?:次|bpm|/\s*min|(?=[\s,，]*(?:r|bp)[\s:：]*\d))"
_IN_FIELD = r"(?:\d+\s*[-~]\s*)?(?P<a>\d{1,3})\s*个?[/每]\s*hp"  # cells in a microscope's field, the upper of two
_END = r"(?=[，。,;；、\s]|$)"
_ELDERS = "爷爷|奶奶|外公|外婆|姥姥|姥爷|爸爸?|妈妈?|父亲|母亲|公公|婆婆|岳父|岳母|丈母娘|老伴|老人|老头|老太太?"
_TROPONIN = r"(?:超敏)?肌钙蛋白[it]?|(?:hs-?)?c?tn[it]|troponin(?: [it])?"
_SUGAR = "血糖|glu|blood sugar|glucose"


def _value(words: str, number: str = _DECIMAL, unit: str = "") -> re.Pattern[str]:
    """The words that announce a quantity, then its number. Latin abbreviations stand alone: TC, but not in TCT."""
    return re.compile(rf"(?<![a-z])(?:{words})(?![a-z])(?:{_FROM}){_NEAR}{number}{unit}")


# How a quantity is written, [(id, at least, below)]; ids that a network lacks are skipped. A value outside says that
# the (first) finding is absent. Without an id: a range that says neither.
_FEVER = (("fever", 37.3, 46),)
_PRESSURE = (("high_blood_pressure", 140, 400), ("low_blood_pressure", 0, 90))
_AGE = (("age_over_65", 65, 125),)
MEASURES = (
    (_value("体温|烧到|[发高低]烧|[发高]热|最高|温度|[耳腋额]温|(?<![剂数用重药])量了?一?下?是?|temperature|fever",
            _WARMTH), _FEVER),
    (re.compile(rf"(?<![a-z])t[\s:：]*{_WARMTH}"), _FEVER),
    (re.compile(r"(?<![\d.])(?P<a>3[7-9]|4[0-2])(?:[.度点](?P<b>\d))?(?!\d)\s*(?:度|℃|°c)"), _FEVER),
    (_value("(?<![高低])血压|(?<!血)高压|收缩压|上压|s?bp|blood pressure",
            rf"{_WHOLE}(?:\s*/\s*\d{{2,3}}(?:\s*mmhg)?)?"), _PRESSURE),
    (re.compile(r"(?<![\d/])(?P<a>\d{2,3})\s*/\s*\d{2,3}\s*(?:mmhg|毫米汞柱)"), _PRESSURE),
    (_value("(?<!血)低压|舒张压|下压|dbp", _WHOLE), (("high_blood_pressure", 90, 200),)),
    (_value("心率|脉搏|脉率|心跳|hr|heart rate|pulse", _WHOLE, f"(?:{_RATE})?"), (("tachycardia", 100, 400),)),
    (re.compile(rf"(?<![a-z])p[\s:：]*{_WHOLE}{_RATE}"), (("tachycardia", 100, 400),)),
    (_value("呼吸频率|呼吸|rr?", _WHOLE, _RATE), (("fast_breathing", 21, 99),)),
    (_value("血氧|氧饱和度?|spo2|sao2|指脉?氧|oxygen", rf"{_WHOLE}\s*%?"), (("low_oxygen_saturation", 0, 94),)),
    (_value(_SUGAR), (("high_blood_glucose", 11.1, 60), ("low_blood_glucose", 0, 3.9))),  # mmol/L
    (_value("空腹(?:末梢|指尖|静脉)?的?血糖|血糖空腹|fbg|fpg"),
     (("high_blood_glucose", 7, 60), ("low_blood_glucose", 0, 3.9))),
    (_value(_SUGAR, _WHOLE, r"\s*mg/dl"), (("high_blood_glucose", 200, 999), ("low_blood_glucose", 0, 70))),
    (_value("糖化血红蛋白|糖化|hba1c"), (("high_blood_glucose", 6.5, 25),)),  # %
    (_value("(?<!尿)(?<!便)白细胞(?:计数|数)?|(?<!尿)wbc"),
     (("white_cells_raised", 9.51, 100), ("white_cells_raised", 9_501, 100_000))),  # 10⁹/L, per µL
    (_value("(?<!尿)白细胞(?:计数|数)?|(?<!尿)wbc", r"(?P<a>\d)(?:[.点](?P<b>\d))?万"),
     (("white_cells_raised", 1, 10),)),
    (_value("尿(?:液|常规|检)?(?:白细胞|wbc)", _IN_FIELD), (("urine_white_cells", 6, 999),)),
    (_value("尿(?:液|常规|检)?(?:红细胞|rbc)", _IN_FIELD), (("blood_in_urine", 4, 999),)),
    (_value("中性粒?细胞?(?:百分比|比例|比率)?|neut", _DECIMAL, r"\s*%"), (("white_cells_raised", 75.1, 101),)),
    (_value("c反应蛋白|(?:hs-?)?crp"), (("white_cells_raised", 10, 999),)),  # mg/L
    (_value("(?<!糖化)血红蛋白|血色素|hb|hgb"),
     (("haemoglobin_low", 2, 11.5), ("haemoglobin_low", 20, 115), ("", 11.5, 13), ("", 115, 130))),  # g/dL, g/L; a
    # man's should be 130 g/L
    (_value("促甲状腺激素|tsh"), (("tsh_high", 4.5, 999), ("tsh_low", 0, 0.27))),  # mIU/L
    (_value("(?<!尿)尿酸值?|ua"), (("uric_acid_raised", 7.1, 20), ("uric_acid_raised", 420, 5000))),  # mg/dL, µmol/L
    (_value("(?<!尿)淀粉酶|amy|amylase"), (("lipase_raised", 136, 99_999),)),  # U/L
    (_value("尿淀粉酶"), (("lipase_raised", 600, 99_999),)),
    (_value("脂肪酶|lps|lipase"), (("lipase_raised", 61, 99_999),)),
    (_value("谷丙转氨酶|谷草转氨酶|谷丙|谷草|转氨酶|alt|ast|gpt|got"), (("liver_enzymes_raised", 51, 20_000),)),  # U/L
    (_value("d-?二聚体|二聚体|d-?dimer"),
     (("d_dimer_raised", 0.51, 50), ("d_dimer_raised", 501, 99_999))),  # mg/L, µg/L
    (_value(_TROPONIN), (("troponin_raised", 0.05, 99_999),)),  # ng/mL
    (_value(_TROPONIN, _DECIMAL.split("(?!")[0], r"\s*(?:ng/l|pg/ml)"), (("troponin_raised", 15, 99_999),)),
    (_value("脑钠肽|bnp"), (("bnp_raised", 100, 99_999),)),  # pg/mL
    (_value("nt-?pro-?bnp|脑钠肽前体|pro-?bnp"), (("bnp_raised", 300, 99_999),)),
    (_value("类风湿因子|rf|抗?ccp(?:抗体)?"), (("rheumatoid_factor", 20, 9999),)),  # IU/mL
    (_value("血酮体?|β-?羟丁酸"), (("ketones", 0.6, 30),)),  # mmol/L, as all below
    (_value("总?胆固醇|tc"), (("high_cholesterol", 5.2, 30),)),
    (_value("低密度(?:脂蛋白)?(?:胆固醇)?|ldl(?:-c)?"), (("high_cholesterol", 3.4, 30),)),
    (_value("甘油三酯|tg"), (("high_cholesterol", 1.7, 60),)),
    (_value("体重指数|bmi"), (("obesity", 28, 80),)),
    (re.compile(r"(?P<a>\d{2,3})(?:多|来)?周?岁(?!时|的时候|那年|起|开始|以[上下]|左右?就|就)"), _AGE),
    (re.compile(rf"(?:今年|年龄|{_ELDERS})[:：]?\s*(?P<a>\d{{2,3}})(?:多|来)?了?{_END}"), _AGE),
    (re.compile(rf"[男女]性?[，,、/\s]*(?P<a>\d{{2,3}}){_END}"), _AGE),
    (re.compile(rf"女性?(?=[，,、:：/\s]{{0,2}}(?P<a>\d{{1,3}})\s*(?:岁|{_END}))"), (("female_sex", 0, 125),)),
)  # fmt: skip
NEVER_DENIED = frozenset({"age_over_65", "female_sex", "obesity"})  # "54 years" does not speak of old age

# Quantities that are spoken of without a value: 血压没量 (unknown), 胃口不错 (nothing wrong). Those that a finding's
# name tells (尿酸高 -> 尿酸) come on top.
QUANTITIES = {
    "fever": "体温", "poor_appetite": "胃口|食欲|饮食|吃饭", "insomnia": "睡眠|睡觉|睡得",
    "missed_period": "月经|例假|大姨妈", "high_blood_pressure": "血压", "tachycardia": "心率|心跳|脉搏",
    "low_oxygen_saturation": "血氧|氧饱和度", "high_blood_glucose": "血糖", "high_cholesterol": "血脂",
    "diarrhoea": "大便", "shortness_of_breath": "呼吸(?!音|频率|道|平稳)|喘气", "confusion": "神志|意识|神智",
    "speech_difficulty": "说话|言语|讲话|口齿", "unsteady_gait": "走路|步态|走道", "weight_loss": "体重",
    "blurred_vision": "视力|视物|看东西", "fatigue": "精神头?|精力|体力", "low_mood": "情绪|心情",
    "pregnancy": "验孕棒|早孕试纸|hcg", "white_cells_raised": "血常规|血象", "liver_enzymes_raised": "肝功能?",
    "urine_white_cells": "尿常规", "lipase_raised": "淀粉酶|脂肪酶", "lung_infiltrate": "胸片|[肺胸]部?ct",
    "ecg_ischaemia": "心电图", "rheumatoid_factor": "抗ccp|rf", "incontinence": "大小便|二便",
}  # fmt: skip
CHANGED = re.compile(r"(?:升高|偏高|增高|高|降低|偏低|低|阳性)(?:（.*）|\(.*\))?$")
FINE = re.compile(
    r"(?:[，,](?=不[高低]|正常)|[^，。；！？,;!?没不]{0,6}?)(?:正常|不高|不低|不错|挺好|很好|还好|良好|还行|还可以|规律"
    r"|没(?:有)?(?:啥|什么)?(?:问题|事|变|异常)|阴性|清楚|清晰|清醒|稳定|平稳|尚可|可(?=[，、。；,;]|$)|佳|利索|利落|如常|憋得住|能控制|一条杠"
    r"|无(?:明显)?(?:异常|变化|殊)|未见(?:明显)?异常)"
)
UNKNOWN_BEFORE = re.compile(r"(?:没(?:有)?(?:怎么)?(?:量|测|查|做|验)过?|不(?:清楚|知道)(?:自己)?的?)(?:过)?$")
UNKNOWN_AFTER = re.compile(
    r"[^，。；！？,;!?]{0,4}?(?:(?:没(?:有)?|未)(?:来得及|顾得?上|怎么|去)?(?:量|测|查|做|验|注意)|不(?:清楚|知道))"
)
