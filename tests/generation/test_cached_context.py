"""Several samples of one prompt."""

import pytest
from small_models import small_model

PROMPTS = [[7, 3, 9], [1, 4, 4, 21, 30], [7, 3, 9], [7, 3, 9], [2, 2], [1, 4, 4, 21, 30]]


@pytest.mark.parametrize("head", ["lm", "diffusion"])
def test_equal_prompts_are_read_once_and_continued_apart(head: str) -> None:
    model = small_model(head=head)
    settings = {"max_new_tokens": 12, "num_steps": 3, "guidance_scale": 1.0, "seed": 2}
    settings["temperature"] = float(head == "lm")
    model.config.end_token_id = -1
    free = model.generate(PROMPTS, **settings).ids
    others = {token for row, ids in enumerate(free) if row != 3 for token in ids}
    model.config.end_token_id = next(
        token for token in free[3] if token not in others
    )  # one row ends before the others
    alone = [model.generate([prompt], example_ids=[i], **settings) for i, prompt in enumerate(PROMPTS)]
    read, next_context = [], model.next_context

    def spy(ids, *given):
        read.append(len(ids))
        return next_context(ids, *given)

    model.next_context = spy
    together = model.generate(PROMPTS, **settings)
    assert together.ids == [output.ids[0] for output in alone]
    assert together.ended == [output.ended[0] for output in alone]
    assert len({tuple(together.ids[row]) for row in (0, 2, 3)}) == 3
    assert read[0] == 3
    assert read[1] == 6
    assert read[-1] < 6
