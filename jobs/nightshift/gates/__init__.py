"""Whether a trained model may score: each gate judged, and the champion moved or left alone."""
