"""The life of a study: planned, run to its end, closed with a choice and a report. Nothing here prints."""
