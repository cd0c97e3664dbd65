"""From a run folder to figures, one self-contained HTML page and a Markdown twin. Reads the record
alone.

Measurements know nothing of reports: this room imports `record` and `stats`, never a study.
"""

from loclin.report.page import build

__all__ = ["build"]
