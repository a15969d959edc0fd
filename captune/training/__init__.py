"""Training one trial: the loop, its checkpoints, the selection scores, and the only module that reads test labels."""
