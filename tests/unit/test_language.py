"""Languages: each told from a few sentences of its own, nothing told of what is short, mixed or code."""

import gzip
import json
from pathlib import Path

import pytest
from data_stages import assistant, user

from potstill.curation.language import LANGUAGES, UNDETERMINED, find_language, identify

DATA = Path(__file__).parents[3] / "shared" / "data"

SENTENCES = {
    "en": (
        "The tower stands near the river, and nobody knows who built it.",
        "What would you do if it rained today?",
    ),
    "de": (
        "Der Turm steht am Fluss, und niemand weiß, wer ihn gebaut hat.",
        "Ich möchte heute nicht mit dem Zug fahren.",
    ),
    "fr": (
        "La tour se trouve près de la rivière et personne ne sait qui l'a construite.",
        "Je ne veux pas prendre le train avec vous aujourd'hui.",
    ),
    "es": (
        "La torre está cerca del río y nadie sabe quién la construyó.",
        "No quiero ir en tren con mi hermano porque llueve.",
    ),
    "it": (
        "La torre si trova vicino al fiume e nessuno sa chi l'ha costruita.",
        "Oggi non voglio andare con il treno perché piove.",
    ),
    "pt": (
        "A torre fica perto do rio e ninguém sabe quem a construiu.",
        "Hoje não quero ir de trem com o meu irmão porque está chovendo.",
    ),
    "nl": (
        "De toren staat bij de rivier en niemand weet wie hem heeft gebouwd.",
        "Ik wil vandaag niet met de trein gaan.",
    ),
    "pl": (
        "Wieża stoi nad rzeką i nikt nie wie, kto ją zbudował.",
        "Nie chcę dzisiaj jechać pociągiem, bo pada deszcz.",
    ),
    "sv": (
        "Tornet står vid floden och ingen vet vem som har byggt det.",
        "Jag vill inte åka tåg med honom i dag, för det regnar.",
    ),
    "da": (
        "Tårnet står ved floden, og ingen ved, hvem der har bygget det.",
        "Jeg vil ikke rejse med toget i dag, hvad med dig? Noget er galt af en eller anden grund.",
    ),
    "no": (
        "Tårnet står ved elva, og ingen vet hvem som har bygget det av stein.",
        "Jeg vil ikke reise med toget nå, hva med deg? Noe er galt, og det må være noen som vet mye.",
    ),
    "fi": (
        "Torni seisoo joen rannalla, eikä kukaan tiedä, kuka sen on rakentanut.",
        "En halua tänään matkustaa junalla, koska sataa ja minä olen väsynyt.",
    ),
    "cs": (
        "Věž stojí u řeky a nikdo neví, kdo ji postavil, protože je velmi stará.",
        "Dnes nechci jet vlakem, když prší, ale může být hezky.",
    ),
    "ro": (
        "Turnul se află lângă râu și nimeni nu știe cine l-a construit.",
        "Astăzi nu vreau să merg cu trenul pentru că plouă.",
    ),
    "hu": (
        "A torony a folyó mellett áll, és senki sem tudja, hogy ki építette.",
        "Ma nem akarok vonattal menni, mert esik az eső.",
    ),
    "tr": (
        "Kule nehrin yanında duruyor ve onu kimin yaptığını kimse bilmiyor.",
        "Bugün trenle gitmek istemiyorum çünkü çok yağmur var ve bu iyi değil.",
    ),
    "ru": (
        "Башня стоит у реки, и никто не знает, кто её построил.",
        "Сегодня я не хочу ехать на поезде, потому что идёт дождь.",
    ),
    "uk": (
        "Вежа стоїть біля річки, і ніхто не знає, хто її збудував.",
        "Сьогодні я не хочу їхати потягом, бо йде дощ.",
    ),
    "zh": (
        "塔在河边，没有人知道是谁建的。",
        "今天下雨，我不想坐火车。",
    ),
    "ja": (
        "塔は川のそばに立っていて、誰が建てたのか誰も知りません。",
        "今日は雨なので電車に乗りたくないです。",
    ),
    "ko": (
        "탑은 강가에 서 있고 누가 지었는지 아무도 모릅니다.",
        "오늘은 비가 와서 기차를 타고 싶지 않아요.",
    ),
    "ar": (
        "يقع البرج بالقرب من النهر ولا أحد يعرف من بناه.",
        "لا أريد أن أسافر بالقطار اليوم لأن السماء تمطر.",
    ),
    "he": (
        "המגדל עומד ליד הנהר ואיש אינו יודע מי בנה אותו.",
        "אני לא רוצה לנסוע היום ברכבת כי יורד גשם.",
    ),
    "hi": (
        "मीनार नदी के पास खड़ी है और कोई नहीं जानता कि इसे किसने बनाया।",
        "आज बारिश हो रही है इसलिए मैं ट्रेन से नहीं जाना चाहता।",
    ),
    "el": (
        "Ο πύργος βρίσκεται κοντά στο ποτάμι και κανείς δεν ξέρει ποιος τον έχτισε.",
        "Σήμερα δεν θέλω να πάω με το τρένο γιατί βρέχει.",
    ),
    "th": (
        "หอคอยตั้งอยู่ใกล้แม่น้ำและไม่มีใครรู้ว่าใครสร้างมัน",
        "วันนี้ฝนตกฉันจึงไม่อยากนั่งรถไฟ",
    ),
}


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_each_language_is_told(language: str) -> None:
    told, confidence = identify(" ".join(SENTENCES[language]))
    assert told == language
    assert 0.55 < confidence <= 1
    assert all(identify(sentence)[0] in (language, UNDETERMINED) for sentence in SENTENCES[language])


