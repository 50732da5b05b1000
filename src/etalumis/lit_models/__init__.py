"""Lightning modules and the training that runs them."""
