"""Which language a text is written in: its script first, then the small words that its sentences are held together by.

Enough to keep a data set to the languages it is meant for; no model, no download. A language of its own script is told
by that script (Chinese, Japanese, Korean, Arabic, Hebrew, Hindi, Greek, Thai; others may share it, and are not told
apart); those that share the Latin or the
Cyrillic letters by their commonest words, each weighed by how few of the other languages have it, and by the letters
that only some of them use. What is short, mixed or code is "und" (ISO 639-2: undetermined) rather than a guess.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence

from potstill.records import Message

UNDETERMINED = "und"
MAX_CHARACTERS = 6_000
"""A text tells its language long before that; what follows is not read."""
MIN_LETTERS = 20
MIN_IDEOGRAPHS = 6
"""In scripts whose letters are syllables or words."""
MIN_WORDS = 3
"""Different ones of a language's commonest words, or of its letters, that must be there."""
MIN_SHARE = 0.17
"""Share of the words that must be a language's commonest, or hold its letters."""
MIN_MARGIN = 1.25
"""By how much the best language must surpass the next."""

_WORDS = {
    "en": "the of and to in is that it for was with as on are by this be from at or an have not but they which you"
    " were his her she their has been can will would there what when if your who we how our these some into"
    " than its then do about my me him because could should where while he had one all i'm it's that's don't"
    " you're he's can't here",
    "de": "der die das und ist nicht ein eine einen einem einer ich du er sie es wir ihr zu mit auf für von dem den"
    " des im am sich auch als wie war haben hat wird sind bei aus nach über oder wenn noch nur aber kann werden"
    " man durch vor dass mein dein sein schon hier sehr zum zur",
    "fr": "le la les de des du un une et est que qui dans en pour pas sur au aux ce cette ces avec il elle je tu"
    " nous vous ils elles par plus ne se son sa ses sont mais ou où comme être avoir fait été leur leurs mon ma"
    " mes ont très bien peut aussi c'est d'un d'une qu'il n'est",
    "es": "el la los las de del que y en un una es no se por con para su al lo como más pero sus le ya o este sí"
    " porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos uno ni son está"
    " fue ser tiene había eso esto yo tú él",
    "it": "il lo la i gli le di del della dei delle dell che e è un una uno in non per con si da dal dalla sono ma"
    " come più anche al alla ai alle nel nella nei ha ho hanno questo questa ci se io tu lui lei noi voi loro"
    " essere era molto quando dove sua suo perché cosa degli sul sulla",
    "pt": "o a os as de do da dos das que e em um uma é não se por com para no na nos nas ao à mais mas como foi sua"
    " seu são ou ser quando muito há já está eu também só pelo pela até isso ela ele entre depois sem mesmo"
    " você nós tem aos este esta",
    "nl": "de het een en van is dat niet in te op voor met zijn er aan ook als bij of naar maar om dan deze dit die"
    " wordt worden heeft hebben was ik je jij hij zij wij we u uit over door nog wel geen meer kan moet zich"
    " veel tot onder mijn haar waar toen",
    "pl": "i w na z nie się do to że jest o jak za od po przez dla ale czy być co tak tego jego jej są oraz już"
    " tylko był była było może ich ten ta te ja ty on ona my wy bardzo który która które gdzie kiedy przed pod"
    " bez nad więc jeśli",
    "sv": "och att det i en är som på av för med den till inte har de om ett han men var jag sig från vi så kan hon"
    " när mycket ska skulle där vid efter under mot också än vad eller hur här nu du ni denna detta bara finns"
    " alla blir kommer många",
    "da": "og at det i en er som på af for med den til ikke har de om et han men var jeg sig fra vi så kan hun når"
    " meget skal skulle der ved efter under mod også end hvad eller hvordan her nu du denne dette kun blev"
    " bliver mange hvor være noget nogle kommer alle",
    "no": "og at det i en er som på av for med den til ikke har de om et han men var jeg seg fra vi så kan hun når"
    " mye skal skulle der ved etter under mot også enn hva eller hvordan her nå du denne dette bare ble blir"
    " mange hvor være noe noen kommer alle fordi ei ikkje eg",
    "fi": "ja on ei se että hän oli mutta kun niin ovat kuin myös sen tai jos joka mitä minä sinä me te he ole olla"
    " nyt vain sekä mukaan jo vielä voi kanssa hyvin tämä tämän tässä siitä jotka joita ennen jälkeen koska"
    " missä kuka olen olet oma paljon en",
    "cs": "a v na je se že to s z do o i jako za od po pro ale by si tak jsem jsou jeho její byl byla bylo které"
    " který která není jen nebo když už také podle při přes před pod mezi velmi kde kdo co tento tato toto ze"
    " ve ke jsme může ještě až být má",
    "ro": "și în de la cu pe este nu un o că să din pentru care mai ce sunt a fost se au ca dar sau lui ei ele el ea"
    " noi voi foarte dacă când unde după între prin fără sub asupra acest această aceste fi avea am are al ale"
    " cel cea către doar îi îl",
    "hu": "a az és hogy nem is egy ez de van volt meg csak mint ki el már még vagy azt ezt ha kell lehet lesz nagyon"
    " sok minden után alatt között előtt mert amikor hol aki ami amely én te ő mi ti ők vannak voltak nincs így"
    " úgy itt ott lett fel",
    "tr": "ve bir bu da de için ile çok ne var yok ama gibi daha olarak olan değil en kadar sonra önce şey ben sen o"
    " biz siz onlar mi mı mu mü her ya ki diye şu nasıl neden nerede oldu olduğu ise hem veya ancak üzere"
    " tarafından göre böyle bütün",
    "ru": "и в не на я что он с как это по но она к из у за от так же о для мы вы ты они бы был была было были его"
    " её их только уже если когда где или ещё все чтобы очень до при может есть нет этот эта эти который"
    " которая которые после между",
    "uk": "і в не на я що він з як це по але вона до із у за від так же о для ми ви ти вони би був була було були"
    " його її їх тільки вже якщо коли де або ще всі щоб дуже при може є немає цей ця ці який яка які після між"
    " та й про чи",
}
_LETTERS = {
    "de": "ß", "es": "ñ¿¡", "pt": "ãõ", "pl": "łżźąęśńć", "sv": "åäö", "da": "øæå", "no": "øæå", "fi": "äö",
    "cs": "řěůžčš", "ro": "șțăşţ", "hu": "őű", "tr": "ğışİ", "fr": "œêçèù", "it": "òìù", "ru": "ыэъё", "uk": "іїєґ",
}  # fmt: skip
_CYRILLIC = ("ru", "uk")
_LATIN = tuple(language for language in _WORDS if language not in _CYRILLIC)

