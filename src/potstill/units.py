"""Times, counts and sizes as people read them, for the terminal, the page and messages alike."""

_POWERS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 05 s, 2 h 00 min, 3 d 4 h."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count: float | None) -> str:
    """Bytes as people read them: 87.2 kB, 2.02 MB; thousands, not 1,024s. None: nothing is said."""
    if count is None:
        return ""
    figures, prefix = _scaled(count)
    return f"{figures} {prefix}B"


def memory(count: float) -> str:
    """Bytes as makers of devices count them, in 1,024s: 17.3 GiB, or MiB where it is little."""
    mib, gib = count / (1 << 20), count / (1 << 30)
    return f"{gib:,.0f} GiB" if gib >= 100 else f"{gib:.1f} GiB" if gib >= 1 else f"{mib:.0f} MiB"


def amount(value: float | None) -> str:
    """A count as people read it: 21,996; three figures where it is long: 272k, 5.09M, 7.24G. None: nothing is said."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value < 99_999.5 else "".join(_scaled(value))


def _scaled(value: float) -> tuple[str, str]:
    """Three figures, and k, M, G or T; whole, and nothing, below a thousand."""
    for power, prefix in _POWERS:
        if value >= 0.9995 * power:
            return f"{value / power:.{3 if value < 999.5 * power else 4}g}", prefix
    return f"{value:.0f}", ""
