"""MLflow's runs: written by the driver alone."""
