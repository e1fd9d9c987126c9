r"""Units behind a value, and what agrees: `5 cm` is `0.05 m`, not `5 km`; `40 cents` is `\$0.40`; `5 apples` is `5`.

split_unit(r"15 \text{cm}^2")      -> ("15", Unit(1/10000, (("metre", 2),)))
split_unit("18 red eggs per day")  -> ("18", Unit(1, (), {"red", "egg", "per", "day"}))   things: words to compare
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

_TABLE = """
metre: 1 m metre meter; 1/100 cm centimetre centimeter; 1/1000 mm millimetre millimeter; 1000 km kilometre kilometer
metre: 127/5000 in inch inche; 381/1250 ft foot feet; 1143/1250 yd yard; 201168/125 mi mile
gram: 1 g gram; 1000 kg kilogram kilo; 1/1000 mg milligram
pound: 1 lb pound; 1/16 oz ounce; 2000 ton
second: 1 s sec second; 60 min minute; 3600 h hr hour; 86400 day; 604800 week
year: 1 year yr; 1/12 month; 10 decade; 100 century
litre: 1 l litre liter; 1/1000 ml millilitre milliliter
gallon: 1 gallon gal; 1/4 quart qt; 1/8 pint pt; 1/16 cup
dollar: 1 dollar usd buck; 1/100 cent
euro: 1 euro eur
yuan: 1 yuan rmb
newton: 1 N newton
joule: 1 J joule; 1000 kJ kilojoule
watt: 1 W watt; 1000 kW kilowatt
volt: 1 V volt
degree: 1 degree deg
unit: 1 unit
"""
KNOWN = {
    name: (Fraction(entry.split()[0]), base)
    for base, _, entries in (line.partition(":") for line in _TABLE.split("\n") if line)
    for entry in entries.split(";")
    for name in entry.split()[1:]
}
_RATES = {"mph": "mile per hour", "kph": "km per hour", "kmh": "km per hour"}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_IDLE = {"of", "the", "a", "an", "in", "each", "total", "and"}
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_WORD = rf"(?:\\text\{{[^{{}}]*\}}|(?<![A-Za-z\\])[A-Za-z]+(?![A-Za-z])\.?){_POWER}"
_UNIT = re.compile(
    rf"(?<=[\d)}}\]!|.\sia-z])(?<![a-z]\s)(?<!\\)\s*((?:{_WORD})(?:[\s/*-]*(?:\\cdot\s*)?{_WORD})*)$", re.A
)
_PART = re.compile(r"(/|[A-Za-z]+)\s*(?:\^\s*\{?\s*(-?\d))?")


@dataclass(frozen=True)
class Unit:
    """A unit: how many basic ones it is, these with their powers, and the things that are counted."""

    factor: Fraction
    base: tuple[tuple[str, int], ...]
    things: frozenset[str]
    compound: bool = False
    """Whether the value is made of several quantities, so that no number of it stands alone."""

    def within(self, other: Unit) -> Fraction | None:
        """How many of this unit are one of the other; None where they differ in kind, like apples and metres.

        `red apples` are apples; square metres are square units.
        """
        if "unit" in dict(self.base + other.base):
            return Fraction(1) if sum(dict(self.base).values()) == sum(dict(other.base).values()) else None
        things = self.things <= other.things or other.things <= self.things
        return other.factor / self.factor if things and self.base == other.base else None


def split_unit(text: str) -> tuple[str, Unit | None]:
    """The value and its unit, None where there is none; letters alone are a unit if they are a word or known."""
    match = _UNIT.search(text)
    if match is None:
        return text, None
    value, words = text[: match.start()].strip(), match[1]
    plain = value[-1:].isdigit() or value.endswith("%")
    bare = re.findall(r"[A-Za-z]+", re.sub(r"\\text\{[^{}]*\}|\\cdot", " ", words))
    letters = bare[1:] if bare and words.startswith(bare[0]) else bare
    for word in bare:
        known = word in KNOWN or word in _RATES or word.lower().rstrip("s") in KNOWN
        known = known or (plain and len(word) > 2) or word in _POWERS or word in _IDLE or word == "per"
        if not (len(word) > 1 and known) and not (word in letters and word in KNOWN):
            return text, None
    if not value:
        return text, None
    return value, _unit(words)


def _unit(words: str) -> Unit:
    """What `\\text{square feet}`, `km/h`, `dollars per day`, `red apples` mean."""
    text = re.sub(r"\\text\{([^{}]*)\}|\\cdot", r" \1 ", words)
    text = re.sub(r"(?i)\b(?:mph|kph|kmh)\b", lambda match: _RATES[match[0].lower()], text)
    factor, base, things, sign, power, last = Fraction(1), Counter[str](), set[str](), 1, 1, ""
    for word, written in _PART.findall(text):
        name = word
        if word not in KNOWN:
            small = word.lower()
            name = small if small in KNOWN or len(small) < 3 or small.endswith("ss") else small.removesuffix("s")
        if name in {"/", "per"}:
            sign = -1
        elif name in {"squared", "cubed"} and last:
            factor *= KNOWN[last][0] ** ((_POWERS[name] - 1) * sign)
            base[KNOWN[last][1]] += (_POWERS[name] - 1) * sign
        elif name in _POWERS:
            power = _POWERS[name]
        elif name in KNOWN and name != last:
            exponent = sign * (int(written) if written else power)
            factor *= KNOWN[name][0] ** exponent
            base[KNOWN[name][1]] += exponent
            last, power = name, 1
        elif name not in KNOWN and name not in _IDLE:
            things.add(name)
    return Unit(factor, tuple(sorted((name, power) for name, power in base.items() if power)), frozenset(things))
