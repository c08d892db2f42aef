"""Tokenize captions as the reference caption metrics do, without Java.

Papers tokenize with Stanford CoreNLP 3.4.1 (`PTBTokenizer -preserveLines -lowerCase`) and drop punctuation. The
patterns below were found by comparing outputs with that program's. They are tried in order at each position; a
character that none of them matches separates tokens and is dropped, as commas, full stops and emoji are.

Patterns see a copy of the caption, of equal length, in which one character stands for each class of non-ASCII
characters: see `serve.evals.characters`.
"""

import re
from functools import lru_cache
from itertools import chain

from serve.evals.characters import CURLY, DIGIT, LETTER, SYMBOL, classes, written

# Words that keep their full stop.
TITLES = (
    "adj adm adv assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det drs? elec ens ft gen govs? hon insp "
    "invt jos lieut lt maj messrs mfg mlle mme mrs? ms msgr mt mtg natl pfc ph pres profs? pvt reps? rev sens? sfc sgt "
    "spc ste? supt treas vs wm"
)
SHORT = (
    "jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu(?:rs)? fri al ala alex ariz assn bancorp bhd bldg "
    "blvd bros calif colo conn co corp cos ct dak esq est etc ext fla ga inc ind intl jr kans? ky ltd md mich minn mo "
    "mont neb nev okla penn ph[.]d plc p?pt[ey]s? rd rt seq sq sr sys tel tenn univ va vt wisc? wyo"
)
STATES = "ark az del ill la mass miss ore pa tex wash"  # only with a capital: small, they are words
BEFORE_NUMBERS = "art ca figs? nos? op pp prop"  # only before a number
# A single letter keeps its full stop, unless one of these follows: they start a sentence.
STARTERS = (
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr[.] Now "
    "Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)
FILES = (
    "bat bmp c class cgi cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps py sql tar txt "
    "wav x xml zip"
)
WITH_APOSTROPHE = "c%Qest c%Qmon cap%Qn cont%Qd[.] e%Qer ev%Qry li%Ql nat%Ql nor%Qeaster s%Qmores"


def _any_of(words: str) -> str:
    return f"(?i:{'|'.join(words.split())})"


SHORTHAND = {  # what stands for what in the patterns
    "%Q": "['’]",
    "%W": f"[A-Za-z0-9{LETTER}{DIGIT}]",  # a character of a word
    "%A": f"[A-Za-z{LETTER}]",
    "%N": f"[0-9{DIGIT}]",
    "%X": "(?i:[sdm]|re|ve|ll)(?![A-Za-z])",  # what follows the apostrophe of a contraction
    "%E": "(?!%W|[-_/.!?@]%W|%Q%A)",  # a word ends here
    "%P": "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}",  # one side of a slash
    "%F": r"[\^x=~<>'\-]",  # half of a face
    "%T": r"[A-Za-z][A-Za-z0-9_.:\-]*",  # a name in a tag
}
# Of two patterns that match at one position the first wins, so longer tokens come first.
PATTERNS = {
    "cannot, gonna": r"(?i:can(?=not%E)|(?:gon|wan)(?=na%E)|got(?=ta%E)|(?:lem|gim)(?=me%E))",
    # no pattern that starts with a letter reaches past a blank: this ends the search for most words
    "plain word": r"[A-Za-z]+(?=,?(?: |$))",
    "email": r'(?:<|&lt;)?[A-Za-z0-9][^\s"<>|(){}]{0,250}@(?:[^\s"<>|(){}.]+\.)*[^\s"<>|(){}.]+(?:>|&gt;)?',
    "address": r'(?i:https?)://[^\s"<>|(){}]+[^\s"<>|.!?(){},\-]',
    "address without http": r"""(?:[wW]{3}\.(?:[^\s"`'<>|.!?(){},]+\.)+[A-Za-z]{2,4}(?!\w)"""
    r"""|(?:[^\s"`'<>|!?(){}$,-_]{1,60}\.)+(?i:com|net|org|edu)(?!\w|\.\w))(?:/[^\s"<>|()]+[^\s"<>|.!?(){},\-])*""",
    "tag": r"""<(?:[!?][A-Za-z\-][^>]*|/%T|%T(?: +(?:%T(?: *= *(?:"[^"]*"|'[^']*'))?))* */? *)>""",
    "phone": r"(?:\(%N{2,3}\) ?|\+{1,2}(?:%N{2,4}[- ])?%N{2,4}[- ]|(?=(?:%N|-)+ )(?:%N{2,4}[- ])?%N{2,4}[- ])"
    r"%N{3,4}[- ]?%N{3,5}",
    "3 1/2": r"%N{1,4}[- ]%N{1,4}[/⁄]%N{1,4}|%N{1,4}⁄%N{1,4}",
    "and/or": r"%P(?:/%P){1,2}",
    "o'clock": r"(?:%W+-)*[A-HJ-XZdlno]%Q(?!%X)%A{2}%W*(?:-%W+)*",
    "ma'am": r"%A+[aeiouyAEIOUY]%Q(?!%X)[aeiouA-Z][A-Za-z]*",
    "c'mon": _any_of(WITH_APOSTROPHE),
    "do of don't": r"(?i:[a-z]*[a-mo-z](?=n['’‘`]t))",
    "n't": r"(?i:n['’‘`]t)(?!%A)",
    "l', y', ol'": r"(?i:[ldj]%Q(?!%X|%N)|y%Q(?!%X)(?=%A)|(?:ol|dunkin|somethin)%Q(?!%X))",
    "full stop before , ; :": r"(?:%A%W*(?:[.!?]%A%W*)*|%W+(?:[-_]%W+)*|[A-Z]+&[A-Z]+)\.(?=[,;:])",
    "1,000-mile": rf"(?>[A-Za-z0-9][A-Za-z0-9.,]{{0,100}}(?:-(?:(?:[A-Za-z]\.){{2,}}|[A-Za-z0-9]+))+)"
    rf"(?!{LETTER}|[_‐‑]%W|-{LETTER})",
    "well-known, a_b": r"%W+(?:[-_‐‑]%W+)+",
    "anti-, pro-": r"(?i:anti|pro)-(?!%W)",
    "U.S.": r"[A-Za-z](?:\.[A-Za-z])+\.(?!%A)",
    "01.jpg": rf"[0-9][A-Za-z0-9]*\.(?:[A-Za-z0-9]+\.)*{_any_of(FILES)}(?=[\s.?!,<]|$)",
    "title": rf"{_any_of(TITLES)}\.(?!%A)",
    "abbreviation": rf"(?:{_any_of(SHORT)}|(?=[A-Z]){_any_of(STATES)})\.(?!%A%A)",
    "No. 5": rf"{_any_of(BEFORE_NUMBERS)}\.(?=\s?%N)",
    "initial": rf"[A-Za-z]\.(?!%A|\s+(?=[A-Z]){_any_of(STARTERS)}(?:\s|$))",
    "C++, C#": r"(?i:c\+\+|[cf]#)",
    "AT&T": r"[A-Z]+(?:[&+][A-Z]+)+",
    "US$": r"[A-Z]+\$",
    "word": r"%A%W*(?:[.!?]%A%W*)*",
    "number": r"[+-]?%N*(?:[.,:]%N+)+|[+-]%N+|%N%W*",
    "dropped runs": r"\.{3,}|``|''",
    "'t of 'tis": r"(?i:'t(?=is|was))",
    "'s": r"'%X|(?i:’(?:[sdm]|re|ve|ll))",
    "'90s, 'em": r"%Q(?i:[2-9]0s|[0-9]{2}(?!\S)|n%Q|em|till?|cause)|'[nN](?!\S)|’[nN]",
    "face": r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])|%F_%F|\(%F_?%F\)",
    "handle": r"@[A-Za-z_][A-Za-z0-9_]*",
    "hashtag": r"#%A+",
    "entity": r"&(?i:ht|tl|ur|lr|q[clr]|odq|cdq|#[0-9]+|[aeiou](?:acute|grave|uml)|lt|gt);",
    "run": r"--+|[!?]{2,}|\*+|#+|_+|@+|<<|>>",
    "curly quotes": f"[{CURLY}]{{1,2}}",
    "symbol": rf"[$%&()+/<=>\[\\\]^{{|}}~⁄{SYMBOL}]",
}


