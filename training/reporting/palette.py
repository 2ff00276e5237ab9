"""Colours, once, for PNG plots, inline SVG, style sheet and terminal.

Series colours are Okabe and Ito's, phase colours Paul Tol's "muted" scheme: both are distinguishable with the common
forms of colour blindness. Charts are drawn with the light values; in the report each is replaced by its CSS variable,
so that one SVG follows the reader's light or dark scheme. All light values must therefore be distinct.
"""

from __future__ import annotations

from training.metrics import names

# name -> (light, dark)
COLOURS: dict[str, tuple[str, str]] = {
    "surface": ("#ffffff", "#171b22"),
    "ink": ("#1b2430", "#e6e9ee"),
    "muted": ("#5f6b7a", "#97a3b3"),
    "grid": ("#e3e7ec", "#2b323c"),
    "blue": ("#0072b2", "#56a8dd"),
    "sky": ("#a9cfe8", "#3d6d92"),
    "orange": ("#d55e00", "#ff9147"),
    "green": ("#009e73", "#3fcf9f"),
    "purple": ("#aa3f83", "#e08cc0"),
    "red": ("#c1121f", "#ff6b6b"),
    f"phase-{names.FORWARD}": ("#88ccee", "#88ccee"),
    f"phase-{names.BACKWARD}": ("#332288", "#7d6fe0"),
    f"phase-{names.COMM_EXPOSED}": ("#6699cc", "#6699cc"),
    f"phase-{names.OPTIMIZER}": ("#44aa99", "#44aa99"),
    f"phase-{names.DATA_WAIT}": ("#cc6677", "#e0808f"),
    f"phase-{names.H2D}": ("#ddcc77", "#ddcc77"),
    f"phase-{names.EVAL}": ("#aa4499", "#c968ba"),
    f"phase-{names.CHECKPOINT}": ("#882255", "#b8437f"),
    f"phase-{names.LOGGING}": ("#117733", "#3d9a5b"),
    f"phase-{names.CACHE_CLEAR}": ("#999933", "#b5b54a"),
    f"phase-{names.OTHER}": ("#b4bac2", "#6b7480"),
}

# Bottom to top in stacked charts: the work first, then what keeps it waiting.
STACKING = (
    names.FORWARD, names.BACKWARD, names.OPTIMIZER, names.COMM_EXPOSED, names.DATA_WAIT, names.H2D,
    names.EVAL, names.CHECKPOINT, names.LOGGING, names.CACHE_CLEAR, names.OTHER,
)  # fmt: skip


def light(name: str) -> str:
    """A colour of the light theme."""
    return COLOURS[name][0]


def phase_colour(phase: str) -> str:
    """The light colour of a phase; an unknown phase looks like `other`."""
    return COLOURS.get(f"phase-{phase}", COLOURS[f"phase-{names.OTHER}"])[0]


def css_variables(dark: bool) -> str:
    """`--c-ink:#1b2430;…` for a `:root` block."""
    return "".join(f"--c-{name}:{pair[dark]};" for name, pair in COLOURS.items())


def to_css_variables(svg: str) -> str:
    """Replace each light colour in `svg` by its CSS variable."""
    for name, (value, _) in COLOURS.items():
        svg = svg.replace(value, f"var(--c-{name})")
    return svg
