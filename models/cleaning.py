"""The text cleaning that captions went through in training, in its original order (facts.md 1.10).

A published caption model knows only cleaned text, so the cleaning belongs to the model, oddities included: URLs, nicks,
file names, article numbers and shop talk go, dashes and quotes are unified. The step numbers are those of facts.md.
"""

from __future__ import annotations

import html
import re
import urllib.parse
import warnings

import ftfy
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
from bs4.exceptions import ParserRejectedMarkup

_HOST = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_FILE_TYPES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    r"[\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0"
    r"\uFE31\uFE32\uFE58\uFE63\uFF0D]+"
)

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*rules: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_LINKS = _rules(
    ("<person>", "person"),  # 4
    (rf"\b(?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),  # 5
    (rf"\b(?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),  # 6
)
_SYMBOLS = _rules(
    (r"@[\w\d]+\b", ""),  # 8
    (r"[\u31c0-\u31ef]+", ""),  # 9, seven passes
    (r"[\u31f0-\u31ff]+", ""),
    (r"[\u3200-\u32ff]+", ""),
    (r"[\u3300-\u33ff]+", ""),
    (r"[\u3400-\u4dbf]+", ""),
    (r"[\u4dc0-\u4dff]+", ""),
    (r"[\u4e00-\u9fff]+", ""),
    (_DASHES, "-"),  # 10
    (r"[`´«»“”¨]", '"'),  # 11
    (r"[‘’]", "'"),
    (r"&quot;?", ""),  # 12
    (r"&amp", ""),  # 13
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # 14
    (r"\d:\d\d\s+$", ""),  # 15
    (r"\\n", " "),  # 16
    (r"#\d{1,3}\b", ""),  # 17
    (r"#\d{5,}\b", ""),  # 18
    (r"\b\d{6,}\b", ""),  # 19
    (rf"\S+\.{_FILE_TYPES}", ""),  # 20
    (r"[\"']{2,}", '"'),  # 21
    (r"\.{2,}", " "),  # 22
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),  # 23
    (r"\s+\.\s+", " "),  # 24
)
_DASH_OR_UNDERSCORE = re.compile(r"[-_]")  # 25
_JUNK = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # 27
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # 28
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 29
    (r"(worldwide\s+)?(free\s+)?shipping", ""),  # 30
    (r"(free\s)?download(\sfree)?", ""),  # 31
    (r"\bclick\b\s(?:for|on)\s\w+", ""),  # 32
    (rf"\b{_FILE_TYPES}(\simages?)?", ""),  # 33
    (r"\bpage\s+\d+\b", ""),  # 34
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # 35
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 36
    (r"\b\s+:\s+", ": "),  # 37
    (r"(\D[,./])\b", r"\1 "),  # 38
    (r"\s+", " "),  # 39 (step 40 does nothing)
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),  # 41
    (r"^['_,\-:;]", ""),  # 42
    (r"['_,\-:+]$", ""),  # 43
    (r"^\.\S+$", ""),  # 44
)


def clean_caption(text: str) -> str:
    """A prompt as the text encoder expects it. The cleaning is applied twice, as in training."""
    return clean_once(clean_once(text))


def clean_once(text: str) -> str:
    """One pass of the cleaning; steps 1 to 45 of facts.md 1.10."""
    text = urllib.parse.unquote_plus(str(text)).strip().lower()  # 1-3
    text = _apply(_LINKS, text)
    text = _html_to_text(text)  # 7
    text = _apply(_SYMBOLS, text)
    if len(_DASH_OR_UNDERSCORE.findall(text)) > 3:
        text = _DASH_OR_UNDERSCORE.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()  # 26
    return _apply(_JUNK, text).strip()  # 45


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _html_to_text(text: str) -> str:
    with warnings.catch_warnings():  # a caption that looks like a file name or URL is still a caption
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        try:
            return BeautifulSoup(text, features="html.parser").text
        except ParserRejectedMarkup:  # such as <![x[; then it is no markup
            return text
