"""From a training dataset in the lake to a measured, registered model version."""
