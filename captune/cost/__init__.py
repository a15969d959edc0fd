"""What a step, a trial and a study cost on this machine."""
