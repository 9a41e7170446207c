"""Reports on runs: summaries, tables, figures and the page."""
