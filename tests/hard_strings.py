"""Strings that tokenizers get wrong, made by a seeded generator: the same on every machine."""

import random
from collections.abc import Iterator

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<jupyter_code>")
SPACES = " \t\n\r\v\f\u00a0\u1680\u2003\u200b\u2028\u2029\u202f\u3000\u0085\ufeff\u2581"
FRACTIONS = "½¼¾⅓⅔⅛⅜⅝⅞⅟²³¹⁰⁴⁵₀₁₂₃Ⅳⅻↂ①②⑳㉑㊿一二三十百〇٣٤٥६७८๔๕𝟎𝟏𝟐𝍠"
EMOJI = (
    *("😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇳", "🇩🇪🇫🇷", "❤️", "☃", "1️⃣", "#️⃣", "🧑🏿‍🚀", "🫠"),
    *("🤦🏼‍♂️", "👨‍⚕️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "™️", "✅", "🀄"),
)
CHINESE = (
    "你好，世界！我们在２０２６年的今天，吃了３½个苹果。龍龜鬱𠮷𠀀𪚥〇々「」『』、；：？《》——……"
)
SCRIPTS = (
    *("こんにちは、カタカナｶﾞ", "안녕하세요 한글 ㄱㄴㄷ", "Привет, мир!", "Γειά σου Κόσμε"),
    *("مرحبا بالعالم ١٢٣", "שָׁלוֹם עוֹלָם", "नमस्ते दुनिया १२३", "สวัสดีชาวโลก", "Xin chào thế giới"),
    *(
        "ßẞſŉǅİıﬁ",
        "e\u0301a\u0308o\u0302\u0323",
        "Z\u0351\u036b\u0343a\u0337l\u0334go",
        "ქართული ᲐᲑᲒ",
    ),
    *("ᎠᎡᎢ ꭰꭱ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "ʻōlelo", "ትግርኛ", "ﷺ", "ᚠᚢᚦ"),
)
CODE = (
    "def f(x):\n    return x + 1\n",
    "\tif (a != b) { c->d[0] += 0x1F; }\r\n",
    "for i in range(10):\n\tprint(f'{i:>3}')  # ok\n\n\n",
    "SELECT * FROM t WHERE a<=3 AND b LIKE '%x%';",
    '<a href="http://x.y/z?q=1&amp;r=2">…</a>',
    "let s = `a${b}`; // 日本語\n/* x */",
    "#include <stdio.h>\nint main(void){return 0;}",
    "x = {'k': [1,2,3], \"j\": None}\n\n    y = x\n",
    "$ git commit -m 'it\\'s' && echo $?",
    "^(?:\\d{1,3}\\.){3}\\d+$",
    "a\\n\\t\\u00e9\\x00",
)
WORDS = (
    *(
        "I'm",
        "you'LL",
        "we'Ve",
        "DON'T",
        "it's",
        "o'clock",
        "'s",
        "'S",
        "'\u017f",
        "’s",
        "rock'n'roll",
    ),
    *(
        "HelloWorld",
        "camelCase",
        "snake_case",
        "kebab-case",
        "Mr.",
        "e.g.",
        "U.S.A.",
        "naïve",
        "café",
    ),
    *("supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaaaaaaaaaa", "The", "the", "of", "zqxj"),
)
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡¿«»“”‘’–—…·•§¶†€£¥¢©®°±×÷≠≤√∞∑∂∫→⇒∀∃"
KINDS = (
    *("digits", "fractions", "emoji", "chinese", "scripts", "code", "white space", "special"),
    *("words", "marks", "controls", "any", "mixed"),
)


def hard_strings(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Gives `count` pairs (kind, text), the kinds in turn."""
    draw = random.Random(seed)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        yield kind, "".join(_part(kind, draw) for _ in range(draw.randint(1, 8)))


def _part(kind: str, draw: random.Random) -> str:
    if kind == "mixed":
        kind = draw.choice(KINDS[:-1])
    gap = draw.choice(("", "", " ", "  ", "\n", "\t"))
    if kind == "digits":
        digits = "".join(draw.choice("0123456789") for _ in range(draw.randint(1, 12)))
        return (
            draw.choice(("", "-", "$", "+", "a", "No."))
            + digits
            + draw.choice((".", ",", "%", gap))
        )
    if kind == "fractions":
        return "".join(draw.choice(FRACTIONS + "0123456789/ ") for _ in range(4)) + gap
    if kind == "white space":
        return "".join(draw.choice(SPACES) for _ in range(draw.randint(1, 9))) + draw.choice(
            ("", "a", "9")
        )
    if kind == "special":
        token = draw.choice(SPECIAL)
        cut = token[: draw.randint(1, len(token))]
        return draw.choice(
            (token, token, cut, f"<{token}>", token.upper(), f" {token}\n", "user\n")
        )
    if kind == "controls":
        return "".join(
            chr(draw.choice((*range(32), 127, 128, 0xAD, 0x200D, 0xFFFD, 0xE000))) for _ in range(3)
        )
    if kind == "any":
        return "".join(_any_character(draw) for _ in range(draw.randint(1, 4))) + gap
    if kind in ("chinese", "marks"):
        letters = CHINESE if kind == "chinese" else MARKS
        return "".join(draw.choice(letters) for _ in range(draw.randint(1, 6))) + gap
    table = {"emoji": EMOJI, "scripts": SCRIPTS, "code": CODE, "words": WORDS}[kind]
    text = draw.choice(table)
    return (text[: draw.randint(1, len(text))] if draw.random() < 0.3 else text) + gap


def _any_character(draw: random.Random) -> str:
    """One of any plane in use; half of a surrogate pair is none."""
    while True:
        number = draw.choice(
            (draw.randrange(0x250), draw.randrange(0x3000), draw.randrange(0x32000))
        )
        if not 0xD800 <= number < 0xE000:
            return chr(number)
