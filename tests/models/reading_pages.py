"""Reports' pages as tests read them."""

from __future__ import annotations

from html.parser import HTMLParser


class Reader(HTMLParser):
    """What stands in a page; tags that are left open stay in ``open``."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.open, self.attributes, self.text = list[str](), list[str](), set[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
