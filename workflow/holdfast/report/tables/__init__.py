"""The tables of a study, built once from the tidy frame; as CSV, Markdown, LaTeX and plain text."""

from holdfast.report.tables.files import read_tables, write_tables
from holdfast.report.tables.of_model import model_tables, models
from holdfast.report.tables.terminal import terminal_tables

__all__ = ["model_tables", "models", "read_tables", "terminal_tables", "write_tables"]
