"""The words by which a claim, a number or a refusal is known, in the languages that the checker reads.

A list finds what honest and careless writers write. It can't find every way in which a writer who wants to
deceive could say a thing; what such a text can reach is bounded by what labd itself says beside it.
"""

import keyword
import re

LANGUAGES = ("en", "ko")
"""A text in another language can't be checked, and so is not printed."""

# -- numbers in words. `one`, `two`, `first`, `second`, `third` and the like are no measurements.

_UNIT = "three|four|five|six|seven|eight|nine"
_TEENS = "ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
_TENS = "(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
_PARTS = (
    "(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|(?:thir|four|fif|six|seven|eigh|nine)teenth"
    "|(?:twen|thir|for|fif|six|seven|eigh|nine)tieth|hundredth|thousandth|[bmtr]+illionth)"
)
NUMBER_WORDS = re.compile(
    rf"(?i)\b(?:zero(?!-)|{_UNIT}|{_TEENS}|{_TENS}|dozens?|hundreds?|thousands?|[bmtr]+illions?|twice|thrice"
    r"|half|halv(?:es|ed|ing)|quarters?|doubl(?:es?|ed|ing)|tripl(?:es?|ed|ing)|quadrupl\w+|(?!manifold|scaffold|unfold|blindfold)\w+-?fold"
    r"|per ?cent(?:age)?s?|(?:one|two|several) (?:times|orders? of magnitude)|orders? of magnitude"
    # Parts of a whole, and ordinals beyond the third.
    rf"|(?:an?|one|two)[ -]{_PARTS}(?= of\b| (?:as|more|less|fewer)\b)|(?!third\b){_PARTS}|{_PARTS}s"
    r"|(?:one|two) (?:in|out of) (?:one|two)|nought|point (?:oh|nought)|tens of)\b"
    # Roman numerals, but for those that are words of the trade.
    r"|(?-i:(?<![\w.-])(?!(?:CLI|CI|CC|CV|LC|CL)\b)(?=[IVXLC]{2})C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?![\w-]))"
    # Korean: Sino-Korean and native numerals, each with what is counted.
    r"|(?<![영일이삼사오육칠팔구십백천만억])[영일이삼사오육칠팔구십백천만억]++\s{0,3}(?:점\s{0,3}[영공일이삼사오육칠팔구]+)?\s{0,3}(?:퍼센트|프로(?![가-힣])|배(?![가-힣]{2}))"
    r"|(?<![일이삼사오육칠팔구십백천만억])[일이삼사오육칠팔구십백천만억]{2,}+\s{0,3}(?:개|번|회|명|가지|시간|분|초|단계)(?![가-힣]{2})"
    r"|[영공]\s{0,3}점\s{0,3}[영공일이삼사오육칠팔구]+"
    r"|(?<![가-힣])(?:두|세|네|다섯|여섯|일곱|여덟|아홉|열[가-힣]?|스무|서른|마흔|쉰)\s{0,3}배(?![가-힣]{2})"
    r"|(?<![가-힣])(?:세|네|다섯|여섯|일곱|여덟|아홉|열[가-힣]{0,2}|스무|서른|마흔|쉰)\s{0,3}(?:개|번|회|명|가지|차례|시간)"
    r"|(?<![일이삼사오육칠팔구십백천만])[일이삼사오육칠팔구십백천만]++\s{0,3}분의\s{0,3}[일이삼사오육칠팔구]|퍼센트|절반|갑절"
    r"|(?<![가-힣])열에\s{0,3}(?:하나|둘|셋|넷|다섯|여섯|일곱|여덟|아홉)"
    # Chinese and Japanese numerals, where two stand together or a unit follows.
    r"|[〇零一二三四五六七八九十百千万億亿][〇零一二三四五六七八九十百千万億亿.・点]+|[一二三四五六七八九十百千万][倍割成%\uff05]"
)

WORDS_IN_CODE = re.compile(
    rf"(?i)(?<![a-z])(?:{_TEENS}|{_TENS}|hundreds?|thousands?|[bmtr]+illions?|per ?cent|percentage)(?![a-z])"
)
"""Numbers in words that no name in a program has."""
KEYWORDS = frozenset(keyword.kwlist)
"""Words that stand beside others in a program."""

