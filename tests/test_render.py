"""Rendering: whatever the text is, there are four files, they look right, and nothing in them is alive."""

import html.parser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pypdf
import pytest

from labd.errors import ResearchError, TimedOut
from labd.research.formula import math_problem
from labd.research.pandoc import Limits, code_block, read_markdown, run_pandoc
from labd.research.render import MAX_TYPESETTINGS, Rendered, render
from labd.research.tidy import MAX_TABLE_ROWS, break_long_words
from tests.records import png_bytes

END = "THE END MARK"
FAST = Limits(read_s=20, write_s=20, typeset_s=30)


def make_paper(out: Path, markdown: str, **over: Any) -> Rendered:
    out.mkdir(exist_ok=True)
    fields: dict[str, Any] = {
        "title": "A title",
        "authors": ["A. Author", "B. Author"],
        "date": "2026-11-22",
        "abstract": "An *abstract*.",
        "figures_root": out,
        "out_dir": out,
        "limits": FAST,
    }
    return render(markdown, **fields | over)


def pdf_text(path: Path) -> str:
    return "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)


def live_tex(path: Path) -> str:
    """Give what TeX would run of a file: all but what stands in verbatim, up to its first end."""
    body = path.read_text().split("\\begin{document}", 1)[1]
    body = re.sub(r"(?s)\\begin\{verbatim\}.*?\\end\{verbatim\}", "", body)
    # The two definitions that pandoc itself writes, with nothing of the text in them.
    return re.sub(r"\\def\\(?:LTcaptype\{none\}|labelenumi\{\\arabic\{enumi\}\.\})", "", body)


