"""Numbers by reference: what is printed was recorded, and comes out as plain text."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labd.errors import ResearchError
from labd.research import numbers
from labd.research.numbers import (
    MAX_TEMPLATE_CHARS,
    Reference,
    fill,
)
from labd.research.pandoc import Limits, read_markdown
from labd.research.printing import escape_markdown, show_number
from tests.typed import untraced

LAYOUT = Path(numbers.__file__).parent / "layout"
CONTEXT: dict[str, Any] = {
    "best": {"accuracy": {"mean": 0.97312, "n": 10}, "p": 0.0001, "difference": -0.01234},
    "trials": [
        {"name": "trial-000", "value": 0.91},
        {"name": "trial-001", "value": None},
        {"name": "trial-002", "value": 0.95},
    ],
    "versions": {"numpy": "2.4.1", "scikit-learn": "1.9.0"},
    "nothing": None,
    "flag": True,
    "count": 1,
    "path": "plots/a.png",
    "bad": float("nan"),
    "close": 0.04996,
}


def text_of(template: str, **more: object) -> str:
    return fill(template, CONTEXT | more).text


def problem_of(template: str, **more: object) -> str:
    with pytest.raises(ResearchError) as caught:
        fill(template, CONTEXT | more)
    return str(caught.value)


def test_a_number_is_shown_and_traced_to_its_path_and_full_value() -> None:
    filled = fill("Mean {{ best.accuracy.mean | num(3) }} of {{ best.accuracy.n }}.", CONTEXT)
    assert filled.text == "Mean 0.973 of 10."
    assert filled.references == (
        Reference("best.accuracy.mean", 0.97312, "0.973"),
        Reference("best.accuracy.n", 10, "10"),
    )


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{ best.accuracy.mean | pct }}", "97.3\u00a0%"),
        ("{{ best.accuracy.mean | pct(2) }}", "97.31\u00a0%"),
        ("{{ best.difference | signed(2) }}", "\u22120.012"),
        ("{{ best.accuracy.mean | signed(2) }}", "+0.97"),
        ("{{ best.p | p }}", "\\< 0.001"),
        ("{{ best.accuracy.mean | p_is }}", "= 0.973"),
        ("{{ close | p }}", "0.04996"),
        ("{{ best.accuracy.n | dur }}", "10 s"),
        ("{{ count | counted('trial') }}", "1 trial"),
        ("{{ best.accuracy.n | counted('trial') }}", "10 trials"),
        ("{{ trials | count }}", "3"),
        ("{{ flag }}", "true"),
        ("{{ best.accuracy.mean }}", "0.97312"),
        ("{{ versions['scikit-learn'] }}", "1.9.0"),
        ("{{ trials[2].name | code }}", "`trial-002`"),
        ("{{ path | path }}", "plots/a.png"),
        ("{{ 'more' if best.accuracy.n > 5 else 'fewer' }}", "more"),
    ],
)
def test_each_filter_prints_as_promised(template: str, shown: str) -> None:
    assert text_of(template) == shown


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0.0, 4, "0"),
        (0.93, 3, "0.930"),
        (12345.6, 3, "12346"),
        (-2.5, 2, "\u22122.5"),
        (0.0000123, 3, "1.23e\u22125"),
        (1.5e12, 3, "1.50e12"),
        (0.9999, 2, "1.00"),
    ],
)
def test_numbers_keep_their_significant_digits(value: float, digits: int, shown: str) -> None:
    assert show_number(value, digits) == shown


def test_lists_and_named_items_are_gone_through_with_their_paths() -> None:
    filled = fill(
        "{% for t in trials | best_first('higher') | first(1) %}{{ t.name }} {{ t.value }};{% endfor %}"
        "{% for name, version in versions | items %} {{ name }} {{ version }}{% endfor %}",
        CONTEXT,
    )
    assert filled.text == "trial-002 0.95; numpy 2.4.1 scikit-learn 1.9.0"
    assert [r.path for r in filled.references[:2]] == ["trials[2].name", "trials[2].value"]


def test_lower_is_better_turns_the_order_round() -> None:
    template = "{% for t in trials | best_first('lower') %}{{ t.name }} {% endfor %}"
    assert text_of(template) == "trial-000 trial-002 "


def test_all_unknown_references_are_reported_at_once_with_line_and_nearest_name() -> None:
    said = problem_of("{{ bets.p }}\n{{ best.accuracy.maen | num }}\n\n{{ trials[7].value }}")
    assert "line 1: bets is not recorded (nearest: best)" in said
    assert "line 2: best.accuracy.maen is not recorded (nearest: mean)" in said
    assert "trials.7 is not recorded" in said


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ nothing }}", "nothing is empty (null) and can't be printed"),
        ("{{ nothing | num }}", "nothing is empty (null), not a number"),
        ("{{ trials[1].value | num }}", "trials[1].value is empty"),
        ("{{ best }}", "best is a group of values"),
        ("{{ trials }}", "trials is a list"),
        ("{{ bad }}", "bad is not finite"),
        ("{{ bad | num }}", "bad is not finite"),
        ("{{ flag | num }}", "flag is true or false, not a number"),
        ("{{ versions.numpy | num }}", "versions.numpy is a text, not a number"),
        ("{% for x in best %}{% endfor %}", "best is no list"),
        ("{{ best | path }}", "best is no plain relative path"),
    ],
)
def test_what_is_no_single_value_is_refused_by_its_path(template: str, reason: str) -> None:
    assert reason in problem_of(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 0.93 }}",
        "{{ '0.93' }}",
        "{{ 0.93 | num }}",
        "{{ '93' | code }}",
        "{{ [1] | first(1) }}",
        "{% for t in trials %}{{ loop.index }}{% endfor %}",
        "{{ '0.93' if flag else 'x' }}",
    ],
)
def test_a_typed_number_does_not_pass_as_a_recorded_one(template: str) -> None:
    with pytest.raises(ResearchError):
        fill(template, CONTEXT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ best.p + 1 }}",
        "{{ best.p ~ 'x' }}",
        "{{ best.items() }}",
        "{{ range(9) }}",
        "{{ best.__class__ }}",
        "{{ best['__class__'] }}",
        "{{ flag.__class__.__mro__ }}",
        "{{ trials | attr('raw') }}",
        "{{ best.raw }}",
        "{{ best.filler }}",
        "{{ self }}",
        "{{ loop }}",
        "{% for t in trials %}{{ loop.__init__ }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as x %}",
        "{% set x = best %}",
        "{% macro m() %}{% endmacro %}",
        "{% block b %}{% endblock %}",
        "{{ best.accuracy.mean | nmu }}",
        "{{ best.accuracy.mean | pprint }}",
        "{{ best.p | num('x') }}",
        "{{ best.p | num(best.p) }}",
        "{{ best.p | num(digits=3) }}",
        "{{ best.p | num(3, 4) }}",
        "{{ best.p | num(*trials) }}",
        "{{ count | counted('93 of 94 trial') }}",
        "{{ count | counted(versions.numpy) }}",
        "{{ path | codeblock('x\\n```\\n# H') }}",
        "{{ path | first }}",
        "{{ trials | best_first }}",
        "{% for a, b in trials %}{% endfor %}",
        "{% if best in 'abc' %}{% endif %}",
        "{{",
        "{% for %}",
        "{{" + "(" * 5000 + "best" + ")" * 5000 + "}}",
        "{% if flag %}" * 300 + "{% endif %}" * 300,
        "{% for a in trials %}" * 14 + "{{ a.name }}" + "{% endfor %}" * 14,
        "x" * (MAX_TEMPLATE_CHARS + 1),
    ],
)
def test_a_template_can_only_look_up_loop_and_ask(template: str) -> None:
    with pytest.raises(ResearchError):
        fill(template, CONTEXT)


def test_a_template_with_jinja_in_a_value_prints_it_and_does_not_run_it() -> None:
    assert "best" in text_of("{{ evil }}", evil="{{ best.p }}{% for %}")
    assert "0.0001" not in text_of("{{ evil }}", evil="{{ best.p }}")


NASTY = [
    "<script>alert(1)</script>",
    "[x](http://evil.example)",
    "![x](http://evil.example/x.png)",
    "<http://evil.example>",
    "https://evil.example www.evil.example",
    "# heading",
    "- item",
    "1. item",
    "a) item",
    "(@) item",
    "> quote",
    "    code",
    "`code` ``code``",
    "$x$ $$y$$",
    "*a* _b_ **c** ~d~ ^e^",
    "---\ntitle: x\n---",
    "a\n\n# b",
    "a | b | c",
    "[^1] ^[note] [@cite]",
    "\\input{/etc/passwd} \\newline\\",
    "&amp; &lt; &#60;",
    ": definition",
    "::: div",
    "{{ best.p }} {% raw %}",
    "x{.class #id onclick=y}",
    "\x1b[31mred\x00 \u202eevil",
    "`a`{=html}",
    "Table: x",
    "===",
    "",
    "  ",
    "\\",
    "\\\\",
]


def words_of(blocks: list[dict[str, Any]]) -> str:
    """Give the text of paragraphs of bare words; anything else is an error."""
    out = []
    for block in blocks:
        assert block["t"] in {"Para", "Plain"}, block
        for inline in block["c"]:
            assert inline["t"] in {"Str", "Space"}, inline
            out.append(inline.get("c", " "))
    return "".join(out)


PLACES = """{{ v }}

