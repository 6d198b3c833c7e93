"""Numbers with units, and dates, in Chinese and English text."""

import datetime
import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

# Kind -> unit -> (size in the kind's base unit, names). Names are compared without case. A kind is a dimension; the
# dimensionless ones ("") count. Volume is length^3, so that mL and cm^3 are the same.
_UNITS = {
    "mass": {
        1e3: "kg kilogram kilograms 千克 公斤",
        1.0: "g gram grams 克",
        1e-3: "mg milligram milligrams 毫克",
        1e-6: "μg ug mcg microgram micrograms 微克",
        1e-9: "ng nanogram nanograms 纳克",
        500.0: "斤",
    },
    "length": {1.0: "m meter meters metre metres 米", 1e-2: "cm 厘米", 1e-3: "mm 毫米", 1e3: "km 千米 公里"},
    "time": {
        1.0: "s sec second seconds 秒 秒钟",
        60.0: "min mins minute minutes 分钟 分",
        3600.0: "h hr hrs hour hours 小时 钟头",
        86400.0: "d day days 天 日",
        604800.0: "wk week weeks 周 星期",
    },
    "month": {1.0: "month months 月 个月"},
    "year": {1.0: "year years yr 年 岁 周岁"},
    "amount": {1.0: "mol 摩尔", 1e-3: "mmol 毫摩尔", 1e-6: "μmol umol 微摩尔", 1e-9: "nmol 纳摩尔", 1e-12: "pmol"},
    "equivalent": {1.0: "eq", 1e-3: "meq 毫当量"},
    "osmole": {1.0: "osm", 1e-3: "mosm 毫渗"},
    "activity": {1.0: "u iu unit units 单位 国际单位", 1e3: "ku"},
    "energy": {4184.0: "kcal 千卡 大卡", 4.184: "cal 卡", 1e3: "kj 千焦", 1.0: "j 焦耳"},
    "pressure": {133.322: "mmhg 毫米汞柱", 98.0665: "cmh2o 厘米水柱", 1e3: "kpa 千帕", 1.0: "pa 帕"},
    "celsius": {1.0: "°c 摄氏度 度"},
    "fahrenheit": {1.0: "°f 华氏度"},
    "surface": {1.0: "bsa"},
    "drop": {1.0: "滴 drop drops gtt gtts"},
    "tablet": {1.0: "片 tablet tablets tab tabs"},
    "capsule": {1.0: "粒 capsule capsules"},
    "ampoule": {1.0: "支 ampoule ampoules vial vials"},
    "bag": {1.0: "袋 包 bag bags"},
    "bottle": {1.0: "瓶 bottle bottles"},
    "point": {1.0: "point points"},
    "yuan": {1.0: "元 yuan rmb"},
    "": {1.0: "次 times time beats beat 倍", 1e-2: "% percent", 1e-3: "‰", 1e-6: "ppm"},
}
_LITRES = {
    1e-3: "l liter liters litre litres 升",
    1e-4: "dl 分升",
    1e-6: "ml cc milliliter milliliters 毫升",
    1e-9: "μl ul 微升",
    1e-15: "fl",
}
_AREAS = {1.0: "平方米", 1e-4: "平方厘米"}

_ATOMS = {
    name: (size, kind, 1) for kind, sizes in _UNITS.items() for size, names in sizes.items() for name in names.split()
}
_ATOMS |= {name: (size, "length", 3) for size, names in _LITRES.items() for name in names.split()}
_ATOMS |= {name: (size, "length", 2) for size, names in _AREAS.items() for name in names.split()}
_ATOMS["bpm"] = (1 / 60, "time", -1)
_DIVIDERS = r"/|每(?![日天次周晚])"

