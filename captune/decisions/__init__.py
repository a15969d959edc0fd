"""What is decided from scores: which configurations are confirmed, which one is best, what to advise. No files here."""
