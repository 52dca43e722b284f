"""The reference answers of the shipped questions in math, reasoning and extraction, reckoned again."""

import random
from calendar import monthrange
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import cache
from itertools import combinations, pairwise, permutations, product
from math import comb, isqrt, prod

import pytest

from potstill.questions import shipped_questions
from potstill.reading.formats import read_file
from potstill.records import Prompt

PROMPTS = list(read_file(shipped_questions()["dialogues"], Prompt))
REFERENCES = {prompt.id: prompt.references for prompt in PROMPTS}


def says(number: int, turn: int, *parts: str) -> None:
    """The reference answer to that turn holds each of these."""
    text = REFERENCES[f"dialogue-{number:03d}"][turn - 1]
    assert [part for part in parts if part not in text] == [], text


# ---- reasoning


def test_021_the_race() -> None:
    def orders(fact: Callable[[dict[str, int]], bool] = lambda place: True) -> list[str]:
        return [
            ", ".join(order)
            for order in permutations(("Ana", "Bo", "Cem", "Dua", "Eli"))
            for place in [{name: at for at, name in enumerate(order)}]
            if place["Cem"] == place["Ana"] + 1
            and place["Eli"] < place["Bo"]
            and 0 < place["Dua"] < 4
            and abs(place["Bo"] - place["Dua"]) > 1
            and fact(place)
        ]

    one, other = orders()
    says(21, 1, one, other)
    settled = [
        orders(lambda place: place["Eli"] < place["Dua"]),
        orders(lambda place: place["Dua"] != 2),
        orders(lambda place: place["Ana"] < place["Eli"]),
    ]
    says(21, 2, *(f"({letter}) settles it: {order}" for letter, (order,) in zip("abc", settled, strict=True)))
    assert len(orders(lambda place: place["Cem"] < place["Bo"])) == 2


def test_022_the_island() -> None:
    def worlds(*claims: Callable[[bool, bool, bool], bool]) -> list[tuple[bool, ...]]:
        kinds = product([True, False], repeat=3)
        return [kind for kind in kinds if all(kind[i] == claim(*kind) for i, claim in enumerate(claims))]

    first = worlds(lambda a, b, c: a + b + c == 2, lambda a, b, c: a == c, lambda a, b, c: not b)
    assert first == [(False, True, False), (False, False, True)]
    assert worlds(lambda a, b, c: a + b + c == 2, lambda a, b, c: a == c, lambda a, b, c: not a) == [
        (False, False, True)
    ]
    says(22, 1, "A is certainly a liar", "(A liar, B liar, C truthful) and (A liar, B truthful, C liar)")
    says(22, 2, "A and B lie, C tells the truth")


def test_023_the_month() -> None:
    found = {
        (month, monthrange(year, month)[1])
        for year in range(1900, 2300)
        for month in range(1, 13)
        if all(date(year, month, day).weekday() == 5 for day in (1, monthrange(year, month)[1]))
    }
    assert found == {(2, 29)}
    year = next(year for year in range(1900, 2300) if monthrange(year, 2) == (5, 29))
    thirteenth = date(year, 2, 13)
    others = [month for month in range(1, 13) if date(year, month, 13).weekday() == thirteenth.weekday() and month != 2]
    assert (thirteenth.strftime("%A"), others) == ("Thursday", [8])
    assert (date(year, 8, 13) - thirteenth).days == 182
    says(23, 1, "February of a leap year")
    says(23, 2, "Thursday", "August")


