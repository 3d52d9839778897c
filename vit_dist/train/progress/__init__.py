"""How far a run is, where its time went, and what is due next."""
