"""Values and durations as texts for people."""


def short(value: object) -> str:
    """Format a value as a person would write it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Format a duration in the unit that suits it, such as 12.3 s or 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    hours = round(seconds / 3600)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{seconds / 86400:.1f} days"
