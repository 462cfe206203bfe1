"""Ways of pretraining compared at equal cost."""
