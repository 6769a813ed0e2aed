import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlm.artifacts.record import refuse_secrets
from bitlm.errors import ConfigError
from bitlm.storage import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("see git+ssh://u:p@host/x?token=1 and http://h/y?z", "see git+ssh://host/x?… and http://h/y?…"),
        ("/data/a@b?c", "/data/a@b?c"),
    ],
)
def test_what_is_taken_out(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(st.from_regex(r"\A(http|\w+)?(://)?[a-z:@/ ]{0,12}\Z"))
def test_a_user_in_a_url_is_refused_wherever_it_stands(text: str) -> None:
    """Compared with a look at every place where the scheme of a URL may end."""
    secret = False
    for colon in (place.start() for place in re.finditer("(?<=\\w)://", text)):
        host = re.split(r"[/\s?#]", text[colon + 3 :])[0]
        named = text[:colon].lower().endswith(("http", "https"))
        secret |= "@" in (host if named else host.partition(":")[2])
    try:
        refuse_secrets(text, "key")
    except ConfigError:
        assert secret
    else:
        assert not secret


@pytest.mark.parametrize("unit", ["a", "a@", "a:", "://", "x://:", "x://a:", "?", "&key", "-", "@", "/"])
def test_time_grows_with_the_length_of_a_text(unit: str) -> None:
    text = unit * (300_000 // len(unit))
    assert redact(text)
    refuse_secrets(text, "key")
