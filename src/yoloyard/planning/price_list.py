"""A price list of one's own: a CSV file of hosts that somebody rents out, as spreadsheets write it."""

import csv
import io
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from yoloyard.common.errors import UsageError
from yoloyard.config.overrides import unknown_name
from yoloyard.planning.figures import Offer
from yoloyard.planning.gpus import find_gpu

REQUIRED = ("provider", "gpu", "price")
COLUMNS = (*REQUIRED, "region", "instance", "count", "cores", "spot", "currency", "rate", "date")
DOLLARS = ("", "usd", "$", "us$")
YES, NO = ("yes", "true", "1", "spot", "y"), ("no", "false", "0", "", "n", "on demand")


def read_price_list(path: Path) -> list[Offer]:
    """The offers of a CSV file, in its order.

    Its first line names the columns: `provider`, `gpu`, `price` (of a host and hour), and where they are known
    `region`, `instance`, `count` (GPUs, 1), `cores`, `spot` (yes or no), `date` (2026-11-30) of the price, `currency`
    and `rate` (dollars for one unit of it). Commas, semicolons or tabs part them. Raises UsageError with line and
    column.
    """
    lines = _text(path).splitlines()
    if not lines:
        raise UsageError(f"{path} is empty: its first line must be {','.join(COLUMNS)}")
    delimiter = max(",;\t", key=lines[0].count)
    rows = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
    names = [name.strip().lower() for name in next(rows)]
    for number, name in enumerate(names):
        if name and name not in COLUMNS:
            raise UsageError(f"{path}:1: {unknown_name(name, COLUMNS, 'column')}")
        if name and name in names[:number]:
            raise UsageError(f"{path}:1: column '{name}' is there twice: leave one out")
    if missing := [name for name in REQUIRED if name not in names]:
        raise UsageError(f"{path}:1: column '{missing[0]}' is missing: the first line must name {', '.join(REQUIRED)}")
    offers = []
    for cells in rows:
        if not any(map(str.strip, cells)):
            continue
        if len(cells) > len(names) and any(map(str.strip, cells[len(names) :])):
            hint = "; a decimal comma needs quotes, or write 2.10" if delimiter == "," else ""
            raise UsageError(f"{path}:{rows.line_num}: there are {len(cells)} cells for {len(names)} columns{hint}")
        row = dict(zip(names, map(str.strip, cells), strict=False))
        offers.append(_offer(row, f"{path}:{rows.line_num}: column"))
    return offers


def _offer(row: Mapping[str, str], where: str) -> Offer:
    if not (provider := row.get("provider", "")):
        raise UsageError(f"{where} 'provider' is empty: say whose offer this is")
    try:
        gpu = find_gpu(row.get("gpu", ""))
    except UsageError as error:
        raise UsageError(f"{where} 'gpu': {error}") from error
    price, currency = _number(row, "price", where), row.get("currency", "")
    if currency.lower() not in DOLLARS:
        rate = _number(row, "rate", where)
        if rate is None or rate <= 0:
            raise UsageError(f"{where} 'rate' must say how many dollars one {currency} is, such as 0.14")
        price = None if price is None else price * rate
    spot = row.get("spot", "").lower()
    if spot not in YES + NO:
        raise UsageError(f"{where} 'spot' must be yes or no, not {spot!r}")
    return Offer(
        provider=provider,
        region=row.get("region", ""),
        instance=row.get("instance", ""),
        gpu=gpu.name,
        count=_whole(row, "count", where, 1),
        cores=_whole(row, "cores", where, 0),
        price=price,
        spot=spot in YES,
        dated=_date(row.get("date", ""), where),
    )


def _number(row: Mapping[str, str], name: str, where: str) -> float | None:
    """The number of a cell, None if it is empty. A comma may be the decimal point; thousands have no sign."""
    text = row.get(name, "")
    digits = text.removeprefix("$").strip()
    if not digits:
        return None
    if not re.fullmatch(r"[-+]?\d+([.,]\d*)?", digits):
        raise UsageError(f"{where} '{name}' must be a number such as 2.10, not {text!r}")
    if re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", digits):
        raise UsageError(f"{where} '{name}': {text!r} may be {digits.replace(',', '.')} or {digits.replace(',', '')}")
    return float(digits.replace(",", "."))


def _whole(row: Mapping[str, str], name: str, where: str, default: int) -> int:
    number = _number(row, name, where)
    if number is None:
        return default
    if number < 1 or not number.is_integer():
        raise UsageError(f"{where} '{name}' must be a whole number above 0, not {row[name]!r}")
    return int(number)


def _date(text: str, where: str) -> str | None:
    if not text:
        return None
    year_first = re.fullmatch(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})", text)  # a spreadsheet may turn - into /
    try:
        return date(*map(int, year_first.groups() if year_first else ())).isoformat()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where} 'date' must be a day such as 2026-11-30, not {text!r}") from error


def _text(path: Path) -> str:
    """The text of the file, in UTF-8, or UTF-16 with its mark."""
    try:
        content = path.read_bytes()
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return content.decode(encoding)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not in UTF-8: save it as 'CSV UTF-8'") from error