# -- claims

_METRIC_EN = (
    r"accura\w+|loss|losses|errors?|performance|scores?|results?|metrics?|quality|perplexity"
)
_METRIC_KO = r"정확도|손실|오류|오차|성능|점수|결과|지표|품질"
OUTCOMES = re.compile(rf"(?i)\b(?:{_METRIC_EN})\b|{_METRIC_KO}")
"""What a measurement is called in general; the metric's own name comes beside it."""

POSITIVE = re.compile(
    r"(?i)\b(?:improv\w+|outperform\w*|surpass\w*|exceed\w*|beat(?:s|en|ing)?|outdo\w*|excel(?:s|led)?"
    r"|better|superior\w*|state[- ]of[- ]the[- ]art|sota|significan\w+|gains?|gained|boost\w*|enhanc\w+"
    r"|advantage\w*|breakthrough\w*|remarkabl\w+|substantial\w*|dramatic\w*|impressive\w*|outstanding"
    r"|excellent|success\w*|succeed\w*|effective\w*|benefi(?:t|ts|ted|cial)|superb|optimal\w*|promising"
    r"|wins?|won|helps?|helped|works? (?:well|best)|worked (?:well|best)|triumph\w*|(?:new|best) record|dominates|solv(?:es|ed) the (?:task|problem)|right direction"
    r"|positive (?:effect|impact|influence)|no match for|encouraging|sp(?:eaks?|oke) for|learn(?:s|ed|t) more"
    r"|clos(?:es|ed) the gap|marked difference|(?:is|are|was|were|does|did|performs?|performed) best|perfect(?:ly)?|flawless\w*|faultless\w*"
    r"|ahead of (?:the |our |all )?(?:baseline|original|unmodified|others?)|pa(?:ys|id) off|crush\w*|leaps?|far behind"
    r"|(?:errors?|mistakes?) (?:vanish|disappear)\w*|statistically meaningful|more (?:accurate|precise|reliable|robust)"
    r"|(?<!share of )(?<!fraction of )(?<!proportion of )(?<!number of )(?:all|each|every)\b[^.]{0,60}"
    r"\b(?:correctly|without (?:an? |any )?(?:mistake|error|fault)s?)"
    r"|null (?:hypothesis )?(?:is|was|can be|could be|has been) (?:\w+ly )?rejected|reject(?:s|ed|ing)? the null"
    r"|hypothes[ie]s (?:holds?|held)|hypothes[ie]s (?:is|are|was|were|has been|have been) (?:\w+ly )?"
    r"(?:supported|confirmed|proven|proved|true|correct|right|borne out)"
    r"|support(?:s|ed|ing)? (?:the|this|our|that|its) (?:\w+ )?hypothes[ie]s)\b"
    r"|향상|개선|우수|뛰어나|뛰어난|능가|앞서|앞선|앞섰|유의(?:미|하|한)|낫다|낫[고지]|더\s*(?:좋|나은|나았)|이겼|이긴|효과를\s*(?:거두|보았|보였|얻)"
    r"|가설이\s*(?:옳|맞|입증|성립)|(?:모든|모두|전부)[^.]{0,40}(?:옳게|정확하게|정확히|빠짐없이)|(?:오류|오차|손실)[가이]\s*사라졌|성공|최고|탁월|효과적"
)
NEGATIVE = re.compile(
    r"(?i)\b(?:worse\w*|worst|degrad\w+|deteriorat\w+|inferior|underperform\w*|harm(?:s|ed|ful)?|hurts?"
    r"|detrimental|regress(?:es|ed))\b|나빠|나쁘|나쁜|악화|저하|열등|떨어"
)
CLAIMING = re.compile(
    r"(?i)\b(?:achiev\w+|attain\w*|demonstrat\w+|(?<!to )prov(?:e|es|ed|en)|(?<!to )confirm(?:s|ed)?|evidence|validat(?:es|ed)"
    r"|conclu(?:de|des|ded|sive\w*)|(?<!to )verif(?:y|ies|ied)|show(?:s|n|ed)? that|found that|reveal\w*"
    r"|(?:stronger|weaker|faster|slower|quicker|cheaper|fewer(?: \w+)?|less(?: \w+)?) than (?:the |its |what the )?"
    r"(?:baseline|original|unmodified|reference))\b"
    r"|입증|증명|확인하였|확인했|확인되|달성|보여\s*(?:준|주었|줬)"
)
UP = re.compile(
    r"(?i)\b(?:increas\w+|rais(?:es|ed|ing)|ris(?:es|ing)|rose|grow(?:s|n|ing)?|grew|higher|highest|climb\w*|jump(?:s|ed)?"
    r"|(?:above|beyond) (?:the |what the )?(?:baseline|original))\b"
    r"|증가|상승|올랐|오른|높아|높은|높다|높았"
)
DOWN = re.compile(
    r"(?i)\b(?:decreas\w+|reduc\w+|lower\w*|lowest|drop(?:s|ped)?|falls?|fell|declin\w+|shr[aiu]nk\w*|cuts?"
    r"|(?:below|beneath) (?:the |what the )?(?:baseline|original))\b"
    r"|감소|하락|낮아|낮은|낮다|낮았|줄어|줄었|줄였"
)
NO_NEGATION = re.compile(
    r"(?i)\bnot (?:only|just|merely|simply)\b|\b(?:no|without(?: a| any)?) (?:doubt|question)\b|\bnothing but\b"
)
NEGATION = re.compile(
    r"(?i)\b(?:not?|cannot|never|neither|nor|none|nothing|without|fail(?:s|ed)? to|unable|lack(?:s|ed)?"
    r"|insufficient|inconclusive)\b|n['\u2019]t\b"
)
NEGATION_AFTER = re.compile(r"않|못|없|아니")
"""In Korean the negation follows."""
NO_HEDGE = re.compile(
    r"(?i)\b(?:just )?(?:as|than)(?: (?:we|was|were|it was|initially|originally))* "
    r"(?:expected|hypothesi[sz]ed|hoped|intended|planned|assumed|proposed|predicted)\b"
)
HEDGE = re.compile(
    r"(?i)\b(?:whether|hypothes\w+ (?:that|is|was|states?)|expect(?:s|ed)? (?:to|that|effect|improvement)"
    r"|aim(?:s|ed)? (?:to|at)|intend(?:s|ed)? to|hop(?:e|es|ed|ing) (?:to|that|for)|goal|question|may|might|could"
    r"|would|should|can\b(?!not)|if|try|tries|tried|trying|attempt(?:s|ed)? to|seek(?:s|ing)? to|sought to"
    r"|designed to|meant to|in order to|to (?:test|see|learn|find out)|propos(?:e|es|ed) (?:to|that)"
    r"|potentially|possibl[ey]|future|suppos(?:e|es|ed) that|assum(?:e|es|ed) that|believ(?:e|es|ed)"
    r"|threshold|require[sd]?)\b"
)
HEDGE_KO = re.compile(
    r"수\s*있|예상|기대|가설(?!이\s*(?:옳|맞|입증|성립))|목표|위해|위한|여부|는지|가능|하고자|하려"
)
VALIDATION = re.compile(r"(?i)\bvalidation\b|검증")

