"""Rows to train on."""

from __future__ import annotations

from ssah_lens.chat.batch import Position
from ssah_lens.chat.model import ChatModel
from ssah_lens.chat.prompts import Prompt, PromptSet
from ssah_lens.train.data import rows_of


def test_long_answers_are_cut_and_short_ones_keep_their_end(micro: ChatModel):
    data = PromptSet("two", (Prompt("Hi", response="one two three four five"), Prompt("Hi", response="a")))
    whole, cut = rows_of(micro, data), rows_of(micro, data, 3)
    responses = lambda row: [t for t, p in zip(row.ids, row.positions, strict=True) if p == Position.RESPONSE]
    assert responses(cut[0]) == responses(whole[0])[:3] and len(responses(whole[0])) > 3
    assert cut[1] == whole[1] and responses(cut[1])[-1] == micro.turn_end
