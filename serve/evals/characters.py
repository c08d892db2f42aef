"""Characters as the reference tokenizer sees them: non-ASCII ones fall into few classes; some are written anew."""

import unicodedata

LETTER, DIGIT, SYMBOL, GONE = "é", "٠", "★", "\0"  # each stands for its class; GONE is dropped and separates tokens
CURLY = "`‘’‚‛“”„‟‹›«»"
KEPT = CURLY + "‐‑⁄"  # classes of their own
BLANKS = dict.fromkeys(map(ord, "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"), " ") | {0xAD: None}

# Blocks of symbols that are tokens; what is neither letter, digit, blank nor one of these is gone.
BLOCKS = (
    "00a1-00a9 00ac-00ac 00ae-00b4 00b6-00b9 00bb-00bf 00d7-00d7 00f7-00f7 037e-037e 0387-0387 0589-0589 05be-05be "
    "05c0-05c0 05c3-05c3 05c6-05c6 05f3-0603 0606-060c 061b-061f 066a-066a 066d-066d 06d4-06d4 0700-070d 07f6-07f8 "
    "0964-0965 0e3f-0e3f 0e4f-0e4f 2016-2017 2020-2023 2030-203b 203e-2042 2070-2070 2074-207e 2080-208e 20a0-20a0 "
    "20a4-20a4 20ac-20ac 2100-2101 2103-2106 2108-2109 2114-2114 2116-2118 211e-2123 2125-2125 2127-2127 2129-2129 "
    "212e-212e 213a-213b 2140-2144 214a-214d 214f-214f 2153-215e 2190-2bff 3001-3002 3012-3012 30fb-30fb ff01-ff0f "
    "ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"
)
RANGES = [(int(block[:4], 16), int(block[5:], 16)) for block in BLOCKS.split()]
LETTER_RANGES = [(0x2C2, 0x2FF), (0x384, 0x385), (0x55A, 0x55F)]  # spacing accents and Armenian marks count as letters
# Combining marks and vowel signs of these blocks belong to words; the reference knows no others.
MARKS = "0300-0487 0591-05c7 0615-065e 0670-07f3 0900-09e3 0a01-0a4d 0a81-0acd 0b82-0bcd 0c01-0c56 0d3e-0d48 0e31-0ecd"
MARK_RANGES = [(int(block[:4], 16), int(block[5:], 16)) for block in MARKS.split()]

QUOTES = {"‘": "`", "‹": "`", "’": "'", "›": "'", "“": "``", "«": "``", "”": "''", "»": "''"}
SPELLED = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&lt;": "<", "&gt;": ">"}
SPELLED |= {"£": "#", "€": "$", "₠": "$", "¤": "$", "¢": "cents"}
SPELLED |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
SPELLED |= {a: QUOTES.get(a, a) for a in CURLY}
SPELLED |= {a + b: QUOTES.get(a, a) + QUOTES.get(b, b) for a in CURLY for b in CURLY}
SPELLED |= {f"’{end}": f"'{end}" for end in ("s", "m", "d", "re", "ve", "ll")} | {"n’t": "n't", "n‘t": "n`t"}
INSIDE = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\xa0"})


def _within(code: int, ranges: list[tuple[int, int]]) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _class(code: int) -> str:
    """The character that stands for this one's class."""
    char = chr(code)
    category = unicodedata.category(char)
    if code < 0x80 or char in KEPT:
        return char
    if category == "Zs":
        return " "
    if code > 0xFFFF:
        return GONE
    if category == "Nd":
        return DIGIT
    if category[0] == "L" or _within(code, LETTER_RANGES if category[0] != "M" else MARK_RANGES):
        return LETTER
    return SYMBOL if _within(code, RANGES) else GONE


class _Classes(dict[int, str]):
    """Code point -> class, found out when first asked for."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _class(code)
        return found


_CLASSES = _Classes()


def classes(caption: str) -> tuple[str, str]:
    """The caption with blanks for control characters, and its classes: both of one length, one object if ASCII."""
    text = caption.translate(BLANKS)
    return (text, text) if text.isascii() else (text, text.translate(_CLASSES))


def written(token: str) -> str:
    """A token as the reference writes it: lower case, brackets and some symbols by name."""
    token = token.lower()
    if token.isascii() and token.isalnum():
        return token
    return SPELLED[token] if token in SPELLED else token.translate(INSIDE)