def test_024_the_clubs() -> None:
    """Every world of one or two people, which is enough: each premise and claim speaks of one at a time."""
    Person = tuple[int, ...]  # swims, plays chess, likes puzzles, watches quiz shows, sings in the choir

    def worlds(more: Callable[[Person], bool] = lambda person: True) -> Iterator[Sequence[Person]]:
        allowed = [p for p in product((0, 1), repeat=5) if p[1] <= p[2] and not (p[2] and p[3]) and more(p)]
        for size in (1, 2):
            yield from (group for group in combinations(allowed, size) if any(p[0] and p[3] for p in group))

    first = {
        "a": lambda group: any(p[0] and not p[1] for p in group),
        "b": lambda group: not any(p[0] and p[1] for p in group),
        "c": lambda group: not any(p[1] and p[3] for p in group),
        "d": lambda group: any(p[2] and p[0] for p in group),
        "e": lambda group: all(p[1] or not p[2] for p in group),
    }
    for letter, claim in first.items():
        says(24, 1, f"({letter}) {'must be true' if all(map(claim, worlds())) else 'need not be'}")
    second = list(worlds(lambda p: not p[0] or bool(p[1] or p[4])))
    assert all(any(p[4] and p[3] for p in group) and any(p[4] and not p[2] for p in group) for group in second)
    assert all(any(p[4] and not p[1] for p in group) for group in second)
    assert not all(all(p[0] for p in group if p[4]) for group in second)
    assert {any(p[1] and p[4] for p in group) for group in second} == {True, False}


def test_025_the_flatbreads() -> None:
    def rounds(breads: int, apart: int) -> int:
        for count in range(1, 9):
            pairs = [(a, b) for a, b in combinations(range(count), 2) if b - a >= apart]
            if any(max(Counter(sum(each, ())).values()) <= 2 for each in product(pairs, repeat=breads) if each):
                return count
        raise AssertionError

    assert [rounds(5, 1), rounds(5, 2), rounds(3, 2), rounds(3, 1)] == [5, 5, 4, 3]
    says(25, 1, "7.5 minutes")
    says(25, 2, "still take 7.5 minutes", "four rounds, 6 minutes", "would need 4.5 minutes")


def test_026_the_clinics() -> None:
    north, south = ((9, 10), (30, 90)), ((68, 80), (6, 20))
    whole = [Fraction(sum(n for n, _ in c), sum(of for _, of in c)) for c in (north, south)]
    assert whole == [Fraction(39, 100), Fraction(74, 100)]
    even = [sum(Fraction(*form) for form in clinic) / 2 for clinic in (north, south)]
    says(26, 1, "39 of 100", "74 of 100", "90% against 85%", "33% against 30%")
    says(26, 2, *(f"= {float(100 * share):.1f}%" for share in even))


def test_027_the_cube() -> None:
    def painted(*faces: tuple[int, int]) -> Counter[int]:
        return Counter(sum(cube[axis] == at for axis, at in faces) for cube in product(range(4), repeat=3))

    first, second = painted((0, 0), (0, 3), (1, 0), (1, 3)), painted((0, 0), (1, 0), (2, 0), (2, 3))
    says(27, 1, f"No paint: {first[0]}", f"One painted face: {first[1]}", f"Two: {first[2]}")
    says(27, 2, f"No paint: {second[0]}", f"One painted face: {second[1]}", f"Two: {second[2]}", f"New: {second[3]} ")


def test_028_the_card() -> None:
    cards = (11, 14, 15, 25, 31, 32, 43, 44, 53)

    def knows(card: int, left: Sequence[int], told: Callable[[int], int]) -> bool:
        return sum(told(other) == told(card) for other in left) == 1

    def ida(card: int) -> int:
        return card // 10

    def jon(card: int) -> int:
        return card % 10

    unsure = [c for c in cards if not knows(c, cards, ida)]
    sure = [c for c in unsure if not any(knows(d, cards, jon) for d in cards if ida(d) == ida(c))]
    then = [c for c in sure if knows(c, sure, jon)]
    assert [c for c in then if knows(c, then, ida)] == [43]
    says(28, 1, "43.", f"Left: {', '.join(map(str, sure))}.")
    assert [c for c in unsure if not knows(c, unsure, jon)] == [11, 14, 31, 44]
    says(28, 2, "11, 14, 31 and 44.")


