"""Clinical calculation problems with exact answers, for GRPO and its evaluation.

    python data/grpo/make_calculations.py

writes data/grpo/calculations.jsonl (150 rows) and data/eval/calculations.jsonl (60 rows, other seed, no question in
common). The same code gives the same files. Practice in arithmetic, not dosing advice.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple


def cockcroft_gault(age: int, weight: float, creatinine: float, sex: str) -> float:
    """Creatinine clearance in mL/min from kg and μmol/L (Cockcroft and Gault 1976; 1 mg/dL = 88.4 μmol/L)."""
    return (140 - age) * weight / (72 * creatinine / 88.4) * (0.85 if sex == "女性" else 1)


def ckd_epi_2021(age: int, creatinine: float, sex: str) -> float:
    """eGFR in mL/min/1.73 m² from creatinine in mg/dL (Inker et al. 2021, without race)."""
    kappa, alpha, factor = (0.7, -0.241, 1.012) if sex == "女性" else (0.9, -0.302, 1.0)
    ratio = creatinine / kappa
    return 142 * min(ratio, 1) ** alpha * max(ratio, 1) ** -1.2 * 0.9938**age * factor


def tenths(low: float, high: float) -> list[float]:
    return [n / 10 for n in range(round(low * 10), round(high * 10) + 1)]


def days(year: int, month: int, count: int) -> list[date]:
    return [date(year, month, 1) + timedelta(n) for n in range(count)]


class Kind(NamedTuple):
    """A formula, the values its inputs may take, the rounding of the answer, and ways to ask."""

    formula: Callable[..., float | date]
    inputs: dict[str, Sequence]
    unit: str
    decimals: int
    tolerance: float  # relative; covers an answer that was rounded differently
    questions: Sequence[str]


CHILD, DOSE, ADULT, SEX = tenths(8, 35), (5, 8, 10, 12, 15), range(45, 96), ("女性", "男性")
BURN = {"weight": ADULT, "area": range(15, 61)}
# fmt: off
KINDS: dict[str, Kind] = {
    "pediatric_dose": Kind(lambda weight, dose: weight * dose, {"weight": CHILD, "dose": DOSE}, "mg", 1, 0.01, (
        "患儿体重{weight:g} kg，某药单次剂量为{dose} mg/kg，单次应给多少毫克？（保留1位小数）",
        "A child weighs {weight:g} kg. The dose is {dose} mg/kg. How many mg is one dose? (1 decimal)")),
    "pediatric_volume": Kind(lambda weight, per_kg, strength: weight * per_kg / strength,
        {"weight": CHILD, "per_kg": DOSE, "strength": (10, 20, 25, 32)}, "mL", 2, 0.02, (
        "儿童{weight:g} kg，每次用药{per_kg} mg/kg，混悬液浓度{strength} mg/mL，每次应取多少毫升？（保留2位小数）",
        "某混悬液每毫升含药{strength} mg。{weight:g} kg的孩子每次用{per_kg} mg/kg，合多少毫升？（保留2位小数）")),
    "pediatric_divided_dose": Kind(lambda weight, per_day, times: weight * per_day / times,
        {"weight": CHILD, "per_day": (30, 40, 45, 50, 80), "times": (2, 3, 4)}, "mg", 1, 0.01, (
        "患儿{weight:g} kg，某药总量每日{per_day} mg/kg，平均分{times}次给，每次多少毫克？（保留1位小数）",)),
    "infusion_rate": Kind(lambda volume, hours: volume / hours,
        {"volume": range(100, 1501, 50), "hours": range(2, 13)}, "mL/h", 1, 0.01, (
        "{volume} mL液体要求在{hours}小时内匀速输完，泵速应设多少mL/h？（保留1位小数）",
        "Infuse {volume} mL evenly over {hours} hours. What is the rate in mL/h? (1 decimal)")),
    "drip_rate": Kind(lambda volume, hours, factor: volume * factor / (hours * 60),
        {"volume": range(250, 1501, 50), "hours": range(4, 11), "factor": (15, 20)}, "滴/分", 1, 0.02, (
        "输液{volume} mL，{hours}小时输完，输液器滴系数为{factor}滴/mL，每分钟应滴多少滴？（保留1位小数）",)),
    "pump_rate": Kind(lambda dose, weight, mg, volume: dose * weight * 60 / (mg * 1000 / volume),
        {"dose": (2, 3, 4, 5, 8, 10), "weight": ADULT, "mg": (100, 150, 200), "volume": (50, 250)}, "mL/h", 2, 0.02, (
        "体重{weight} kg，某药{mg} mg配成{volume} mL，按{dose} μg/kg/min泵入，泵速是多少mL/h？（保留2位小数）",)),
    "bmi": Kind(lambda height, weight: weight / (height / 100) ** 2,
        {"height": range(150, 191), "weight": ADULT}, "kg/m²", 1, 0.01, (
        "身高{height} cm，体重{weight} kg，体重指数（BMI）是多少？（保留1位小数）",
        "What is the body mass index of someone who is {height} cm tall and weighs {weight} kg? (1 decimal)")),
    "body_surface_area": Kind(lambda height, weight: math.sqrt(height * weight / 3600),  # Mosteller 1987
        {"height": range(150, 191), "weight": ADULT}, "m²", 2, 0.01, (
        "用Mosteller公式计算身高{height} cm、体重{weight} kg者的体表面积。（保留2位小数）",
        "What is the body surface area (Mosteller) for {height} cm and {weight} kg? (2 decimals)")),
    "creatinine_clearance": Kind(cockcroft_gault,
        {"age": range(25, 90), "weight": ADULT, "creatinine": range(50, 301), "sex": SEX}, "mL/min", 1, 0.02, (
        "{sex}，{age}岁，{weight} kg，血肌酐{creatinine} μmol/L，用Cockcroft-Gault公式算肌酐清除率（保留1位小数）",)),
    "egfr_ckd_epi_2021": Kind(ckd_epi_2021,
        {"age": range(25, 86), "creatinine": tenths(0.6, 3.5), "sex": SEX}, "mL/min/1.73m²", 1, 0.02, (
        "{age}岁{sex}，血肌酐{creatinine:g} mg/dL，用CKD-EPI 2021公式（不含种族）算eGFR。（保留1位小数）",)),
    "corrected_calcium": Kind(lambda calcium, albumin: calcium + 0.02 * (40 - albumin),
        {"calcium": tenths(1.7, 2.4), "albumin": range(18, 39)}, "mmol/L", 2, 0.005, (
        "血钙{calcium} mmol/L，白蛋白{albumin} g/L，按“血钙+0.02×(40−白蛋白)”校正后血钙是多少？（保留2位小数）",)),
    "anion_gap": Kind(lambda sodium, chloride, bicarbonate: sodium - chloride - bicarbonate,
        {"sodium": range(132, 149), "chloride": range(94, 106), "bicarbonate": range(8, 27)}, "mmol/L", 0, 0, (
        "血钠{sodium}、血氯{chloride}、碳酸氢根{bicarbonate} mmol/L，阴离子间隙（不计血钾）是多少？",
        "Na {sodium}, Cl {chloride}, HCO3 {bicarbonate} mmol/L: what is the anion gap without potassium?")),
    "mean_arterial_pressure": Kind(lambda systolic, diastolic: diastolic + (systolic - diastolic) / 3,
        {"systolic": range(90, 191), "diastolic": range(45, 86)}, "mmHg", 1, 0.01, (
        "血压{systolic}/{diastolic} mmHg，平均动脉压约是多少？（保留1位小数）",)),
    "ldl_friedewald": Kind(lambda total, hdl, tg: total - hdl - tg / 2.2,  # holds below 4.5 mmol/L triglycerides
        {"total": tenths(4.8, 8), "hdl": tenths(0.8, 1.8), "tg": tenths(0.6, 4)}, "mmol/L", 2, 0.01, (
        "总胆固醇{total}、HDL-C {hdl}、TG {tg} mmol/L，按Friedewald公式（TG除以2.2）算LDL-C（保留2位小数）",)),
    "parkland_total": Kind(lambda weight, area: 4 * weight * area, BURN, "mL", 0, 0.005, (
        "成人{weight} kg，烧伤{area}%体表面积（Ⅱ度及以上），按Parkland公式（4 mL/kg/1%）伤后24小时补晶体多少毫升？",)),
    "parkland_first_hours": Kind(lambda weight, area: 4 * weight * area / 2 / 8, BURN, "mL/h", 1, 0.01, (
        "{weight} kg成人烧伤{area}%，按Parkland公式（4 mL/kg/1%）前8小时补一半，每小时多少毫升？（保留1位小数）",)),
    "glucose_to_mmol": Kind(lambda mg: mg / 18, {"mg": range(55, 451)}, "mmol/L", 1, 0.02, (
        "血糖{mg} mg/dL合多少mmol/L？（除以18，保留1位小数）",)),
    "glucose_to_mg": Kind(lambda mmol: mmol * 18, {"mmol": tenths(3, 25)}, "mg/dL", 1, 0.01, (
        "血糖{mmol} mmol/L换算成mg/dL是多少？（乘以18，保留1位小数）",)),
    "creatinine_to_mg": Kind(lambda umol: umol / 88.4, {"umol": range(60, 601)}, "mg/dL", 2, 0.01, (
        "血肌酐{umol} μmol/L等于多少mg/dL？（除以88.4，保留2位小数）",)),
    "pack_years": Kind(lambda daily, years: daily / 20 * years,
        {"daily": (5, 10, 15, 20, 30, 40), "years": range(5, 46)}, "包年", 2, 0.01, (
        "每天吸{daily}支烟，已吸{years}年（每包20支），吸烟指数是多少包年？（保留2位小数）",)),
    "due_date": Kind(lambda lmp: lmp + timedelta(280), {"lmp": days(2024, 1, 730)}, "", 0, 0, (
        "末次月经第一天是{lmp}，按加280天计算，预产期是哪一天？（格式：YYYY-MM-DD）",
        "The last menstrual period began on {lmp}. What is the due date, 280 days later? (YYYY-MM-DD)")),
    "gestational_week": Kind(lambda lmp, today: (today - lmp).days // 7,
        {"lmp": days(2025, 1, 60), "today": days(2025, 4, 170)}, "周", 0, 0, (
        "末次月经第一天为{lmp}，到{today}为止，孕多少整周？（不足一周舍去）",)),
    "dilution": Kind(lambda stock, target, volume: target * volume / stock,
        {"stock": (10, 20, 50), "target": (0.5, 1, 2, 4), "volume": range(50, 501, 10)}, "mL", 2, 0.01, (
        "用{stock}%的原液配{target}%的溶液{volume} mL，需要原液多少毫升？（保留2位小数）",)),
}
# fmt: on


def make(count: int, seed: int, taken: Sequence[str] = ()) -> list[dict]:
    """`count` rows, the kinds in turn; no question twice, none of `taken`."""
    draw, seen, rows = random.Random(seed), set(taken), []
    while len(rows) < count:
        name, kind = list(KINDS.items())[len(rows) % len(KINDS)]
        given = {key: draw.choice(values) for key, values in kind.inputs.items()}
        value, question = kind.formula(**given), draw.choice(kind.questions).format(**given)
        if question not in seen:
            seen.add(question)
            answer = value.isoformat() if isinstance(value, date) else f"{value:.{kind.decimals}f}"
            row = {"question": question, "answer": answer, "unit": kind.unit, "tolerance": kind.tolerance}
            rows.append({**row, "formula": name})
    return rows


def main(data: Path) -> None:
    train = make(150, seed=1)
    held_out = make(60, seed=2, taken=[row["question"] for row in train])
    for folder, rows in (("grpo", train), ("eval", held_out)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (data / folder / "calculations.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).resolve().parents[1])
