"""Units and dates: tables of strings."""

import datetime

import pytest

from medical_qwen.quantities import Quantity, convert, find_dates, find_quantities, gold_date, gold_quantity


@pytest.mark.parametrize(
    ("value", "unit", "target", "converted"),
    [
        (250, "mg", "g", 0.25),
        (0.25, "克", "毫克", 250),
        (5, "μg", "mcg", 5),
        (5, "µg", "mg", 0.005),
        (1, "kg", "g", 1000),
        (1.5, "L", "mL", 1500),
        (3, "mL", "cm³", 3),
        (3, "cc", "毫升", 3),
        (2, "dL", "L", 0.2),
        (90, "min", "小时", 1.5),
        (2, "天", "h", 48),
        (1, "周", "d", 7),
        (20, "滴/分", "gtt/min", 20),
        (1200, "滴/h", "滴/分钟", 20),
        (60, "mL/h", "mL/min", 1),
        (5, "mg/kg/d", "mg/(kg·d)", 5),
        (5, "mg/kg/d", "mg·kg⁻¹·d⁻¹", 5),
        (5, "mg/kg/min", "g/kg/h", 0.3),
        (5, "毫克每千克", "mg/kg", 5),
        (5, "mg per kg", "mg/kg", 5),
        (90, "mL/min/1.73m²", "mL/(min·1.73 m^2)", 90),
        (22.9, "kg/m²", "kg/m2", 22.9),
        (1, "g/L", "mg/dL", 100),
        (1, "mmol/L", "μmol/L", 1000),
        (1, "kcal", "kJ", 4.184),
        (16, "kPa", "mmHg", 120.0101),
        (75, "%", "‰", 750),
        (72, "bpm", "次/分", 72),
        (150, "×10⁹/L", "10^6/mL", 150),
        (3, "片", "tablets", 3),
        (3, "疗程", "疗程", 3),
        (5, "mg", "mL", None),
        (5, "mg", "mmol", None),
        (5, "mg/kg", "mg", None),
        (5, "mg/kg/d", "次/d", None),
        (37, "°C", "°F", None),
        (3, "月", "天", None),
        (3, "疗程", "mg", None),
    ],
)
def test_convert(value, unit, target, converted):
    found = convert(Quantity(value, unit), target)
    assert found == (None if converted is None else pytest.approx(converted, rel=1e-5))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("每次 250 mg，每日 3 次，连用 7 天", ["250 mg", "3 次", "7 天"]),
        ("5 minutes or 5 mins", ["5 minutes", "5 mins"]),
        ("5 good men", ["5"]),
        ("体重70kg，身高175cm", ["70 kg", "175 cm"]),
        ("T4 升高，B12 正常，CO2 40 mmHg", ["40 mmhg"]),
        ("10-20 mg，而不是 25 mg", ["25 mg"]),
        ("1,200 mL 与 1,2,3", ["1200 ml", "1", "2", "3"]),
        ("2.5E3 和 .5", ["2500", "0.5"]),
        ("1.5万 IU", ["15000 iu"]),
        ("9" * 5000 + " 与 1e999 与 10^9999", []),
    ],
)
def test_find_quantities(text, found):
    assert [str(quantity) for quantity in find_quantities(text)] == found


@pytest.mark.parametrize(
    ("answer", "unit", "gold"),
    [
        (3, "mg", Quantity(3.0, "mg")),
        ("3", None, Quantity(3.0, "")),
        ("3 mg", None, Quantity(3.0, "mg")),
        ("3 mg", "mg", Quantity(3.0, "mg")),
        ("$70,000", None, Quantity(70000.0, "")),
        ("算式\n#### 3", None, Quantity(3.0, "")),
        ("95%", None, Quantity(95.0, "%")),
        ("3 个疗程", "疗程", None),
        ("约 3 片", None, None),
        ("C", None, None),
        ("", None, None),
        (None, "mg", None),
        (True, None, None),
    ],
)
def test_gold_quantity(answer, unit, gold):
    assert gold_quantity(answer, unit) == gold


def test_dates():
    text = "2024年5月1日、2024-05-02、2024/5/3、2024.5.4，May 5, 2024, 6th May 2024, 2024-02-30, 12024-01-01"
    assert find_dates(text) == [datetime.date(2024, 5, day) for day in range(1, 7)]


@pytest.mark.parametrize(
    ("answer", "known"),
    [("2024-05-01", True), (" 2024年5月1日。", True), ("2024-05-01起", False), ("2024", False), (20240501, False)],
)
def test_gold_date(answer, known):
    assert gold_date(answer) == (datetime.date(2024, 5, 1) if known else None)