_SCRIPTS = {
    "latin": re.compile(r"[A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ]"),
    "cyrillic": re.compile(r"[Ѐ-ԯ]"),
    "el": re.compile(r"[Ͱ-Ͽἀ-῿]"),
    "he": re.compile(r"[֐-׿]"),
    "arabic": re.compile(r"[؀-ۿݐ-ݿﭐ-﷿ﹰ-ﻼ]"),
    "hi": re.compile(r"[ऀ-ॿ]"),
    "th": re.compile(r"[฀-๿]"),
    "ko": re.compile(r"[ᄀ-ᇿ㄰-㆏가-힯]"),
    "kana": re.compile(r"[぀-ヿｦ-ﾝ]"),
    "han": re.compile(r"[㐀-䶿一-鿿]"),
}
_NOT_ARABIC = re.compile(r"[پچژگکیےں]")  # Persian's and Urdu's

LANGUAGES = frozenset({*_WORDS, "zh", "ja", "ko", "ar", "he", "hi", "el", "th"})
"""ISO 639-1 codes of the languages that can be told."""

_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,80}>", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def _weights(languages: Sequence[str]) -> dict[str, tuple[tuple[str, float], ...]]:
    """Of each common word: the languages that have it, and how much it speaks for each."""
    owners: dict[str, list[str]] = {}
    for language in languages:
        # A single plain letter is a variable or an initial in every language.
        for word in (word for word in _WORDS[language].split() if len(word) > 1 or not word.isascii()):
            owners.setdefault(word, []).append(language)
    return {word: tuple((language, 1 / len(found)) for language in found) for word, found in owners.items()}


