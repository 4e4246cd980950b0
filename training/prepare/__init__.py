"""`pbe-train prepare`: photo collections as the box indexes that `training.data` reads."""
