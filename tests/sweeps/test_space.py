"""Values of swept keys, against the definitions of their distributions."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from attn_cli.errors import Refused
from attn_cli.sweeps import space

DRAWS = 2000


def parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def drawn(word: str) -> list[float]:
    values = space.values(parsed(word))
    return [float(space.draw([("key", values)], 0, number)[0].partition("=")[2]) for number in range(DRAWS)]


def distance(sample: list[float], share_below: object) -> float:
    """Kolmogorov and Smirnov's: the largest difference between the shares below a value."""
    return max(abs((i + 0.5) / len(sample) - share_below(x)) for i, x in enumerate(sorted(sample)))  # type: ignore[operator]


def test_an_interval_is_uniform() -> None:
    assert distance(drawn("key=interval(0.1,0.5)"), lambda x: (x - 0.1) / 0.4) < 1.95 / math.sqrt(DRAWS)  # 0.1 %


def test_a_logarithmic_interval_is_uniform_in_the_logarithm() -> None:
    sample = drawn("key=tag(log,interval(1e-4,1e-1))")
    assert distance(sample, lambda x: math.log10(x / 1e-4) / 3) < 1.95 / math.sqrt(DRAWS)


def test_whole_numbers_include_both_ends_and_are_equally_likely() -> None:
    counts = Counter(drawn("key=int(interval(2,5))"))
    assert set(counts) == {2, 3, 4, 5}
    assert all(abs(count - DRAWS / 4) < 4 * math.sqrt(DRAWS * 3 / 16) for count in counts.values())


def test_whole_numbers_on_a_logarithmic_scale() -> None:
    counts = Counter(drawn("key=tag(log,int(interval(1,8)))"))
    assert set(counts) == set(range(1, 9))
    for number, count in counts.items():
        share = math.log((number + 0.5) / (number - 0.5)) / math.log(8.5 / 0.5)
        assert abs(count - DRAWS * share) < 4 * math.sqrt(DRAWS * share * (1 - share))


@pytest.mark.parametrize("word", ["key=2,5,8", "key=choice(2,5,8)", "key=range(2,9,3)"])
def test_listed_values_are_equally_likely(word: str) -> None:
    counts = Counter(drawn(word))
    assert set(counts) == {2, 5, 8}
    assert all(abs(count - DRAWS / 3) < 4 * math.sqrt(DRAWS * 2 / 9) for count in counts.values())


def test_draws_stay_inside_after_rounding_to_six_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Edge(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    interval = space.values(parsed("key=interval(0,0.1234567)"))
    assert isinstance(interval, space.Interval) and interval.draw(Edge()) == 0.1234567
    monkeypatch.setattr(space.random, "Random", Edge)
    assert space.draw([("key", interval)], 0, 1) == ["key=0.1234567"]
    assert space.written(0.1234567) == "0.123457" and float(space.written(0.00123456789)) == 0.00123457


def test_a_draw_depends_on_key_seed_and_number_alone() -> None:
    lr = ("optimizer.lr", space.values(parsed("optimizer.lr=interval(0.1,0.5)")))
    sigma = ("model.sigma", space.values(parsed("model.sigma=interval(0.1,0.5)")))
    assert space.draw([lr], 0, 3) == space.draw([sigma, lr], 0, 3)[1:]
    values = {space.draw([lr], seed, number)[0] for seed in range(3) for number in range(3)}
    assert len(values) == 9
    assert space.draw([sigma], 0, 3)[0].partition("=")[2] != space.draw([lr], 0, 3)[0].partition("=")[2]


def test_a_range_of_fractions_has_no_stray_digits() -> None:
    assert space.listed(parsed("key=range(0.1,0.5,0.1)")) == ("0.1", "0.2", "0.3", "0.4")
    assert space.listed(parsed("key=range(2e-5,7e-5,2e-5)")) == ("2e-05", "4e-05", "6e-05")
    assert space.listed(parsed("key=range(1.0,3.0)")) == ("1.0", "2.0")
    assert space.listed(parsed("key=range(2,5)")) == ("2", "3", "4")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("key=tag(log,interval(0,1))", "a logarithmic interval begins above 0"),
        ("key=tag(lgo,interval(1,2))", "the only tag is log, not lgo"),
        ("key=interval(2,1)", "an interval goes from a number to a larger one"),
        ("key=interval(0,inf)", "an interval goes from a number to a larger one"),
        ("key=range(5,2)", "has no values"),
    ],
)
def test_what_cannot_be_drawn_is_refused(word: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        space.values(parsed(word))