def test_every_known_language_has_its_sentences() -> None:
    assert set(SENTENCES) == LANGUAGES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "OK.",
        "Osk, Perven, Borva, Delmbell, Kintor, Maralo, Tevin",
        "for (int i = 0; i < n; i++) { a[i] = x + y; }",
        "def f(a, s, v):\n    return s + a + v + s + a",
        "He's as strong as a freaking ox.",
        "12 + 30 = 42",
        "این متن به زبان فارسی نوشته شده است و چیزی نمی‌گوید که گاو پاک است.",
    ],
)
def test_what_is_short_or_no_prose_is_undetermined(text: str) -> None:
    assert identify(text) == (UNDETERMINED, 0.0)


def test_two_languages_by_halves_are_undetermined_and_code_in_prose_is_not_read() -> None:
    assert identify(f"{SENTENCES['ru'][0]} {SENTENCES['en'][0]}")[0] == UNDETERMINED
    assert identify(f"{SENTENCES['de'][0]}\n```\nthe of and to in is that it for\n```")[0] == "de"


def test_only_what_the_assistant_says_counts() -> None:
    german, english = " ".join(SENTENCES["de"]), " ".join(SENTENCES["en"])
    fault = find_language((*user(english), *assistant(german)), {"en"})
    assert fault
    assert fault[0] == "language"
    assert fault[1].startswith("de (0.")
    assert find_language((*user(german), *assistant(english)), {"en"}) is None
    assert find_language(assistant(german), {"en", "de"}) is None
    assert find_language(assistant("42"), {"de"}) is None, "what is undetermined stays"


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, which holds the real rows, is not here")
def test_english_is_not_called_another_language() -> None:
    """Of 17,000 real English texts, code among them; measured: none."""
    texts = [json.loads(line)["question"] for line in (DATA / "gsm8k/train.jsonl").read_text("utf-8").splitlines()]
    for name in ("codegen", "roleplay"):
        texts += [row["response"] for row in json.loads((DATA / f"gpteacher/{name}_instruct.json").read_text("utf-8"))]
    with gzip.open(DATA / "hh_rlhf/harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts += [json.loads(line)["chosen"] for line in lines]
    told = [identify(text)[0] for text in texts]
    assert sum(language not in ("en", UNDETERMINED) for language in told) <= 0.005 * len(texts)
    assert told.count("en") > 0.7 * len(texts)