def _signs(languages: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of each telling letter: the languages that use it."""
    owners: dict[str, list[str]] = {}
    for language in languages:
        for letter in _LETTERS.get(language, ""):
            owners.setdefault(letter, []).append(language)
    return {letter: tuple(found) for letter, found in owners.items()}


_BY_WORDS = {"latin": (_weights(_LATIN), _signs(_LATIN)), "cyrillic": (_weights(_CYRILLIC), _signs(_CYRILLIC))}


def identify(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, confidence from 0 to 1), or ("und", 0.0) where it is short, mixed, code, or of no known kind.

    The confidence is the best language's share of its own and the next one's evidence; of a language known by its
    script, that script's share of the letters.
    """
    text = _NOT_PROSE.sub(" ", text[:MAX_CHARACTERS])
    counts = {"latin": len(_SCRIPTS["latin"].findall(text))} if text.isascii() else _letters(text)
    total = sum(counts.values())
    script = max(counts, key=lambda name: (counts[name], name)) if total else ""
    few = MIN_IDEOGRAPHS if script in ("han", "kana", "ko") else MIN_LETTERS
    if total < few or (counts[script] < 0.6 * total and script not in ("han", "kana")):
        return UNDETERMINED, 0.0
    share = counts[script] / total
    if script in _BY_WORDS:
        return _by_words(text, script)
    if script in ("han", "kana"):
        asian = (counts["han"] + counts["kana"]) / total
        if asian < 0.6:
            return UNDETERMINED, 0.0
        return ("ja" if counts["kana"] > 0.1 * counts["han"] else "zh"), asian
    if script == "arabic":
        return (UNDETERMINED, 0.0) if len(_NOT_ARABIC.findall(text)) > 0.03 * total else ("ar", share)
    return script, share


def _letters(text: str) -> dict[str, int]:
    return {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}


def _by_words(text: str, script: str) -> tuple[str, float]:
    weights, signs = _BY_WORDS[script]
    words = _WORD.findall(text.lower().replace("’", "'"))
    scores: dict[str, float] = {}
    hits: dict[str, int] = {}
    kinds: dict[str, int] = {}
    for word, count in Counter(words).items():
        for language, weight in weights.get(word, ()):
            scores[language] = scores.get(language, 0.0) + weight * count
            hits[language] = hits.get(language, 0) + count
            kinds[language] = kinds.get(language, 0) + 1
    if not text.isascii():
        for letter, owners in signs.items():
            count = text.count(letter)
            for language in owners if count else ():
                scores[language] = scores.get(language, 0.0) + count / len(owners)
                hits[language] = hits.get(language, 0) + count
                kinds[language] = kinds.get(language, 0) + 1
    ranked = sorted(scores, key=lambda language: (-scores[language], language))
    if not ranked or kinds[ranked[0]] < MIN_WORDS or hits[ranked[0]] < MIN_SHARE * len(words):
        return UNDETERMINED, 0.0
    best, rest = scores[ranked[0]], scores[ranked[1]] if len(ranked) > 1 else 0.0
    if best < MIN_MARGIN * rest:
        return UNDETERMINED, 0.0
    return ranked[0], best / (best + rest)


def find_language(messages: Sequence[Message], languages: Collection[str]) -> tuple[str, str] | None:
    """("language", which) where what the assistant says is in none of these languages. Undetermined is let through."""
    said = "\n".join(message.content[:MAX_CHARACTERS] for message in messages if message.role == "assistant")
    language, confidence = identify(said)
    if language == UNDETERMINED or language in languages:
        return None
    return "language", f"{language} ({confidence:.2f})"
