"""The phrases by which hedges and refusals are known, and where in a text they count.

A hedge is an answer's own talk of being a machine, or of lacking what only people have, or of what its training and its
connections do not reach. A refusal is an opening that declines what was asked. Neither counts where somebody is quoted,
where a named speaker has the word, or within code; a lecture is no refusal, nor is an honest "I do not know", nor a
question for what is missing. Every pattern repeats only within fixed bounds, so that time grows with the text's length.
"""

import re
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence

HEAD = 320
"""Characters in which an answer that declines has said so."""
NEAR = 240
"""Characters in which a refusal without an apology begins."""
_MARKS = " \t\n\"'“”‘’*_>#-([…."
_LOOK_BACK = 400  # characters of a line that are searched for an open quotation

# Fences, <pre>, spans between two backticks or one, what stands indented by four behind a blank line, rows of tables.
_CODE = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|<pre\b.*?(?:</pre>|\Z)|``(?!`)[^\n]{1,2000}?``|`[^`\n]*`"
    r"|(?:\A|\n[ \t]*\n)(?:(?:[ ]{4}|\t)[ \t]*\S[^\n]*(?:\n|\Z)(?:[ \t]*\n)*)+"
    r"|^[ ]{0,3}\|[^\n]*\|[ \t]*$",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
_MAY_BE_CODE = ("`", "~~~", "<pre", "<PRE", "    ", "\t", "|")
_SPEAKER = re.compile(r"\W{0,3}[A-Z][\w' ]{0,24}:\s")
_OPENED = re.compile(r"(?<![^\W_])['‘]")
_CLOSED = re.compile(r"['’](?![^\W_])")

_NOT = r"(?:do\s+not|don['’]?t|can\s?not|can['’]?t|could\s?n['’]?t)"
_ADVERBS = r"(?:(?:really|actually|truly|currently|personally|simply|just|also|even|yet|physically)\s+){0,2}"
_UNABLE = r"(?:(?:am|['’]m)\s+(?:not\s+able|unable)\s+to)"
_CANNOT = rf"(?:can\s?not|can['’]?t|{_UNABLE})"

# Up to four words before the noun, none of which makes it another's: "as a student of AI" is a person.
_MACHINE = r"""
    an?\s+ (?:(?!(?:of|for|in|to|with|about|at|on|who|that|like|from|by)\b)[\w-]{1,20},?\s+){0,4}?
    (?: (?:ai|a\.i\.|artificial\s+intelligence)
        (?=\s*(?:[,.;:!?()—–]|\Z|-\s
            |(?:and|or|i|it|so|my|but|who|that|with|without|created|designed|developed|trained|built|made)\b
            |(?:programmed|language|text|chat|digital|virtual)\b
            |(?:assistant|model|system|program|chat\s?bot|bot|companion|entity|agent)\b))
      | (?:language|machine\s+learning)\s+model | chat\s?bot | computer\s+program | (?:digital|virtual)\s+assistant )\b
"""
_LACK = rf"(?:{_NOT}\s+ {_ADVERBS} (?:have|hold|feel|form|possess|experience) | have\s+no | lack)"
_INNER = r"(?:opinion|feeling|emotion|belief|consciousness|self-awareness|bias(?:es)?|desire|affiliation)s?"
_OWN = r"(?:personal|own|human|subjective|direct|first-?hand|lived|real|physical|genuine|political|individual)"
_LIVE = r"""(?:real-?time|live|current|up-to-date|updated?|external|recent|the\s+(?:internet|web)|internet|web|online
    |dates?|time|databases?)"""
_BROWSE = r"(?:browse|search|surf)\s+the\s+(?:internet|web)"

_HEDGES = re.compile(
    rf"""
    # A machine, by its own word.
      \bas\s+ {_MACHINE} [^.!?\n]{{0,80}}? \b(?:i|my|me)\b
    | \bi(?:\s+am|['’]m)\s+ (?:(?:just|only|merely|simply|still|also|but)\s+){{0,2}} {_MACHINE}
    | \bi(?:\s+am|['’]m)\s+ (?:just|only|merely|simply|still)\s+ a\s+ (?:machine|robot|bot|program)\b

    # Without opinions, feelings and the like; what is "for her" or "in God" is a person's.
    | \bi\s+ {_ADVERBS} {_LACK}\s+ (?:(?:an?|any|my|the|{_OWN})\s+){{0,3}} {_INNER}\b
      (?!\s+(?:for|in|as|of|left|to)\b)

    # Experiences, preferences and thoughts only where they are called one's own, or are many: a person without
    # experience in something is no machine.
    | \bi\s+ {_ADVERBS} {_LACK}\s+ (?:(?:an?|any|my|the)\s+)? (?:lots?\s+of\s+)? (?:{_OWN}\s+ (?:\w+\s+or\s+)?){{1,2}}
      (?:experience|preference|thought|memor(?:y|ies)|body|form|house|home|presence|hand|stake|view)s?\b
    | \bi\s+ {_ADVERBS} {_NOT}\s+ {_ADVERBS} (?:have|possess)\s+ (?:(?:any|my|the)\s+)?
      (?:experiences|preferences|thoughts|senses|hands|a\s+body|a\s+gender|taste\s+buds)\b
      (?!\s+(?:with|in|as|of|for|on|about|free|full)\b)
    | \bi\s+ {_ADVERBS} (?:{_CANNOT} | {_NOT}\s+have\s+the\s+\w+\s+to)\s+ {_ADVERBS}
      (?:provide|offer|give|express|share|have|feel|experience|form)\s+ (?:(?:an?|any|my)\s+)?
      (?:{_OWN}\s+ (?:opinion|view|belief|experience|advice|preference|feeling) | emotion | feeling)s?\b

    # What its training and its connections do not reach.
    | \bmy\s+ (?:training\s+data | knowledge\s+cut-?\s?off | last\s+(?:knowledge\s+)?(?:update|training))\b
    | \bi(?:\s+am|['’]m|\s+was|['’]ve\s+been|\s+have\s+been)\s+ (?:not\s+)?
      (?:programmed\s+(?:to|by|not)|trained\s+on)\b
    | \bi\s* {_ADVERBS} (?:{_NOT}\s+have | have\s+no | lack | {_CANNOT})\s+ {_ADVERBS}
      (?:have\s+)? (?:the\s+ability\s+to\s+)?
      (?: real-?time\s+access | {_BROWSE}
        | (?:direct\s+)?access\s+ (?:to\s+)? (?:(?:any|the)\s+)? (?:current\s+)?{_LIVE})\b

    # Humans as the others.
    | \bi\s+ [^.!?\n]{{0,80}}? \b(?:as|like|than|(?:the|same)\s+way)\s+ (?:that\s+)? (?:a\s+)? humans?\s+
      (?:do|does|can|would|are|is)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# What every hedge holds one of, in lower case: most texts hold none, and are done.
_HEDGE_WORDS = (
    *("as a", "i am", "i'm", "i’m", "i don", "i do n", "i can", "i couldn", "i have", "i lack", "human", "i was"),
    *("my training", "my knowledge", "my last", "i really", "i actually", "i truly", "i currently", "i personally"),
    *("i simply", "i just", "i also", "i even", "i yet", "i physically", "i've been", "i’ve been"),
)

_SORRY = r"""
    (?:(?:i['’]?\s?a?m\s+ | we['’]re\s+)? (?:(?:very|so|really|truly|deeply|terribly)\s+)? (?:sorry|afraid)
        | my\s+apologies | (?:i\s+)?apologi[sz]e | unfortunately | regrettably)\b
"""
_BARRED = r"not\s+(?:able|allowed|permitted|going|willing|programmed|designed|here)|unable|unwilling|forbidden"
_WONT = rf"""
    (?:can\s?not | can['’]?t | won['’]?t | will\s+not | (?:am|['’]m)\s+(?:currently\s+)?(?:{_BARRED})\s+to
        | (?:must|have\s+to|should)\s+decline\s+to | refuse\s+to | decline\s+to | should\s+not | shouldn['’]?t
        | (?:don['’]?t|do\s+not)\s+want\s+to | would(?:n['’]?t|\s+not)\s+(?:want|like|feel\s+comfortable)\s+to)
"""
_SERVE = r"""
    (?:help | assist | provide | answer | do | comply | fulfil+ | support | create | write | give | discuss | engage
     | generate | share | offer | perform | order | book | place | complete | process | access | browse | recommend
     | suggest | advi[sc]e | tell\s+you | show | teach | explain | disclose | reveal | translate | participate | promote
     | endorse | encourage | condone | facilitate | produce | describe | respond | execute | carry\s+out | look\s+up
     | search | send | schedule | summari[sz]e | fetch | retrieve | present | talk | speak\s+about | say | make
     | advocate | justify | pretend | impersonate | repeat | proceed | continue | entertain | take\s+part | go\s+into
     | get\s+into | comment | draw | work\s+with | aid | look\s+(?:that|this|it|for)
     | display | comment | draw | work\s+with | aid | look\s+(?:that|this|it|for)) \b
    (?!\s+(?:but|it\s+any|any\s+(?:longer|more)|up|everything|it\s+(?:alone|all)|anything\b|a\s+(?:whole\s+)?lot
        |(?:you\s+)?(?:exactly|how|enough|what\s+to)))
"""
_TASK = r"(?:that|this|it\b(?!\s+(?:alone|all|any))|you\b|your|such|any\b|with|in\b|on\b)"
_DO_NOT = r"(?:do\s+not|don['’]?t)"
_LACKS = rf"""
    (?:{_DO_NOT}\s+ {_ADVERBS} have | have\s+no)\s+ (?:(?:the|any|an?)\s+)?
    (?:capabilit(?:y|ies) | abilit(?:y|ies) | capacity | functionality | function | permission | means | tools?)\s+
    (?:to|for)\b
"""
_BEFORE = r"""
    (?:(?:no|nope|oh|ooh|ah|hmm+|um+|well|ok(?:ay)?|yes|wow|look|hey|please|hi|hello|sorry|thank\s+you)\b
       [\s,.!…-]{0,4}){0,3}
"""
_AS = rf"(?:as\s+ (?:{_MACHINE}|an?\s+\w{{1,20}}) [^.!?\n]{{0,40}}?,?\s*)?"
_NOT_IF = r"(?<!if\s)(?<!when\s)(?<!that\s)"
_POLICY = r"(?:programming|polic(?:y|ies)|terms|guidelines|values|principles|ethics|rules)"

# An apology at the very beginning, then what the answer will not do.
_APOLOGY = re.compile(
    rf"""
    \A\W*{_BEFORE} {_SORRY} [^.!?\n]{{0,70}}? \bi\s* {_ADVERBS}
    (?: {_WONT}\s+ {_ADVERBS} {_SERVE} | (?:can\s?not|can['’]?t|won['’]?t)\s*(?:[.!]|\Z) | {_LACKS}
      | {_DO_NOT}\s+have\s+access\s+to\s+(?:(?:any|the)\s+)?{_LIVE} )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL = re.compile(
    rf"""
      \A\W*{_BEFORE} {_AS} i\s* {_ADVERBS}
      (?:{_WONT}\s+ {_ADVERBS} {_SERVE} | {_LACKS} (?!\s+(?:think|have|feel|desire|predict|experience|form|express)\b))

    # Further on only where it is said of this very request.
    | {_NOT_IF}\bi\s* {_ADVERBS} {_WONT}\s+ {_ADVERBS}
      (?:help|assist|answer|comply|fulfil+|support|do|discuss|provide|fetch|retrieve|describe|write|share|disclose
        |give)\s+ {_TASK} (?!\s+(?:but|anything\s+right))
    | {_NOT_IF}\bi\s* {_ADVERBS} {_WONT}\s+ {_ADVERBS}
      (?:(?:help|assist|answer)\s*[.!] | (?:condone|encourage|endorse)\b)
    | \bi\s+ (?:{_DO_NOT}\s+want|would(?:n['’]?t|\s+not)\s+(?:want|like))\s+to\s+be\s+
      (?:involved|(?:a\s+)?part(?:y)?\s+(?:to|of)|responsible)\b
    | {_NOT_IF}\bi\s* {_ADVERBS} {_CANNOT}\s+ {_ADVERBS}
      (?:provide|describe|fetch|present|retrieve|disclose|summari[sz]e)\b
    | \bi\s* {_ADVERBS} (?:(?:am|['’]m)\s+ (?:not|un)\s?(?:really\s+|very\s+)?comfortable
        | (?:{_DO_NOT}|would(?:n['’]?t|\s+not))\s+feel\s+(?:\w+\s+)?comfortable
        | (?:['’]d|would)\s+(?:rather|prefer)\s+(?:to\s+)?not\b(?!\s+to\s+be)
        | (?:must|have\s+to)\s+(?:respectfully\s+)?decline\b
        | refuse\s+to\s+{_SERVE})
    | \b(?:goes|is|be|it['’]s)\s+ against\s+ (?:my|our)\s+ (?:\w+\s+){{0,2}}? {_POLICY}\b
    | \b(?:outside|beyond)\s+ (?:of\s+)? (?:my|our)\s+ (?:\w+\s+)?
      (?:scope|capabilit(?:y|ies)|abilit(?:y|ies)|expertise)\b
    | \b(?:that|this|it)(?:\s+is|['’]s)\s+ (?:not|n['’]t)\s+ (?:something|anything|a\s+topic|a\s+subject)\s+
      (?:that\s+)? i\s* (?:can|could|will|would|am|['’]m|want|feel|should)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# A word that every one of these needs: most answers hold none, and are not searched further.
_DECLINES = re.compile(
    r"not|n['’]t|\b(?:can|won|don|shouldn|wouldn)t\b|unable|unwilling|forbidden|declin|refuse|have\s+no|comfortable|prefer"
    r"|rather|against|outside|beyond",
    re.IGNORECASE,
)
# Help goes on in the same breath.
_STILL = re.compile(
    r"[^.!?\n]{0,160}?\bbut\b[^.!?\n]{0,20}?\b(?:i\b|here|let|the|we|you)"
    r"|[^.!?\n]{0,160}[.!?]\s+(?:however|but|still|that\s+said),?\s+(?:according|based|in\s+general|generally|as\s+of|here)\b",
    re.IGNORECASE,
)
# What is missing is asked for: a question is no refusal.
_MISSING = re.compile(
    rf"""\b(?:without\s+(?:being|more|further|additional|any|the|knowing|seeing|specific|proper)
        | more\s+(?:information|context|details?)
        | (?:have\s+not|haven['’]t|did\s+not|didn['’]t|not)\s+(?:been\s+)?(?:provided?|given|specif\w+|clear|include\w*)
        | unclear | {_DO_NOT}\s+(?:know|understand) | couldn['’]t\s+find)\b""",
    re.IGNORECASE | re.VERBOSE,
)


def hedges(text: str) -> Iterator[re.Match[str]]:
    """Every phrase in which the text's own voice hedges."""
    lower = text.lower()
    if any(word in lower for word in _HEDGE_WORDS):
        code: list[tuple[int, int]] | None = None
        for found in _HEDGES.finditer(text):
            code = code_spans(text) if code is None else code
            if not within(code, found.start()) and not _others(text, found.start()):
                yield found


def refusal(text: str) -> str | None:
    """The phrase by which the text's opening declines; None where it does not."""
    head = text[:HEAD]
    if not _DECLINES.search(head):
        return None
    code = code_spans(head)
    apology = _APOLOGY.search(head)
    for found in [*([apology] if apology else []), *_REFUSAL.finditer(head)]:
        place = found.start() + len(found[0]) - len(found[0].lstrip(_MARKS))
        if place > NEAR or _missing(head, found) or within(code, place) or _others(text, place):
            continue
        if found is apology or not _STILL.match(text, found.end()):
            return told(found)
    return None


def told(found: re.Match[str]) -> str:
    """The phrase in one line."""
    return " ".join(found[0].split())


def _missing(head: str, found: re.Match[str]) -> bool:
    """Whether the sentence says what it would need."""
    end = min((place for mark in ".!?\n" if (place := head.find(mark, found.end())) >= 0), default=len(head))
    return bool(_MISSING.search(head, found.start(), end))


def code_spans(text: str, inline: bool = True) -> list[tuple[int, int]]:
    """Where code and tables stand in a text: in blocks, and between backticks where `inline`."""
    if not any(sign in text for sign in _MAY_BE_CODE):
        return []
    spans = [found.span() for found in _CODE.finditer(text)]
    return spans if inline else [span for span in spans if text[span[0]] != "`" or text.startswith("```", span[0])]


def within(spans: Sequence[tuple[int, int]], place: int) -> bool:
    """Whether a place lies in one of these spans, which stand in order."""
    before = bisect_right(spans, (place, sys.maxsize)) - 1
    return before >= 0 and place < spans[before][1]


def _others(text: str, place: int) -> bool:
    """Whether the words at that place are another's: within an open quotation, or behind a speaker's name."""
    begin = max(0, place - _LOOK_BACK)
    begin = max(begin, text.rfind("\n", begin, place) + 1)
    before = text[begin:place]
    if _SPEAKER.match(before):
        return True
    if begin == 0 and text.lstrip()[:1] in ('"', "“") and text.rstrip()[-1:] in ('"', "”"):
        before = before.lstrip()[1:]  # an answer that is one quotation speaks itself
    if before.count('"') % 2 or before.count("“") > before.count("”"):
        return True
    return len(_OPENED.findall(before)) > len(_CLOSED.findall(before))
