"""The text of an answer while it is being written: what of it may be shown so far.

A token is not a piece of text: a letter may be spread over several (é in two, an emoji in four), a tokenizer may put a
space before a word only when something stands before it, and a stop string may have begun without being one in the end.
So text is shown when it can no longer change; what has been shown, put together, is what decoding the whole answer at
once gives.
"""

from __future__ import annotations

from typing import Any

UNFINISHED = "\ufffd"  # what a tokenizer writes for bytes that are no letter (yet)


class Written:
    def __init__(self, tokenizer: Any, stop: list[str] | None = None):
        """stop: strings that end the answer; none of them is shown."""
        self.tokenizer, self.stop = tokenizer, stop or []
        self.ids: list[int] = []
        self.text = ""  # of the ids before `read`
        self.start = self.read = 0  # ids[start:read] are decoded once more beside the new ones, for the space between
        self.shown = 0  # characters of the text that were given out
        self.stopped = False  # by a stop string

    def add(self, token: int) -> str:
        """One token more -> the text that is new and will stay."""
        self.ids.append(token)
        known, more = self._decode(self.ids[self.start : self.read]), self._decode(self.ids[self.start :])
        if len(more) <= len(known) or more.endswith(UNFINISHED):
            return ""
        self.text += more[len(known) :]
        self.start, self.read = self.read, len(self.ids)
        return self._show(held_back=True)

    def end(self) -> str:
        """Nothing comes any more -> the rest."""
        if self.stopped:
            return ""
        whole = self._decode(self.ids)
        if whole.startswith(self.text):
            self.text = whole
        return self._show(held_back=False)

    def _show(self, *, held_back: bool) -> str:
        # before what was shown no stop string begins: it would have been found, or held back
        found = [place for place in (self.text.find(one, self.shown) for one in self.stop) if place >= 0]
        if found:
            self.stopped, end = True, min(found)
            self.text = self.text[:end]
        else:
            end = len(self.text) - (self._begun() if held_back else 0)
        piece, self.shown = self.text[self.shown : end], max(self.shown, end)
        return piece

    def _begun(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        for length in range(min(len(self.text), max(map(len, self.stop), default=1) - 1), 0, -1):
            if any(one.startswith(self.text[-length:]) for one in self.stop):
                return length
        return 0

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)
