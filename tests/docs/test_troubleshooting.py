"""What the page on troubleshooting quotes is what the code says."""

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
SYMPTOM = re.compile(r"^\| (?!what you see|you see|---)((?:[^|]|\\\|)+?) \|", re.MULTILINE)
OF_OTHERS = re.compile(r"^(?:PyTorch|vLLM|Ray|torchvision): `[^`]*`")
"""What another program says; the page names it."""
SETTING = re.compile(r"^(?:/[\w/]*|[\w.]+|[A-Z_]+=\w+|rlhf: \.\.\.)$")
"""A key, a file or a value, and no message."""


@cache
def said() -> str:
    """Return all texts of the code, a line each; what is filled in is a line of its own."""
    texts = []
    for file in (ROOT / "rlhf_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def quotes() -> list[str]:
    """Return the messages of our own in the columns of what one sees."""
    rows = SYMPTOM.findall(PAGE.read_text(encoding="utf-8"))
    found = [quote for row in rows for quote in re.findall(r"`([^`]+)`", OF_OTHERS.sub("", row))]
    return [quote for quote in found if not SETTING.match(quote)]


@pytest.mark.parametrize("quote", quotes())
def test_messages_exist(quote: str) -> None:
    for part in quote.split("..."):
        words = part.strip().removesuffix(":").strip()
        assert words in said(), f"no message has {words!r}"


def test_there_are_messages() -> None:
    assert len(quotes()) > 40


def test_the_page_is_linked() -> None:
    for page in ("README.md", "docs/running.md"):
        assert "troubleshooting.md" in (ROOT / page).read_text(encoding="utf-8")
