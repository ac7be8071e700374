"""Prompts and answers on the page: as text, whatever they hold."""

import html

import streamlit as st

from rlhf_ray.data.messages import words_of
from rlhf_ray.data.records import Prompt
from rlhf_ray.feedback.app.session import plain, say

LONG = 700
"""Characters from which on a text scrolls in a box of its own."""
BOX = 280
"""Height of that box in pixels."""

STYLE = """<style>
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; font-size: 1rem; line-height: 1.55; }
[data-testid="stMainBlockContainer"] { padding-top: 2.6rem; padding-bottom: 1rem; max-width: 84rem; }
[data-testid="stSidebarHeader"] { height: 2rem; padding-bottom: 0; }
[data-stale="true"] { opacity: 1 !important; }
@media (max-width: 640px) { [data-testid="stMainBlockContainer"] { padding: 4rem 1rem 1rem; } }
</style>"""
"""Line breaks stay, long words break, and each paragraph runs in the direction of its own script. Nothing fades while
the server works."""

_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: "␡"}
"""Controls have no shape of their own; these are their pictures."""


def show_style() -> None:
    """The rules by which texts are laid out."""
    st.html(STYLE)


def visible(text: str) -> str:
    """Return a text with one kind of line end, and pictures of what could not be seen."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_VISIBLE)


def show_text(text: str, key: str) -> None:
    """A text as it stands; no character of it is Markdown or HTML."""
    written = html.escape(visible(text))
    # Streamlit would take away the indentation of a block of lines, and white space at the ends.
    written = written.replace("\n", "&#10;")
    with st.container(height=BOX if len(text) > LONG or text.count("\n") > 12 else "content", border=False, key=key):
        st.html(f'<div class="text" dir="auto">{written}</div>')


def show_prompt(prompt: Prompt, prompt_class: str, key: str) -> None:
    """A prompt, turn by turn where it is a conversation."""
    with st.container(border=True, key=f"{key}-frame"):
        st.caption(plain(say("prompt", name=prompt_class)))
        if isinstance(prompt, str):
            show_text(prompt or say("empty_prompt"), key)
            return
        for number, message in enumerate(prompt):
            st.badge(message["role"] if message["role"].isalnum() else "?")
            show_text(words_of(message), f"{key}-{number}")
