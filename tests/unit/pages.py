"""What tests read of an HTML page."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self, rel: str) -> list[str]:
        """Addresses of the links with that relation."""
        found: list[str] = []
        open_: dict[str, str] = {}
        for tag, name, value in self.attributes:
            open_ = {} if tag != "a" else open_
            if tag == "a" and name == "rel":
                open_["rel"] = value
            if tag == "a" and name == "href" and open_.get("rel") == rel:
                found.append(value)
            if tag == "a" and name == "href":
                open_ = {}
        return found
