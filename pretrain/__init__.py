"""Learning encoders and action-conditioned predictors from trajectory logs."""
