"""What is read from a run directory: plots, report.html, terminal screens. Knows neither torch nor the trainer."""

from training.reporting.html import build_report
from training.reporting.plots import plot_losses
from training.reporting.run_reader import load_run
from training.reporting.screen import format_phase_table, format_summary

__all__ = ["build_report", "format_phase_table", "format_summary", "load_run", "plot_losses"]
