"""Training on many ranks: collectives over MPI and torch.distributed, and the exchange of row gradients."""