# -- whose value it is

BASELINE = re.compile(
    r"(?i)\b(?:baseline|original|unmodified|unchanged|reference)\b|기준|베이스라인|원래"
)
SELECTED = re.compile(
    r"(?i)\b(?:best|selected|ours?|we|changed|edited|modified|modification|proposed|new|trial|edit|candidate)\b"
    r"|선택|최선|수정|제안|변경|후보|시도"
)
OTHER_COMPARISON = re.compile(
    r"(?i)\b(?:control|search\w*|sweep|ablat\w+|without|remov\w+|revert\w*|pieces?|hunks?|change-\w+)\b"
    r"|대조|탐색|제거|없이|빼"
)
"""Words of a sentence about something else than the selected code against the baseline."""
WITHOUT = re.compile(r"(?i)\b(?:ablat\w+|without|remov\w+|revert\w*)\b|제거|없이|빼")
PER_CENT = re.compile(r"(?i)\A\s*(?:%|\uff05|per ?cent|percentage|퍼센트|프로\b)")

# -- not prose at all

CHATTER = re.compile(
    r"(?i)\A\W*(?:sure|certainly|of course|absolutely|okay|here(?:'s| is| are)|below is|i['\u2019]m sorry|i am sorry"
    r"|sorry|i (?:cannot|can['\u2019]t|am unable|won['\u2019]t)|as an? (?:ai|large)|let me|i hope|please (?:note|let)"
    r"|note:|feel free|물론|죄송|다음은)(?![\w-])|\bas an? (?:ai|large) (?:language )?(?:model|assistant)\b"
)
PLACEHOLDER = re.compile(
    r"(?i)\blorem ipsum\b|\b(?:todo|tbd|fixme)\b|\b\w+ here\b[.!]?\Z|\[(?:insert|your|placeholder)[^\]]*\]|\.\.\.\s*\Z"
)
UNCITED = re.compile(
    r"(?i)\bet al\b|\b(?:prior|previous|recent|earlier|existing|other|related|seminal) (?:work|works|studies|study|research"
    r"|literature|papers?) (?:has|have|show\w*|demonstrat\w*|found|finds?|suggest\w*|report\w*|indicat\w*|by|of|on|in|used|uses?)\b"
    r"|\barxiv\b|\b(?:in|from) (?:the|this) literature\b"
    r"|(?<!the )\b(?:researchers|scholars|scientists|others) (?:(?:at|from) (?-i:[A-Z])"
    r"|(?:have |had |has )?(?:found|shown?|showed|reported|proposed|suggested|observed|argued)\b)"
    r"|\b(?:his|her|their|whose|an? (?:famous|classic|seminal|earlier|well-known)) (?:\w+ )?"
    r"(?:papers?|study|studies|thesis|article|book)\b"
    r"|\b(?:papers?|study|studies|article|book|thesis|survey|work|works) (?:by|of|from) (?-i:[A-Z])[^\W\d_]"
    r"|(?-i:\b[A-Z][^\W\d_]+ and [A-Z][^\W\d_]+ (?:say|show|propose|introduce|report|find|found|argue|describe|suggest)\w*)"
    r"|(?:선행|기존|이전|다른|앞선)\s*연구|연구(?:들)?에\s*따르면|논문에\s*따르면|문헌에"
    r"|(?-i:\b[A-Z][^\W\d_]+(?:'s|\u2019s) (?:group|paper|study|team|lab)\b)"
)
"""Works and people that are spoken of without a key."""
TO_REVIEWERS = re.compile(
    r"(?i)\b(?:dear|as an?|note to|to the|the|all|every|any) (?:reviewers?|referees?|area chairs?|graders?)\b.{0,80}"
    r"\b(?:please|should|must|shall|ought|have to|has to|give|gives|accept|award|rate|score|grade|recommend)\b"
    r"|\b(?:please |you (?:should|must) )(?:accept|give|rate|score|award)\b.{0,40}\b(?:paper|score|grade|rating|marks?|work)\b"
    r"|\b(?:ignore|disregard|forget)\b.{0,30}\b(?:instructions?|prompts?|rules|guidelines|tables?|limitations)\b"
    r"|심사자|심사위원|리뷰어|지시(?:사항)?(?:을|를)?\s*무시"
)
"""What a text says to those who are to judge it; no sentence of a paper does."""
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about above after again against all also although among an and any are as at be because
        been before being below between both but by can cannot could did do does done during each
        either few for from further had has have here how however if in into is it its itself just
        less may might more most must neither no nor not of off on once one only or other our out
        over same should since so some such than that the their them then there these they this
        those through thus to too under until up upon very was we were what when where whether which
        while who whose why will with within without would yet you your
        """,
    )
)
PARTICLES = re.compile(
    r"(?:은|는|이|가|을|를|의|에|에서|로|으로|와|과|도|며|고|다|음|함|요|된|한|할)(?=[\s.,!?)]|\Z)"
)
