"""Devices by their names and by what is written behind them."""

import pytest

from potstill.errors import RecipeError
from potstill.hardware import DEVICES, GIB, OF_PRINTED, parse


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xH100", 8, "H100"),
        ("h100", 1, "H100"),
        ("rtx4090", 1, "RTX4090"),
        ("RTX 4090", 1, "RTX4090"),
        ("2xA100-80GB", 2, "A100-80GB"),
        ("2 x a100", 2, "A100-80GB"),
        ("4xA100-40GB", 4, "A100-40GB"),
        ("1x24GB", 1, "24GB GPU"),
        ("cpu", 1, "cpu"),
    ],
)
def test_what_is_written_is_understood(text: str, count: int, name: str) -> None:
    found = parse(text)
    assert (found.count, found.device.name) == (count, name)


def test_a_device_of_ones_own() -> None:
    found = parse("4x48GB@150TFLOPS@1.2USD@700GB/s")
    assert found.count == 4
    assert found.device.memory_bytes == round(OF_PRINTED * 48 * GIB)
    assert found.device.flops_per_second == 150e12
    assert found.device.bytes_per_second == 700e9
    assert found.device.usd_per_hour == 1.2


def test_a_price_that_is_given_takes_the_place_of_the_listed_one() -> None:
    assert parse("H100").device.usd_per_hour == 3.0
    assert parse("H100", 2.5).device.usd_per_hour == 2.5
    assert parse("L40S").device.usd_per_hour is None


def test_no_device_has_more_memory_than_is_printed_on_it() -> None:
    for device in DEVICES.values():
        assert 10 * GIB < device.memory_bytes < 180 * GIB
        assert device.wide_flops_per_second < device.flops_per_second


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8xH1000", "did you mean"),
        ("9" * 5000 + "xH100", "no device that is known"),
        ("٣xH100", "no device that is known"),
        ("0xH100", "expected 1 to 100,000"),
        ("2xcpu", "one machine's processors"),
        ("", "is no device"),
        ("H100@fast", "@fast"),
        ("H100@0USD", "@0USD"),
        ("0GB", "no size"),
        ("24GB@1e9TFLOPS", "says nothing"),
    ],
)
def test_what_is_no_device_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