def test_029_the_nights() -> None:
    nurses = ("Ira", "Jo", "Kim", "Lev")
    rules = [
        lambda night: night["Kim"] == night["Jo"] + 1,
        lambda night: night["Lev"] != 3,
        lambda night: night["Ira"] > night["Lev"],
        lambda night: night["Ira"] != 3,
    ]

    def rosters(left_out: int | None = None) -> list[str]:
        kept = [rule for at, rule in enumerate(rules) if at != left_out]
        nights = [dict(zip(nurses, order, strict=True)) for order in permutations(range(4))]
        return [
            ", ".join(sorted(night, key=night.__getitem__)) for night in nights if all(rule(night) for rule in kept)
        ]

    assert rosters() == ["Lev, Ira, Jo, Kim"]
    assert [len(rosters(at)) for at in range(4)] == [6, 1, 2, 3]
    says(29, 1, "Lev Monday, Ira Tuesday, Jo Wednesday, Kim Thursday")
    says(29, 2, "6 rosters", "2 (Ira, Lev", "3 (Lev, Ira", *rosters(2), *rosters(3))


def test_030_the_crossings() -> None:
    """Equally dangerous crossings: the worst 20 of 200 fall by nearly half the next year, of itself."""
    chance = random.Random(1)
    before = after = 0
    for _ in range(30):
        first, second = ([sum(chance.random() < 0.05 for _ in range(100)) for _ in range(200)] for _ in range(2))
        worst = sorted(range(200), key=lambda at: -first[at])[:20]
        before, after = before + sum(first[at] for at in worst), after + sum(second[at] for at in worst)
    assert 9 < before / 600 < 10
    assert 0.42 < 1 - after / before < 0.52
    says(30, 1, "about nine or ten each, and about five the next year, a fall of nearly half")


# ---- math


def test_031_the_tea() -> None:
    cups = (1700 - 3 * 240) // 150
    says(31, 1, "Six cups, 80 ml left")
    assert (cups, 1700 - 3 * 240 - cups * 150) == (6, 80)
    left = {(m, c): 1700 - 240 * m - 150 * c for m in range(9) for c in range(13)}
    least = min(ml for ml in left.values() if ml >= 0)
    assert (least, [mix for mix, ml in left.items() if ml == least]) == (20, [(2, 8), (7, 0)])
    says(31, 2, "At least 20 ml", "7 mugs and no cup, or 2 mugs and 8 cups")


def test_032_the_coat_and_033_the_hill() -> None:
    assert Fraction(108) / (Fraction(6, 5) * Fraction(3, 4)) == 120
    assert f"{100 * (120 - 108) / 108:.1f}" == "11.1"
    says(32, 1, "120 euros")
    says(32, 2, "11.1%", "No:")
    assert Fraction(15, 12) + Fraction(15, 20) == 2
    assert Fraction(30, 18) == Fraction(15, 12) + Fraction(15, 36)
    assert Fraction(30, 24) == Fraction(15, 12)
    says(33, 1, "15 km")
    says(33, 2, "36 km/h", "impossible")


def test_034_the_digits_that_increase() -> None:
    numbers = [n for n in range(1000, 10_000) if all(a < b for a, b in pairwise(str(n)))]
    says(34, 1, f"{len(numbers)}. ")
    says(34, 2, f"{sum(n % 3 == 0 for n in numbers)}. ")


def test_035_the_marbles() -> None:
    assert Fraction(comb(5, 2) * 4, comb(9, 3)) == Fraction(10, 21)

    def chance(order: str) -> Fraction:
        counts, whole = {"r": 5, "b": 4}, Fraction(1)
        for colour in order:
            whole *= Fraction(counts[colour], sum(counts.values()))
            counts[colour] += 1
        return whole

    each = {chance(order) for order in ("rrb", "rbr", "brr")}
    assert each == {Fraction(4, 33)}
    says(35, 1, "10/21")
    says(35, 2, f"{3 * each.pop()}. ", "does not matter")


def test_036_the_folded_sheet() -> None:
    """Cells of the sheet that the fold puts on paper, on a fine grid."""
    fine = 200
    double = 0
    for i, j in product(range(fine), repeat=2):
        x, y = (i + 0.5) * 8 / fine, (j + 0.5) * 6 / fine
        beyond = (8 * x + 6 * y - 50) / 100  # in units of the diagonal, from the crease
        double += beyond > 0 and 0 <= x - 16 * beyond <= 8 and 0 <= y - 12 * beyond <= 6
    assert double * 48 / fine**2 == pytest.approx(18.75, abs=0.05)
    assert ((6.25 - 1.75) ** 2 + 6**2) ** 0.5 == 7.5
    says(36, 1, "7.5 cm")
    says(36, 2, "18.75", "29.25")