_NUMBER = (
    r"(?<![A-Za-z\d.^_])(?:(?<![A-Za-z0-9)%])[-+])?"
    r"(?:10\^[-+]?\d+|(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)(?:\.\d+)?(?:\s*[×xX*·]\s*10\^[-+]?\d+|[eE][-+]?\d+)?|\.\d+)"
    r"(?:\s*/\s*\d+(?:\.\d+)?)?\s*[万亿]?"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_REWRITES = [
    (r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda found: "^" + found[0].translate(_SUPERSCRIPTS)),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
    (r"\\(?:times)\b", "×"),
    (r"\\(?:cdot)\b", "·"),
    (r"\\(?:approx)\b", "≈"),
    (r"\\(?:text|mathrm|mathbf|operatorname|rm|left|right|quad)\b|\\[,;!:()\[\] ]", " "),
    (r"\{,\}", ","),
    (r"\\(?=[%$])|\*\*|[`${}]", ""),
    (r"[−–]", "-"),
    (r"\s+", lambda found: "\n" if "\n" in found[0] else " "),
    (r"[•⋅∙]", "·"),
    (r"\s*\bper\s+", "/"),
    (r"(?i)(?<![A-Za-z])(mm|cm) (?=hg\b|h2o\b)", r"\1"),
    (r"百分之\s*(\d+(?:\.\d+)?)", r"\1%"),
    (r"(\d)\s*\^?\+\s*([1-6])\s*周", r"\1周+\2天"),  # 孕20⁺³周, weeks and days
    (
        r"(?<![\d.])(\d{1,3})[ \t]*(?:个?小时|h)[ \t]*(\d{1,2})[ \t]*(?:分钟?|min)(?![A-Za-z])",
        lambda found: f"{60 * int(found[1]) + int(found[2])}分钟",
    ),
]

_PRESSURE = r"(?i:(?<![\d.])\d{2,3}/\d{2,3}(?=\s*(?:mmhg|毫米汞柱))|(?<=血压)[^\d,。;]{0,6}\d{2,3}/\d{2,3}(?![\d.]))"
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH_NAME = rf"({'|'.join(_MONTHS)})[a-z]*\.?"
_DATE = re.compile(
    r"(?<!\d)(\d{4})\s*[-/.年]\s*(\d{1,2})\s*[-/.月]\s*(\d{1,2})(?!\d)\s*[日号]?"
    rf"|\b{_MONTH_NAME}\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}})|\b(\d{{1,2}})(?:st|nd|rd|th)?\s+{_MONTH_NAME},?\s+(\d{{4}})",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """A number and its unit as it was written; no unit is an empty string."""

    value: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}".strip()


def normalise(text: str) -> str:
    """Plain signs for full-width ones, superscripts (`10⁹` to `10^9`), LaTeX and markdown."""
    pattern, replacement = _REWRITES[0]
    text = unicodedata.normalize("NFKC", re.sub(pattern, replacement, text))
    for pattern, replacement in _REWRITES[1:]:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"(?<=kg)\s*体重|(?<=公斤)体重|(?<=千克)体重", "", text, flags=re.IGNORECASE)
    text = re.sub(r"/\s*\(\s*([^\d()/·*]+?)\s*[·*.]\s*([^()]+?)\s*\)", r"/\1/\2", text)
    return re.sub(r"/\s*\(?1\.73\s*(?:m\^?2|平方米)\)?", "/bsa", text)


@lru_cache
def _unit_pattern(extra: str) -> str:
    names = sorted({*_ATOMS, extra} - {""}, key=len, reverse=True)
    atoms = "|".join(
        re.escape(name) + (r"(?![A-Za-z])" if name[-1].isascii() and name[-1].isalpha() else "") for name in names
    )
    atom = rf"(?:{atoms})(?:(?:\^-?|(?<=[A-Za-z])-?)[1-4](?!\d))?"
    return rf"(?i:/?\s*{atom}(?:\s*(?:[·*]|{_DIVIDERS})\s*{atom}){{0,4}})"


def find_quantities(text: str, unit: str = "") -> list[Quantity]:
    """All numbers of a text with the units behind them, in order. A range (10-20 mg) and a blood pressure
    (120/80 mmHg) are not a number and left out.

    `unit` is understood beside the known ones; if it is a rate, so is 每小时 … 20 毫升.
    """
    text, unit = re.sub(_PRESSURE, " ", normalise(text)), _written(unit)
    pattern = _unit_pattern("" if _dimension(unit) else unit)
    if re.search(_DIVIDERS, unit):
        text = re.sub(rf"每\s*({pattern})([^\d,，。;\n]{{0,12}}{_NUMBER})\s*({pattern})", r"\2 \3/\1", text)
    text = re.sub(rf"{_NUMBER}\s*(?:{pattern})?\s*[-~至到]\s*{_NUMBER}\s*(?:{pattern})?", " ", text)
    found = re.finditer(rf"({_NUMBER})\s*[个整]?\s*({pattern})?", text)
    return [Quantity(value, _written(match[2] or "")) for match in found if (value := _value(match[1])) is not None]


def fitting(found: list[Quantity], unit: str) -> list[Quantity]:
    """Those that can be the answer where `unit` was asked for: in that unit; if none, in one of its kind; if none,
    without a unit. Where no unit was asked for, all."""
    if not _written(unit):
        return found
    of_kind = [quantity for quantity in found if quantity.unit and convert(quantity, unit) is not None]
    in_unit = [quantity for quantity in of_kind if math.isclose(convert(Quantity(1.0, quantity.unit), unit), 1.0)]
    return in_unit or of_kind or [quantity for quantity in found if not quantity.unit]


def numerator(unit: str) -> str:
    """What a rate counts (`滴` of `滴/分`); empty where `unit` is none."""
    counted, *rest = re.split(_DIVIDERS, _written(unit), maxsplit=1)
    return counted if rest else ""


