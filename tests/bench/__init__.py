"""What a step, an epoch, a trial and a study cost on this machine, against a plain way of doing the same."""