So {{ v }} it is

x{{ v }}

# {{ v }}

> {{ v }}

- {{ v }}

| a | b |
|---|---|
| {{ v }} | {{ v | code }} |

{{ v | codeblock("yaml") }}

end
"""


@pytest.mark.parametrize("value", NASTY)
def test_a_hostile_value_is_literal_text_wherever_it_is_printed(value: str) -> None:
    blocks, warnings = read_markdown(text_of(PLACES, v=value), Limits())
    assert not warnings
    kinds = [
        "Para",
        "Para",
        "Para",
        "Header",
        "BlockQuote",
        "BulletList",
        "Table",
        "CodeBlock",
        "Para",
    ]
    assert [block["t"] for block in blocks] == kinds
    cells = blocks[6]["c"][4][0][3][0][1]
    assert len(cells) == 2
    printed = [
        blocks[0],
        blocks[3]["c"][2],
        blocks[4]["c"][0],
        blocks[5]["c"][0][0],
        cells[0][4][0],
    ]
    shown = [words_of([p if isinstance(p, dict) else {"t": "Plain", "c": p}]) for p in printed]
    assert len(set(shown)) == 1
    assert words_of(blocks[1:2]) == f"So {shown[0]} it is"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.sampled_from(string.printable + "é한\u2028"), min_size=1, max_size=40),
        min_size=1,
        max_size=40,
    )
)
def test_escaped_text_reads_back_as_itself(values: list[str]) -> None:
    values = [" ".join(value.split()) for value in values]
    values = [value for value in values if value and value.isprintable()]
    blocks, warnings = read_markdown("\n\n".join(map(escape_markdown, values)), Limits())
    assert not warnings
    assert [words_of([block]) for block in blocks] == values


def test_each_sign_of_markup_is_escaped_for_every_reader_of_markdown() -> None:
    for char in "\\`*_{}[]<>#~^$@&|!":
        assert escape_markdown(f"a{char}b") == f"a\\{char}b"


def test_a_long_value_is_cut_and_says_so() -> None:
    shown = escape_markdown("x" * 5000, limit=100)
    assert shown.startswith("x" * 100 + "…")
    assert "4900" in shown


def test_digits_in_prose_are_found_with_their_line() -> None:
    template = "# 2.1 Method\n\nA share of 93.5 % {{ best.p | num(3) }}\nand 3e-4 or -7."
    assert [(found.text.rstrip("."), found.line) for found in untraced(template)] == [
        ("93.5", 3),
        ("3e-4", 4),
        ("-7", 4),
    ]


@pytest.mark.parametrize(
    "template",
    [
        "{{ x | num(3) }} {% if n > 3 %}a{% endif %} {# 5 #}",
        "```\n55\n```\n\n`x = 5`",
        "See Figure 3, Table 12 and Section 2.1.",
        "SHA-256, F1, CIFAR-10",
        "1. first\n2. second",
        "![x](plot-3.png) [y](#section-4)",
        "no digits",
    ],
)
def test_code_names_and_references_are_no_typed_numbers(template: str) -> None:
    assert untraced(template) == []


@pytest.mark.parametrize("path", sorted(LAYOUT.glob("*.md.j2")), ids=lambda path: path.name)
def test_the_layouts_of_papers_type_no_number(path: Path) -> None:
    assert untraced(path.read_text()) == []