def _compiled() -> re.Pattern[str]:
    pattern = "|".join(PATTERNS.values())
    for _ in range(2):  # shorthands hold shorthands
        for name, meaning in SHORTHAND.items():
            pattern = pattern.replace(name, meaning)
    return re.compile(f"(?:(?<! ) ++)?({pattern})")


TOKEN = _compiled()
DROPPED = {"''", "'", "``", "`", "--", "---", "----"}  # the rest of the reference's list matches no pattern
ENTITIES = {"amp": "&", "quot": '"', "apos": "'", "nbsp": " ", "mdash": "—", "ndash": "–", "md": "—"}
ENTITY = re.compile("&((?i:amp|nbsp)|quot|apos|mdash|ndash|MD);")
# In text of these characters no pattern looks past a blank, but for an initial's: each part between blanks can be
# read alone, and remembered.
NEAR = re.compile(r"[A-Za-z ,;:!?.'\"\-]*")
INITIAL = re.compile(r"(?<![A-Za-z])[A-Za-z]\. ")
REMEMBERED = 1 << 17  # parts


def _read(text: str, seen: str) -> list[str]:
    """The tokens of a text whose classes are `seen`."""
    spans = (match.span(1) for match in TOKEN.finditer(seen))
    found = TOKEN.findall(text) if text is seen else [text[start:end] for start, end in spans]
    return [token for token in map(written, found) if token not in DROPPED and not token.startswith("...")]


@lru_cache(maxsize=REMEMBERED)
def _part(text: str) -> list[str]:
    return _read(text, text)


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption: lower case, without punctuation marks.

    Args:
        caption: any text; line ends and other control characters count as blanks.

    Returns:
        Tokens in order. A token may hold a no-break space (as "3 1/2" does): do not split tokens again.
    """
    if NEAR.fullmatch(caption) and not (". " in caption and INITIAL.search(caption)):
        return list(chain.from_iterable(map(_part, caption.split())))
    if "&" in caption:
        caption = ENTITY.sub(lambda match: ENTITIES[match[1].lower()], caption)
    return _read(*classes(caption))
