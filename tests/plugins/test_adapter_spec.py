"""Adapters as text: what is read, what is refused, and that writing is the inverse of reading."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowblend_plugins import Adapter, AdapterError, AdapterTraits, AttachTarget
from flowblend_plugins.contract.spec import adapter_from_spec, make_adapter, read_spec, write_spec
from flowblend_plugins.contract.traits import Family


@dataclass(frozen=True, kw_only=True)
class Cache(Adapter):
    name: ClassVar[str] = "cache"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.FEATURE_CACHING)

    threshold: float = 0.1
    warmup_steps: int | None = None
    mode: Literal["fast", "slow"] = "slow"
    blocks: tuple[int, ...] = ()
    note: str = ""
    exact: bool = False

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ValueError(f"threshold={self.threshold}: expected at least 0")

    def attach(self, target: AttachTarget) -> nullcontext[None]:
        return nullcontext()


KNOWN = {"cache": Cache}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cache", Cache()),
        (" cache ( ) ", Cache()),
        ("cache(threshold=0.25)", Cache(threshold=0.25)),
        ("cache(threshold=1)", Cache(threshold=1)),
        ("cache(warmup_steps=None, mode='fast')", Cache(mode="fast")),
        ("cache(blocks=(1, 2), exact=True, note='a(b=1)')", Cache(blocks=(1, 2), exact=True, note="a(b=1)")),
    ],
)
def test_a_text_gives_an_adapter(text: str, expected: Cache) -> None:
    assert adapter_from_spec(text, KNOWN) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1cache",
        "cache(",
        "cache)",
        "cache(0.1)",
        "cache(**{'threshold': 1})",
        "a.cache(x=1)",
        "cache()()",
        "cache; x",
        "lambda: 0",
        "cache\x00",
        "cache(threshold=" + "(" * 5000 + ")" * 5000 + ")",
    ],
)
def test_a_text_of_another_form_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(AdapterError, match="expected a name like"):
        read_spec(text)


@pytest.mark.parametrize(
    "value", ["__import__('os').getcwd()", "open('x')", "threshold", "[i for i in (1,)]", "f'{1}'"]
)
def test_nothing_in_a_text_is_evaluated(value: str) -> None:
    with pytest.raises(AdapterError, match="the value of threshold is no literal"):
        read_spec(f"cache(threshold={value})")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cach", "no adapter 'cach'. Did you mean 'cache'? The adapters installed are cache."),
        ("zzz", "no adapter 'zzz'. The adapters installed are cache."),
        (
            "cache(treshold=1)",
            "'cache' has no option treshold. Did you mean threshold? Its options are threshold: float",
        ),
        ("cache(threshold='1')", "threshold='1' is a str, expected float"),
        ("cache(threshold=True)", "threshold=True is a bool, expected float"),
        ("cache(warmup_steps=1.0)", "warmup_steps=1.0 is a float, expected int | None"),
        ("cache(mode='medium')", "mode='medium' is a str, expected Literal['fast', 'slow']"),
        ("cache(blocks=(1, 'a'))", "blocks=(1, 'a') is a tuple, expected tuple[int, ...]"),
        ("cache(threshold=-1)", "'cache': threshold=-1: expected at least 0. Its options are threshold: float = 0.1"),
    ],
)
def test_a_wrong_name_or_option_says_what_is_known(text: str, expected: str) -> None:
    with pytest.raises(AdapterError) as refused:
        adapter_from_spec(text, KNOWN)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_adapter_installed_says_so() -> None:
    with pytest.raises(AdapterError, match="No adapter is installed"):
        adapter_from_spec("cache", {})


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "threshold": st.floats(min_value=0, allow_infinity=False),
        "warmup_steps": st.none() | st.integers(),
        "mode": st.sampled_from(["fast", "slow"]),
        "blocks": st.lists(st.integers()).map(tuple),
        "note": st.text(),
        "exact": st.booleans(),
    },
)


@given(OPTIONS)
def test_writing_then_reading_gives_the_same_adapter(options: dict[str, Any]) -> None:
    adapter = Cache(**options)
    assert adapter_from_spec(write_spec(adapter), KNOWN) == adapter
    assert make_adapter(Cache, options) == adapter


@given(OPTIONS)
def test_the_written_text_is_what_python_itself_reads_as_a_call(options: dict[str, Any]) -> None:
    """The oracle: Python's own evaluation of the text as a constructor call."""
    adapter = Cache(**options)
    text = write_spec(adapter)
    assert eval(text if "(" in text else f"{text}()", {"cache": Cache}) == adapter


@given(st.text())
def test_any_text_is_read_or_refused_in_one_way(text: str) -> None:
    try:
        adapter = adapter_from_spec(text, KNOWN)
    except AdapterError:
        return
    assert isinstance(adapter, Cache)