def test_037_the_remainders() -> None:
    found = [n for n in range(1, 10_000) if (n % 7, n % 9, n % 11) == (3, 5, 4)]
    assert (found[0], len(found), found[-1]) == (59, 15, 9761)
    assert not any(isqrt(n) ** 2 == n for n in found)
    assert 3 not in {n * n % 7 for n in range(7)}
    assert 5 not in {n * n % 9 for n in range(9)}
    says(37, 1, "59")
    says(37, 2, "15 numbers", "9761", "None is a square")


def test_038_the_powers() -> None:
    sums = [2, 4]
    while len(sums) < 1000:
        sums.append(4 * sums[-1] - sums[-2])
    assert sums[4] == round((2 + 3**0.5) ** 4 + (2 - 3**0.5) ** 4) == 194
    says(38, 1, "194")
    says(38, 2, f"the last digit is {sums[999] % 10}")


def test_039_the_die() -> None:
    @cache
    def rolls(target: int) -> Fraction:
        return Fraction(0) if target <= 0 else 1 + sum(rolls(target - face) for face in range(1, 7)) / 6

    @cache
    def met(target: int) -> Fraction:
        return Fraction(target == 0) if target <= 0 else sum(map(met, range(target - 6, target)), Fraction(0)) / 6

    assert met(4) == rolls(4) / 6
    says(39, 1, str(rolls(4)))
    says(39, 2, str(met(4)), "one sixth")


def test_040_the_largest_product() -> None:
    @cache
    def any_parts(left: int) -> int:
        return max([left, *(part * any_parts(left - part) for part in range(1, left))])

    different = [parts for size in range(1, 6) for parts in combinations(range(1, 21), size) if sum(parts) == 20]
    best = max(different, key=prod)
    says(40, 1, str(any_parts(20)))
    says(40, 2, f"{prod(best)} = {' x '.join(map(str, best))}")
    run = [p for p in different if p[0] > 1 and p[-1] - p[0] + 1 - len(p) <= 1]
    says(40, 2, *(f"{'+'.join(map(str, parts))} ({prod(parts)})" for parts in run if len(parts) > 1))
    assert len(run) == 5


# ---- extraction: what of the answers is counted or reckoned


def test_051_the_dates_of_the_minutes() -> None:
    assert date(2024, 6, 4).strftime("%A") == "Tuesday"
    says(51, 1, "2024-06-05", f"price list ready, {date(2024, 6, 7):%Y-%m-%d}")
    assert date(2024, 6, 7).strftime("%A") == "Friday"


def test_052_the_log() -> None:
    text = next(p for p in PROMPTS if p.id == "dialogue-052").messages[0].content
    lines = [line.split(maxsplit=3) for line in text.splitlines() if line[:1] == "0"]
    errors = [(service, time) for time, service, level, *_ in lines if level == "ERROR"]
    counts = Counter(service for service, _ in errors)
    table = [
        f"{service},{count},{max(time for name, time in errors if name == service)}"
        for service, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    says(52, 1, "\n".join(["service,errors,last_error", *table]))
    first, last = (datetime.strptime(time, "%H:%M:%S") for time in (errors[0][1], errors[-1][1]))
    says(52, 2, f"{(last - first).seconds} seconds")


def test_053_the_contract() -> None:
    def months_on(day: date, months: int) -> date:
        years, month = divmod(day.month - 1 + months, 12)
        return date(day.year + years, month + 1, day.day)

    starts = [months_on(date(2022, 3, 1), months) for months in (18, 24, 30)]
    ends = [str(start - timedelta(days=1)) for start in starts]
    assert ends == ["2023-08-31", "2024-02-29", "2024-08-31"]
    says(53, 1, ends[0])
    says(53, 2, *ends[1:], f"{140 * 1.04**2:.2f} euros")


def test_058_the_study() -> None:
    others = 412 - 208
    gap = 63 / others - 44 / 208
    says(58, 1, str(others))
    says(58, 2, f"{100 * 44 / 208:.1f}%", f"{6300 / others:.1f}%", f"{100 * gap:.1f} percentage", f"{1 / gap:.1f}")