class Page(html.parser.HTMLParser):
    """Collects what an HTML file has that a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.shown += data


def assert_inert(rendered: Rendered) -> None:
    page = Page(rendered.html.read_text())
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "link", "base", "svg"}
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in {"href", "src", "action", "srcset", "data", "poster"}:
            assert value.startswith(("#", "data:image/png;base64,")), value
        if name == "style":
            assert "url" not in value
    live = live_tex(rendered.tex)
    for command in (
        "input",
        "include",
        "write",
        "openin",
        "read",
        "def",
        "newcommand",
        "catcode",
        "usepackage",
    ):
        assert not re.search(rf"(?<!\\)\\{command}(?![a-z])", live), command
    assert "^^" not in live
    assert "\x1b" not in rendered.markdown.read_text()


def test_a_text_becomes_four_files_with_title_authors_date_and_abstract(tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(png_bytes())
    markdown = (
        "## First\n\nWords with $a^2$, `code` and *stress*.[^1]\n\n[^1]: A note.\n\n"
        "Table: The caption.\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n"
        "![What is seen](plot.png)\n\n### Second\n\n- one\n- two\n\n```yaml\nkey: value\n```\n"
    )
    rendered = make_paper(tmp_path, markdown)
    assert rendered.warnings == ()
    text = pdf_text(rendered.pdf)
    seen_in_pdf = ("A title", "A. Author, B. Author", "2026-11-22", "Abstract", "1 First", "1.1 Second",
                   "The caption.", "What is seen", "A note.", "key: value")  # fmt: skip
    for part in seen_in_pdf:
        assert part in text
    assert "![What is seen](plot.png)" in rendered.markdown.read_text()
    assert rendered.markdown.read_text().startswith("# A title\n\nA\\. Author, B\\. Author")
    tex = rendered.tex.read_text()
    assert "{plot.png}" in tex
    assert "\\section{First}" in tex
    page = Page(rendered.html.read_text())
    assert {"math", "table", "figure", "img", "h2", "h3"} <= page.tags
    assert_inert(rendered)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    markdown = "# A\n\nText $x$ 한국어.\n\n![p](plot.png)\n\n| a |\n|---|\n| 1 |\n"
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plot.png").write_bytes(png_bytes())
        rendered = make_paper(tmp_path / name, markdown)
        files.append(
            [
                p.read_bytes()
                for p in (rendered.markdown, rendered.tex, rendered.html, rendered.pdf)
            ]
        )
    assert files[0] == files[1]


def test_the_pdf_is_dated_by_the_paper_and_not_by_the_clock(tmp_path: Path) -> None:
    made = pypdf.PdfReader(make_paper(tmp_path, "x", date="2001-02-03").pdf).metadata
    assert made is not None
    assert made.creation_date is not None
    assert made.creation_date.date().isoformat() == "2001-02-03"


UGLY = {
    "latex": r"\input{/etc/passwd} \begin{itemize}\item \write18{ls} \def\x{y}",
    "dollars": r"a $ b $$ c $x_ { $ } \$ $\frac{a}{b $ $ $",
    "formulas": r"$\input{/etc/passwd}$ $^^5cinput{x}$ $a^b^c$ $\left( a$ $\text{\input{x}}$ $a % b$ $\frac$",
    "brackets": "[" * 60 + "x" + "](" * 30,
    "pictures": "![x](/etc/passwd) ![y](../../etc/passwd) ![z](http://evil.example/x.png)",
    "html": "<script>alert(1)</script> <img src=x onerror=alert(1)> <iframe src='http://e.x'></iframe>\n\n"
    "<div onclick='x'>hi</div>\n\n# H {onclick=alert(1) #\"><script>}\n\n::: {onclick=x}\nfoo\n:::",
    "links": "[x](javascript:alert(1)) [y](https://evil.example) <https://evil.example> [z]{onclick=alert(1)}",
    "typst": '#import "@preview/x:1.0.0": *\n\n#panic() `#panic()` $#panic()$ @ref <label> #{ read("/etc/passwd") }',
    "wide": "|" + "name|" * 12 + "\n|" + "--|" * 12 + "\n" + ("|" + "some longer text|" * 12 + "\n") * 3,
    "words": "x" * 3000 + " `" + "y" * 3000 + "`\n\n```\n" + "z" * 3000 + "\n```\n\n|a|\n|-|\n|" + "w" * 300 + "|",
    "signs": "😀 👩\u200d💻 한국어 数据 Ωμέγα кириллица \u202eevil\u202c a\u0301 ∑ ≤ \u2212",
    "control": "a\x00b\x07c\x1b[31md\x85e\ud800f\u202eg\u2028h\tq\rz",
    "large": "word " * 20_000,
    "quotes": ">" * 100 + " x",
    "lists": "\n".join("  " * i + "- x" for i in range(60)),
    "stress": "*a **b " * 300,
    "verbatim": "```\n\\end{verbatim}\\input{/etc/passwd}\n```\n\nx[^1]\n\n[^1]: n\n\n        \\end{Verbatim}\\input{x}\n",
    "notes": "# H^[n] x\n\n| a^[x] |\n|---|\n| c^[d^[e]] |\n\nx[^n]\n\n[^n]: again [^n]\n\n    |a|\n    |-|\n    |1|\n",
    "deep notes": "^[" * 100 + "x" + "]" * 100,
    "yaml": "---\ntitle: stolen\nheader-includes: \\input{/etc/passwd}\n---\n\n% title\n% author",
    "variables": "$body$ $title$ ${x} LABD-UNICODE-DECLARATIONS",
    "terms": "Term $x\n:   def\n\n    ```\n    x\n    ```",
    "same headings": "# a\n\n# a\n\n[to](#a) [nowhere](#b)\n\na\n===",
    "empty": "",
    "empty table": "||\n|-|\n||",
}  # fmt: skip


@pytest.mark.parametrize("name", UGLY)
def test_ugly_text_still_gives_a_whole_and_inert_paper(tmp_path: Path, name: str) -> None:
    ugly = UGLY[name]
    rendered = make_paper(
        tmp_path, f"{ugly}\n\n{END}\n", title=f"T {ugly[:60]}", abstract=ugly[:600]
    )
    text = pdf_text(rendered.pdf)
    assert END in text
    assert END in rendered.html.read_text()
    assert END in live_tex(rendered.tex)
    assert "root:" not in text + rendered.tex.read_text() + rendered.html.read_text()
    assert_inert(rendered)


def test_a_title_is_text_and_never_markup(tmp_path: Path) -> None:
    title = "<b>x</b> *y* $z$ #strong[w] \\textbf{v}\nnext"
    rendered = make_paper(tmp_path, "x", title=title, authors=["<i>a</i> & #b"])
    assert "<b>x</b> *y* $z$ #strong[w] \\textbf{v}" in " ".join(pdf_text(rendered.pdf).split())
    assert "<b>x</b> *y*" in Page(rendered.html.read_text()).shown
    assert "\\textbf{v}" not in live_tex(rendered.tex)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a TeX installation")
@pytest.mark.parametrize(
    "name", ["latex", "formulas", "words", "signs", "verbatim", "notes", "wide"]
)
def test_the_tex_file_compiles_with_plain_tex_live(tmp_path: Path, name: str) -> None:
    rendered = make_paper(tmp_path, f"{UGLY[name]}\n\n{END}\n", abstract=UGLY[name][:300])
    command = [
        "pdflatex",
        "-halt-on-error",
        "-interaction=nonstopmode",
        "-jobname=tex",
        rendered.tex.name,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert END in pdf_text(tmp_path / "tex.pdf")


@pytest.mark.skipif(shutil.which("lualatex") is None, reason="needs a TeX installation")
@pytest.mark.parametrize("engine", ["xelatex", "lualatex"])
def test_other_scripts_are_set_by_the_fonts_that_there_are_or_named(
    tmp_path: Path, engine: str
) -> None:
    rendered = make_paper(
        tmp_path, f"\u11d2 \u03bb \ud55c\uad6d\uc5b4 \u0440\u0443\n\n`\u0440\u0443`\n\n{END}\n"
    )
    command = [engine, "-halt-on-error", "-interaction=nonstopmode", rendered.tex.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert b"Missing character" not in done.stdout
    assert END in pdf_text(tmp_path / "paper.pdf")


def test_only_png_files_below_the_root_are_let_through(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "plots").mkdir(parents=True)
    (out / "plots" / "good.png").write_bytes(png_bytes())
    (out / "text.png").write_text("no picture")
    (out / "huge.png").write_bytes(png_bytes()[:16] + b"\xff" * 8 + png_bytes()[24:])
    (tmp_path / "secret.png").write_bytes(png_bytes())
    (out / "link.png").symlink_to(tmp_path / "secret.png")
    (out / "page.svg").write_text("<svg onload='x'/>")
    names = [
        "plots/good.png",
        "text.png",
        "huge.png",
        "link.png",
        "page.svg",
        "gone.png",
        "../secret.png",
    ]
    rendered = make_paper(out, "\n\n".join(f"![picture of {name}]({name})" for name in names))
    assert len([w for w in rendered.warnings if "left out" in w]) == 6
    assert rendered.html.read_text().count("data:image/png") == 1
    assert live_tex(rendered.tex).count("includegraphics") == 1
    text = " ".join(pdf_text(rendered.pdf).split())
    assert "[picture left out: picture of link.png]" in text


def test_a_block_that_cannot_be_set_is_shown_as_code_and_the_rest_as_it_should_be(
    tmp_path: Path,
) -> None:
    # A header that promises a picture and no picture behind it: only Typst finds out.
    (tmp_path / "broken.png").write_bytes(png_bytes()[:33] + b"garbage")
    parts = [f"Paragraph number {i} with *stress*." for i in range(8)]
    parts.insert(3, "![the broken one](broken.png)")
    rendered = make_paper(tmp_path, "\n\n".join([*parts, END]))
    text = pdf_text(rendered.pdf)
    assert any("shown as code" in warning for warning in rendered.warnings)
    assert "![the broken one]" in text
    assert END in text
    assert "*stress*" not in text


def test_halving_ends_also_when_nothing_can_be_set(tmp_path: Path) -> None:
    with pytest.raises(ResearchError, match="no PDF could be set"):
        make_paper(
            tmp_path,
            "\n\n".join(f"p {i}" for i in range(3 * MAX_TYPESETTINGS)),
            limits=Limits(60, 60, 0.001),
        )


def test_pandoc_runs_by_the_clock() -> None:
    with pytest.raises(TimedOut):
        run_pandoc(["--from", "markdown", "--to", "json"], "word " * 200_000, 0.05)


def test_what_no_reader_gets_through_in_time_is_shown_as_code() -> None:
    blocks, warnings = read_markdown("*x*", Limits(read_s=0.0001))
    assert blocks == [code_block("*x*")]
    assert "shown as code" in warnings[-1]


def test_pandoc_reads_no_file_and_includes_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    source = (
        f".. include:: {tmp_path}/secret\n\n.. raw:: html\n   :file: {tmp_path}/secret\n\nend\n"
    )
    assert "the secret" not in run_pandoc(["--from", "rst", "--to", "plain"], source, 20)


def test_an_overlong_text_and_table_are_cut_with_a_warning(tmp_path: Path) -> None:
    table = "|a|\n|-|\n" + "".join(f"|row{i}|\n" for i in range(MAX_TABLE_ROWS + 5))
    rendered = make_paper(tmp_path, f"{table}\n\n{END}")
    assert any("table was cut" in warning for warning in rendered.warnings)
    assert f"row{MAX_TABLE_ROWS - 1}" in rendered.html.read_text()
    assert f"row{MAX_TABLE_ROWS}" not in rendered.html.read_text()


def test_long_words_stay_inside_the_page(tmp_path: Path) -> None:
    rendered = make_paper(tmp_path, UGLY["words"])
    longest = max(len(line) for line in pdf_text(rendered.pdf).splitlines())
    assert longest < 140


def test_breaks_are_put_into_long_words_only() -> None:
    tree = [
        {
            "t": "Para",
            "c": [{"t": "Str", "c": "x" * 50}, {"t": "Space"}, {"t": "Str", "c": "short"}],
        }
    ]
    long, space, short = break_long_words(tree)[0]["c"]
    assert long["c"].replace("\u200b", "") == "x" * 50
    assert long["c"].count("\u200b") == 3
    assert (space, short) == ({"t": "Space"}, {"t": "Str", "c": "short"})


@pytest.mark.parametrize("date", ["yesterday", "2026-13-01", "20261122", "2026-11-22T00:00:00"])
def test_a_date_that_is_none_is_refused(tmp_path: Path, date: str) -> None:
    with pytest.raises(ResearchError):
        make_paper(tmp_path, "x", date=date)
    assert not (tmp_path / "paper.pdf").exists()


def test_missing_fonts_are_warned_of(tmp_path: Path) -> None:
    assert any("font" in warning for warning in make_paper(tmp_path, "한국어").warnings)
    assert any("font" in warning for warning in make_paper(tmp_path, "สวัสดี").warnings)
    assert make_paper(tmp_path, "Ωμέγα é plain, Բարեւ, नमस्ते").warnings == ()


def test_a_paper_in_another_language_says_so(tmp_path: Path) -> None:
    rendered = make_paper(tmp_path, "x", language="de")
    assert ("lang", "de") in Page(rendered.html.read_text()).attributes
    assert "Zusammenfassung" in pdf_text(rendered.pdf)


@pytest.mark.parametrize(
    "tex",
    [
        r"\input{x}", r"\def\a{b}", r"\csname x\endcsname", "^^5cinput", "a^b^c", "a_b_c", "{", "}", r"\left(",
        r"\frac", r"\frac{a}", r"\sqrt[", r"\hat", "a % b", "#1", "a & b", "x\\", r"\text{a $ b}", r"\text", "", "^",
        "x" * 3000, r"\begin{matrix}", r"\\", "{" * 30 + "}" * 30, r"\write18{ls}", "a\n\nb",
    ],
)  # fmt: skip
def test_a_formula_that_tex_would_act_on_or_choke_on_is_refused(tex: str) -> None:
    assert math_problem(tex) is not None


@pytest.mark.parametrize(
    "tex",
    [
        r"\frac{a}{b}", r"\left( \sum_{i=1}^n x_i \right)^2", r"\bar x \pm s", r"\operatorname{E}[X]", r"\{x\}",
        r"\hat{y}_i^2", r"\text{loss}", r"\sqrt[3]{x}", r"\alpha \le 0.05", "p < 0.001", r"a\,b",
    ],
)  # fmt: skip
def test_an_ordinary_formula_is_let_through(tex: str) -> None:
    assert math_problem(tex) is None


def test_the_typesetting_program_says_what_it_wants_and_what_went_wrong(tmp_path: Path) -> None:
    def typeset(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "labd.research.typeset", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert typeset().returncode == 2
    (tmp_path / "paper.typ").write_text("#let x = \n#undefined-name")
    failed = typeset(str(tmp_path), "2026-11-22", "embedded")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "source",
    [
        '#read("/etc/passwd")',
        '#read("../secret.txt")',
        '#import "@preview/cetz:0.3.0"',
        '#image("/etc/x.png")',
    ],
)
def test_typst_reads_nothing_outside_its_directory_and_fetches_nothing(
    tmp_path: Path, source: str
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (inside / "paper.typ").write_text(source)
    command = [
        sys.executable,
        "-m",
        "labd.research.typeset",
        str(inside),
        "2026-11-22",
        "embedded",
    ]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert not (inside / "paper.pdf").exists()