def convert(quantity: Quantity, unit: str) -> float | None:
    """The value in another unit, or None where the two are not of one kind."""
    ours, theirs = _written(quantity.unit), _written(unit)
    if ours == theirs:
        return quantity.value
    first, second = _dimension(ours), _dimension(theirs)
    if first is None or second is None or first[1] != second[1]:
        return None
    return quantity.value * first[0] / second[0]


def same(read: Quantity, gold: Quantity, tolerance: float | None) -> bool:
    """Whether two quantities differ by at most `tolerance` of the gold one (default 1e-6).

    Where one has no unit, it is in the unit of the other; beside a percentage it may also be a plain share.
    """
    values = [convert(Quantity(read.value, read.unit or "倍"), gold.unit or "倍")]
    if not (read.unit and gold.unit):
        values.append(read.value)
    limit = max(1e-9, 1e-6 if tolerance is None else tolerance) * abs(gold.value) + 1e-12
    return any(value is not None and abs(value - gold.value) <= limit for value in values)


def gold_quantity(answer: str | float | None, unit: str | None = None) -> Quantity | None:
    """A gold answer as a quantity: a number, a number with a unit, or the number behind the last `####`. Else None."""
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        return Quantity(float(answer), unit or "") if math.isfinite(answer) else None
    text = normalise(answer.rpartition("####")[2]).strip() if isinstance(answer, str) else ""
    text = re.sub(_PRESSURE, "", text)
    known = _unit_pattern(_written(unit or ""))
    match = re.fullmatch(rf"({_NUMBER})\s*({known})?", text)
    value = _value(match[1]) if match else None
    return None if value is None else Quantity(value, match[2] or unit or "")


def gold_date(answer: str | float | None) -> datetime.date | None:
    """A gold answer that is one date and nothing else, or None."""
    found = find_dates(answer) if isinstance(answer, str) and len(answer) < 30 else []
    rest = _DATE.sub("", normalise(answer)).strip(" .。") if found else ""
    return found[0] if len(found) == 1 and not rest else None


def starts_with_date(text: str) -> bool:
    """Whether a text begins with a date."""
    return bool(_DATE.match(normalise(text).strip(" *:")))


def find_dates(text: str) -> list[datetime.date]:
    """All whole dates of a text in order: 2024年5月1日, 2024-05-01, 2024/5/1, May 1, 2024, 1 May 2024."""
    dates = []
    for found in _DATE.finditer(normalise(text)):
        year, month, day, name, name_day, name_year, day_name, name_after, year_after = found.groups()
        month = month or _MONTHS.index((name or name_after)[:3].lower()) + 1
        try:
            dates.append(
                datetime.date(int(year or name_year or year_after), int(month), int(day or name_day or day_name))
            )
        except ValueError:
            continue  # 2023-02-30 is not a date
    return dates


def _written(unit: str) -> str:
    return re.sub(r"\s+|^[×x*](?=10)", "", normalise(unit)).lower()


@lru_cache
def _dimension(unit: str) -> tuple[float, frozenset] | None:
    """Size and kind of a written unit, or None: `mg/kg/d` is mass over mass over time, nothing is cancelled."""
    size, kinds, side = 1.0, Counter(), 1
    for part in re.split(rf"({_DIVIDERS}|[·*])", unit):
        if part is None or part in ("", "·", "*"):
            continue
        if re.fullmatch(_DIVIDERS, part):
            side = -1
            continue
        if found := re.fullmatch(r"10\^(\d+)", part):
            size *= float(f"1e{found[1]}") ** side
            continue
        name, power = part, 1
        if name not in _ATOMS and (found := re.fullmatch(r"(.+?)\^?(-?\d)", part)):
            name, power = found[1], int(found[2])
        if name not in _ATOMS:
            return None
        unit_size, kind, dimension = _ATOMS[name]
        size *= unit_size ** (power * side)
        if kind:
            exponent = power * side * dimension
            kinds[kind, exponent > 0] += abs(exponent)
    return size, frozenset(kinds.items())


def _value(number: str) -> float | None:
    """`1,200.5`, `3/4`, `1.2×10^5`, `1e-3`, `1.5万` as a float."""
    number = re.sub(r"[\s,]", "", number)
    scale = {"万": 1e4, "亿": 1e8}.get(number[-1], 1.0)
    parts = []
    for part in number.rstrip("万亿").split("/"):
        mantissa, _, power = re.sub(r"[×xX*·]?10\^", "^", part).partition("^")
        mantissa = mantissa + "1" if mantissa in ("", "+", "-") else mantissa
        parts.append(float(f"{mantissa}e{power}" if power else mantissa))
    if 0 in parts[1:]:
        return None
    value = scale * parts[0] / math.prod(parts[1:])
    return value if math.isfinite(value) else None
