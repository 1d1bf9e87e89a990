"""Formulas from untrusted text: which may go to TeX, where a formula is a program. Pure."""

import re

MAX_CHARS = 2000

# What both texmath and amsmath know, and what can neither define, read nor write.
_WORDS = re.compile(
    r"""
    alpha | beta | gamma | delta | epsilon | varepsilon | zeta | eta | theta | vartheta |
    iota | kappa | lambda | mu | nu | xi | pi | rho | sigma | tau | upsilon | phi | varphi |
    chi | psi | omega | Gamma | Delta | Theta | Lambda | Xi | Pi | Sigma | Upsilon | Phi |
    Psi | Omega | frac | tfrac | dfrac | binom | sqrt | sum | prod | int | iint | oint | lim |
    limsup | liminf | sup | inf | min | max | arg | log | ln | exp | sin | cos | tan | det |
    dim | ker | Pr | hat | bar | tilde | vec | dot | ddot | overline | underline | widehat |
    widetilde | overbrace | underbrace | mathbb | mathbf | mathcal | mathfrak | mathit |
    mathrm | mathsf | mathtt | boldsymbol | operatorname | text | textbf | textit | textrm |
    left | right | big | Big | bigl | bigr | Bigl | Bigr | cdot | cdots | ldots | dots |
    vdots | ddots | times | div | pm | mp | ast | star | circ | bullet | oplus | otimes | le |
    leq | ge | geq | ne | neq | equiv | approx | sim | simeq | cong | propto | ll | gg |
    subset | subseteq | supset | supseteq | in | notin | ni | cup | cap | setminus | emptyset |
    forall | exists | neg | land | lor | wedge | vee | to | rightarrow | leftarrow |
    Rightarrow | Leftarrow | leftrightarrow | Leftrightarrow | mapsto | infty | partial |
    nabla | ell | Re | Im | mid | nmid | parallel | perp | angle | langle | rangle | lfloor |
    rfloor | lceil | rceil | lVert | rVert | lvert | rvert | quad | qquad | prime | dagger |
    top | bot | hbar | colon | displaystyle | textstyle
    """,
    re.VERBOSE,
)
_TOKEN = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_TAKES_TERMS = re.compile(
    r"\\(tfrac|dfrac|frac|binom|sqrt|overline|underline|widehat|widetilde|overbrace|underbrace|math\w+"
    r"|boldsymbol|operatorname|text\w*)(?![A-Za-z])"
)
# An index of nothing, and two indices on one term: TeX takes neither.
_BAD_INDEX = re.compile(
    r"[\^_]\s*(?:[\^_}]|$)|(?P<sign>[\^_])\s*(?:\w|\\[A-Za-z]+|\{[^{}]*\})\s*(?P=sign)"
    r"|\\(?:hat|bar|tilde|vec|dot|ddot|left|right|big|Big|bigl|bigr|Bigl|Bigr)\s*(?:[\^_}]|$)"
)
_SIGNS = frozenset("{},;:!| ")


def math_problem(tex: str) -> str | None:
    """Say why a formula is not let through to TeX, or give None.

    Only known commands pass: in a .tex file a formula is a program.
    """
    if len(tex) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    for match in _TOKEN.finditer(tex):
        name = match.group(1)
        if not _WORDS.fullmatch(name) and name not in _SIGNS:
            return f"unknown command \\{name}"
    bare = _TOKEN.sub(lambda m: " " if m.group(1) in _SIGNS else m.group(), tex)
    bad = set(bare) & set('%#~$&`"') or {"^^"} & {bare[i : i + 2] for i in range(len(bare))}
    if bad or "\n\n" in tex or bare.endswith("\\"):
        return "signs that end or leave a formula"
    if not _balanced(bare) or len(re.findall(r"\\left\b", bare)) != len(
        re.findall(r"\\right\b", bare)
    ):
        return "brackets that do not match"
    if not bare.strip() or _BAD_INDEX.search(bare) or not _terms_there(bare):
        return "a command or index without its term"
    return None


def _terms_there(tex: str) -> bool:
    """Say whether each command that takes terms in braces has them."""
    for match in _TAKES_TERMS.finditer(tex):
        rest = tex[match.end() :].lstrip()
        if match.group(1) == "sqrt" and rest.startswith("["):
            rest = rest[rest.find("]") + 1 :].lstrip() if "]" in rest else ""
        for _ in range(2 if match.group(1) in {"frac", "tfrac", "dfrac", "binom"} else 1):
            if not rest.startswith("{"):
                return False
            rest = rest[_group_end(rest) :].lstrip()
    return True


def _group_end(tex: str) -> int:
    depth = 0
    for at, char in enumerate(tex):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return at + 1
    return len(tex)


def _balanced(tex: str) -> bool:
    depth = 0
    for char in tex:
        depth += (char == "{") - (char == "}")
        if not 0 <= depth <= 20:
            return False
    return depth == 0
