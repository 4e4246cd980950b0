"""`pbe-train prepare demo`: the pictures that the bundled model is trained on and measured with."""
