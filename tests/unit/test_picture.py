"""The ring drawn to scale, compared as text."""

from __future__ import annotations

import pytest
from test_cost import chain_of, host_of, mesh, posed

from edgesplit.revision.cost import evaluate
from edgesplit.revision.picture import ASCII, UNICODE, Marks, marks_for, ring
from edgesplit.split import split_from_placement


def ring_of(placement: str, marks: Marks, width: int, **seconds: float) -> list[str]:
    hosts = {name: host_of(seconds.get(name, 0.01), 500) for name in sorted(set(placement))}
    problem = posed(chain_of([2] * (len(placement) - 2)), hosts, mesh("".join(hosts), rtt=0.02))
    return ring(evaluate(split_from_placement(placement), problem), problem, marks, width)


def test_bars_follow_each_other_and_are_to_scale() -> None:
    """Layers of 10 ms each; a hop takes 10 ms and 1 ms per token."""
    assert ring_of("aabbba", ASCII, 60) == [
        "      a token, 62.1 ms            a chunk of 10, 80.1 ms",
        "0  a   16% ###                     12% ###",
        "   v   18%    ....                 25%    .....",
        "1  b   48%        ##########       37%         ########",
        "   v   18%                  ....   25%                 .....",
        "2  a    0%                          0%",
    ]


def test_no_line_is_wider_than_asked() -> None:
    for width in (60, 80, 110):
        assert max(map(len, ring_of("a" + "bc" * 20 + "a", UNICODE, width))) <= width


def test_what_takes_time_is_seen_however_short() -> None:
    lines = ring_of("abc" + "a" * 100 + "ba", ASCII, 80, b=0.000001, c=0.000001)
    assert all("#" in line or "." in line for line in lines[2:-1])  # embedding and head take none


def test_long_names_are_cut() -> None:
    name = "h" * 63
    problem = posed(chain_of([2]), {name: host_of(0.01, 9), "a": host_of(0.01, 9)}, mesh(("a", name)))
    costs = evaluate(split_from_placement(["a", name, "a"]), problem)
    lines = ring(costs, problem)
    assert lines[3].startswith("1  " + "h" * 18 + "…  ")
    assert max(map(len, lines)) <= 80


def test_an_encoder_has_no_tokens() -> None:
    problem = posed(chain_of([2], kind="encoder"), {"a": host_of(0.01, 9)}, {})
    assert ring(evaluate(split_from_placement("aaa"), problem), problem, ASCII, 30) == [
        "      a text, 10 ms",
        "0  a  100% ###################",
    ]


@pytest.mark.parametrize(
    ("encoding", "marks"), [("utf-8", UNICODE), ("ascii", ASCII), ("latin-1", ASCII), ("no such", ASCII)]
)
def test_the_marks_are_those_a_terminal_can_show(encoding: str, marks: object) -> None:
    assert marks_for(encoding) is marks
