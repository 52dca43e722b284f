"""The text of an answer while its tokens come, and no half of a character in it."""

from transformers import PreTrainedTokenizerBase

HALF = "\ufffd"
"""What a decoder writes for bytes that are no whole character, or not yet."""


class Spelling:
    """The tokens of one answer, and what of their text was handed out.

    A token's text depends on the one before it (blanks, characters of several tokens), so each is decoded together with
    the last piece, never with the whole answer: an answer of n tokens takes the time of n, not of n squared.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._piece = self._given = 0  # where the last piece begins, and where what is not handed out begins
        self._text = ""

    def add(self, token: int) -> str:
        """What can be told now that this token has come. Half a character waits for its other half."""
        self._tokens.append(token)
        before, text = self._decode(self._piece, self._given), self._decode(self._piece, None)
        if len(text) <= len(before) or text.endswith(HALF):
            return ""
        self._piece, self._given = self._given, len(self._tokens)
        return self._hand(text[len(before) :])

    def rest(self) -> str:
        """What is left where no token comes any more."""
        before, text = self._decode(self._piece, self._given), self._decode(self._piece, None)
        whole = self._decode(0, None)
        self._piece = self._given = len(self._tokens)
        return self._hand(whole[len(self._text) :] if whole.startswith(self._text) else text[len(before) :])

    def _hand(self, text: str) -> str:
        self._text += text
        return text

    def _decode(self, first: int, last: int | None) -> str:
        text = self._tokenizer.decode(self._tokens[first:last], skip_special_tokens=True)
        assert isinstance(text, str)
        return text
