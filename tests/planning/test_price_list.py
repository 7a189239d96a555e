"""A price list of one's own, as people and spreadsheets write it."""

from pathlib import Path

import pytest

from yoloyard.common.errors import UsageError
from yoloyard.planning.figures import Offer
from yoloyard.planning.price_list import read_price_list


def read(path: Path, content: str | bytes) -> list[Offer]:
    file = path / "prices.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_price_list(file)


def test_all_columns(tmp_path: Path) -> None:
    header = "provider,region,instance,gpu,count,cores,price,spot,currency,rate,date\n"
    row = "autodl,北京,4090-2,RTX 4090,2,32,5.0,no,CNY,0.14,2026-11-20\n"
    (found,) = read(tmp_path, header + row)
    assert found.price == pytest.approx(0.7)
    rest = ("autodl", "北京", "4090-2", "RTX4090", 2, 32)
    assert found == Offer(*rest, price=found.price, spot=False, dated="2026-11-20")


def test_three_columns_are_enough(tmp_path: Path) -> None:
    (found,) = read(tmp_path, "price,gpu,provider\n0.5,t4,company\n")
    assert found == Offer("company", "", "", "T4", 1, 0, 0.5, spot=False, dated=None)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffprovider;gpu;price;date\r\nvast;RTX 4090;0,35;2026/11/30\r\n;;;\r\n",
        'provider,gpu,price,date\nvast,RTX 4090,"0,35",2026-11-30\n',
        "provider\tgpu\tprice\tdate\nvast\tRTX 4090\t$0.35\t2026.11.30\n".encode("utf-16"),
        "Provider, GPU, Price, Date\n\nvast, RTX 4090, 0.35, 2026-11-30\n",
    ],
    ids=["semicolons and a mark", "quotes", "UTF-16", "spaces"],
)
def test_what_spreadsheets_write(tmp_path: Path, content: str | bytes) -> None:
    assert read(tmp_path, content) == [Offer("vast", "", "", "RTX4090", 1, 0, 0.35, spot=False, dated="2026-11-30")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: its first line must be provider,gpu,price"),
        ("provider,gpu\n", ":1: column 'price' is missing"),
        ("provider,gpu,prise\n", ":1: unknown column 'prise'; did you mean 'price'?"),
        ("provider,gpu,price,price\n", ":1: column 'price' is there twice"),
        ("provider,gpu,price\n\na,RTX 4099,1\n", ":3: column 'gpu': unknown"),
        ("provider,gpu,price\na,T4,ask\n", ":2: column 'price' must be a number such as 2.10, not 'ask'"),
        ("provider,gpu,price\na,T4,¥3\n", ":2: column 'price' must be a number such as 2.10, not '¥3'"),
        ("provider,gpu,price\na,T4,0,35\n", ":2: there are 4 cells for 3 columns; a decimal comma needs quotes"),
        ("provider;gpu;price\na;T4;1,234\n", ":2: column 'price': '1,234' may be 1.234 or 1234"),
        ("provider,gpu,price\n,T4,1\n", ":2: column 'provider' is empty"),
        ("provider,gpu,price,spot\na,T4,1,maybe\n", ":2: column 'spot' must be yes or no, not 'maybe'"),
        ("provider,gpu,price,count\na,T4,1,0\n", ":2: column 'count' must be a whole number above 0, not '0'"),
        ("provider,gpu,price,date\na,T4,1,11/30/2026\n", ":2: column 'date' must be a day such as 2026-11-30"),
        ("provider,gpu,price,date\na,T4,1,2026-02-30\n", ":2: column 'date' must be a day such as 2026-11-30"),
        ("provider,gpu,price,currency\na,T4,1,EUR\n", ":2: column 'rate' must say how many dollars one EUR is"),
        ("provider,gpu,price\n阿里云,T4,1\n".encode("gbk"), "is not in UTF-8: save it as 'CSV UTF-8'"),
    ],
)
def test_what_is_wrong_is_said_with_line_and_column(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, content)
    assert message in str(raised.value)
    assert str(tmp_path / "prices.csv") in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*prices\.csv: No such file"):
        read_price_list(tmp_path / "prices.csv")
